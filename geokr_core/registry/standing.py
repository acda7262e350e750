"""What the registry says today of a promotion that was recorded earlier.

The registry is the truth, and the record of a promotion beside it is a copy: a version can be deleted, an alias moved, or
``MLFLOW_TRACKING_URI`` pointed at another server. Nothing is written here, and no torch is loaded.

Not here: the promotion itself (``registry.champion``).
"""

from collections.abc import Mapping
from typing import Any, Final

from mlflow.artifacts import list_artifacts
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from geokr_core.tracking.server import refusals, sqlite_file, tracking_uri, without_password
from geokr_core.tracking.tracked_run import DATA_VERSION_TAG

CHALLENGER: Final = "challenger"
CHAMPION: Final = "champion"
REPLACED_TAG: Final = "replaced_version"
"""Of a champion: the version that was champion before."""

GONE: Final = ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND")
"""MLflow's error codes for what is not there, of its database and of its artifact stores."""


def changed_since(decision: Mapping[str, Any]) -> str | None:
    """What the registry says otherwise than the record of a promotion.

    Args:
        decision: the content of ``decision.json``.

    Returns:
        One sentence that says what differs: the registry, the recorded version or its files are gone, the version holds
        another backbone, or the alias ``champion`` is elsewhere. None where everything is as recorded.

    Raises:
        RegistryError: the registry cannot be asked.
    """
    name, version = str(decision["model_name"]), int(decision["challenger"]["version"])
    uri = tracking_uri()
    database, place = sqlite_file(uri), without_password(uri)
    if database is not None and not database.is_file():  # a client would create it
        return f"There is no registry at {place}; version {version} of {name} was registered."
    with refusals(f"Asking for version {version} of {name}"):
        client = MlflowClient(tracking_uri=uri)
        tags = _tags(client, name, version)
        if tags is None:
            return f"The registry at {place} has no version {version} of {name}."
        if tags.get(DATA_VERSION_TAG) != decision["data_version"]:
            return f"Version {version} of {name} at {place} is another backbone than the one that was registered."
        if not has_files(client, uri, name, version):
            return f"The files of version {version} of {name} at {place} are gone."
        return _other_champion(client, name, decision["champion_version"])


def _tags(client: MlflowClient, name: str, version: int) -> Mapping[str, str] | None:
    try:
        return dict(client.get_model_version(name, str(version)).tags)
    except MlflowException as error:
        if error.error_code in GONE:
            return None
        raise


def has_files(client: MlflowClient, uri: str, name: str, version: int) -> bool:
    """Whether anything is left of the files of a version.

    Args:
        client: of the server.
        uri: of the server.
        name: the registered model.
        version: its number.
    """
    source = client.get_model_version_download_uri(name, str(version))
    try:
        return bool(list_artifacts(artifact_uri=source, tracking_uri=uri))
    except (MlflowException, FileNotFoundError) as error:
        if isinstance(error, MlflowException) and error.error_code not in GONE:
            raise
        return False


def _other_champion(client: MlflowClient, name: str, recorded: int | None) -> str | None:
    found = client.get_registered_model(name).aliases.get(CHAMPION)
    champion = None if found is None else int(found)
    if champion == recorded:
        return None
    there = "no champion" if champion is None else f"version {champion} as champion"
    return f"{name} has {there}; recorded is {'none' if recorded is None else f'version {recorded}'}."
