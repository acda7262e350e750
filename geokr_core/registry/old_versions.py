"""Versions of a registered model that are no longer needed, and what everything that stays rests on.

The champion is never among them, nor any version with another alias, nor the one that a rollback would return to.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient

from geokr_core.registry.standing import CHAMPION, REPLACED_TAG
from geokr_core.registry.versions import EVALUATION_RUN_TAG, all_versions, registered
from geokr_core.tracking.old_runs import retire_model
from geokr_core.tracking.runs import KEEP_TAG
from geokr_core.tracking.server import refusals, tracking_uri
from geokr_core.tracking.tracked_run import DATA_VERSION_TAG

_DAY_S: Final = 86_400.0


@dataclass(frozen=True)
class OldVersion:
    """A version that can go.

    Attributes:
        model_name: the registered model.
        version: its number.
        age_days: since it was registered.
    """

    model_name: str
    version: int
    age_days: float


def old_versions(model_name: str, days: int, keep: int) -> list[OldVersion]:
    """Versions that can go: of this project, older than ``days``, without an alias, not among the newest ``keep``.

    Args:
        model_name: the registered model.
        days: age from which a version can go.
        keep: newest versions that stay.

    Raises:
        RegistryError: MLflow cannot be asked.
    """
    with refusals(f"Looking for old versions of {model_name}"):
        client = MlflowClient(tracking_uri=tracking_uri())
        model = registered(client, model_name)
        if model is None:
            return []
        versions = sorted(all_versions(client, f"name = '{model_name}'"), key=lambda found: -int(found.version))
        staying = {int(version) for version in model.aliases.values()} | {
            int(found.version) for found in versions[:keep]
        }
        staying |= set(_before(versions, model.aliases.get(CHAMPION)))
    aged = [OldVersion(model_name, int(found.version), _age_days(found)) for found in versions if _is_ours(found)]
    return [one for one in aged if one.version not in staying and one.age_days >= days]


def retire_version(old: OldVersion) -> None:
    """Delete a version, unless it has become champion or got another alias meanwhile. Its files go with those of its run.

    Raises:
        RegistryError: MLflow refuses.
    """
    with refusals(f"Deleting version {old.version} of {old.model_name}"):
        client = MlflowClient(tracking_uri=tracking_uri())
        found = client.get_model_version(old.model_name, str(old.version))
        if found.aliases:
            return
        client.delete_model_version(old.model_name, str(old.version))
        if str(found.source).startswith("models:/"):
            retire_model(client, str(found.run_id), str(found.source).removeprefix("models:/"))


def runs_of_versions() -> set[str]:
    """Ids of the runs that any version of any registered model rests on.

    Raises:
        RegistryError: MLflow cannot be asked.
    """
    with refusals("Looking for the runs of registered versions"):
        client = MlflowClient(tracking_uri=tracking_uri())
        found = set()
        for version in all_versions(client, ""):
            found |= {run for run in (version.run_id, version.tags.get(EVALUATION_RUN_TAG)) if run}
        return found


def _before(versions: list[ModelVersion], champion: str | int | None) -> Iterator[int]:
    """The version that a rollback of the champion would return to."""
    for found in versions:
        if champion is not None and int(found.version) == int(champion):
            replaced = found.tags.get(REPLACED_TAG, "")
            if replaced.isdigit():
                yield int(replaced)


def _is_ours(version: ModelVersion) -> bool:
    return DATA_VERSION_TAG in version.tags and KEEP_TAG not in version.tags


def _age_days(version: ModelVersion) -> float:
    return (time.time() - version.creation_timestamp / 1000) / _DAY_S
