"""What is no longer needed, and its way out: first shown, then deleted where that is asked for.

Only what this project made is ever looked at, and each kind has a rule for what stays (``docs/operation.md``). The champion, and whatever it
links to, always does.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from geokr_core.chain.params import Params
from geokr_core.chain.record import read_record
from geokr_core.chain.steps import Folders, steps_of
from geokr_core.errors import ConfigError, GeoKRError
from geokr_core.operation import old_files, old_in_tools
from geokr_core.step.extras import lacking


@dataclass(frozen=True)
class Policy:
    """What stays.

    Attributes:
        days: age from which something can go.
        keep_runs: runs of each step that stay, however old.
        keep_versions: versions of the registered model that stay, however old.
        restorable_days: after a run was deleted, until its files go.
    """

    days: int = 90
    keep_runs: int = 20
    keep_versions: int = 5
    restorable_days: int = 30

    def __post_init__(self) -> None:
        """Refuse numbers with which too much would go.

        Raises:
            ConfigError: a number is too small.
        """
        least = {"days": 1, "keep_runs": 1, "keep_versions": 1, "restorable_days": 0}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ConfigError(f"--{name.replace('_', '-')}: {getattr(self, name)}, expected {smallest} or more.")


@dataclass(frozen=True)
class Candidate:
    """Something that can go.

    Attributes:
        kind: see `KINDS`.
        name: what it is.
        age_days: how old; None where it has no age.
        num_bytes: what it frees; None where that is not known.
        reason: why it can go.
        remove: removes it.
    """

    kind: str
    name: str
    age_days: float | None
    num_bytes: int | None
    reason: str
    remove: Callable[[], object] = field(repr=False, compare=False)

    def row(self) -> dict[str, object]:
        """What is shown."""
        shown = ("kind", "name", "age_days", "num_bytes", "reason")
        values = {name: getattr(self, name) for name in shown}
        return {**values, "age_days": None if self.age_days is None else round(self.age_days, 1)}


def candidates(params: Params, policy: Policy, kinds: tuple[str, ...] = ()) -> Iterator[Candidate]:
    """What can go; nothing is deleted.

    Args:
        params: the parameter file.
        policy: what stays.
        kinds: look at these only; none: at all.

    Raises:
        ConfigError: there is no such kind.
        RegistryError: MLflow cannot be asked.
        VersioningError: DVC or Dagster refuses to say.
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ConfigError(f"--only {unknown[0]}: expected one of {', '.join(KINDS)}.")
    for kind in kinds or KINDS:
        yield from KINDS[kind](params, policy)


def _partials(params: Params, policy: Policy) -> Iterator[Candidate]:
    del policy  # what a dead process left is of no use at any age
    for old in old_files.leftovers(params.store):
        yield Candidate(
            "partial", str(old.path), old.age_days, old.num_bytes, old.reason, partial(old_files.clear, old)
        )


def _checkpoints(params: Params, policy: Policy) -> Iterator[Candidate]:
    for old in old_files.checkpoints(params, policy.days):
        yield Candidate(
            "checkpoint", str(old.path), old.age_days, old.num_bytes, old.reason, partial(old_files.clear, old)
        )


def _versions(params: Params, policy: Policy) -> Iterator[Candidate]:
    if not _has_mlflow():
        return
    from geokr_core.registry.old_versions import old_versions, retire_version

    for old in old_versions(params.backbone.model_name, policy.days, policy.keep_versions):
        name = f"{old.model_name}/{old.version}"
        yield Candidate("version", name, old.age_days, None, "no alias points to it", partial(retire_version, old))


def _runs(params: Params, policy: Policy) -> Iterator[Candidate]:
    if not _has_mlflow():
        return
    from geokr_core.registry.old_versions import runs_of_versions
    from geokr_core.tracking.old_runs import old_runs, retire

    protected = runs_of_versions() | set(_runs_of_store(params))
    for old in old_runs(protected, policy.days, policy.keep_runs, policy.restorable_days):
        yield Candidate("run", f"{old.name} ({old.run_id})", old.age_days, None, old.reason, partial(retire, old))


def _has_mlflow() -> bool:
    """Whether there is a registry to ask: a client would create the database that it does not find."""
    if lacking("mlflow"):
        return False
    from geokr_core.tracking.server import sqlite_file, tracking_uri

    database = sqlite_file(tracking_uri())
    return database is None or database.is_file()


def _runs_of_store(params: Params) -> Iterator[str]:
    """Runs that the outputs of the store came from."""
    folders = Folders(params)
    for step in steps_of(params):
        record = read_record(folders.state(step.name))
        if record is not None and record.mlflow_url:
            yield record.mlflow_url.rpartition("/")[2]


def _event_logs(params: Params, policy: Policy) -> Iterator[Candidate]:
    del params
    for run in old_in_tools.dagster_runs(policy.days):
        remove = partial(old_in_tools.delete_dagster_run, run.run_id)
        yield Candidate(
            "events", f"{run.job} ({run.run_id})", run.age_days, None, "no asset's latest state is in it", remove
        )


def _garbage(params: Params, policy: Policy) -> Iterator[Candidate]:
    del policy
    found = old_in_tools.dvc_garbage(params)
    if found:
        yield Candidate(
            "garbage",
            found,
            None,
            None,
            "no commit and no file of this folder names it",
            old_in_tools.collect_dvc_garbage,
        )


KINDS: Final[Mapping[str, Callable[[Params, Policy], Iterator[Candidate]]]] = {
    "partial": _partials,
    "checkpoint": _checkpoints,
    "version": _versions,
    "run": _runs,
    "events": _event_logs,
    "garbage": _garbage,
}
"""Kinds of what can go. Versions come before runs: a run that a version rests on stays until the version is gone."""


def remove_all(found: list[Candidate]) -> Iterator[tuple[Candidate, str]]:
    """Remove what was found, each for itself: one that cannot be removed keeps no other from going.

    Yields:
        Each with what is wrong; empty where it is gone.
    """
    for candidate in found:
        try:
            candidate.remove()
        except (GeoKRError, OSError) as error:
            yield candidate, str(error)
        else:
            yield candidate, ""
