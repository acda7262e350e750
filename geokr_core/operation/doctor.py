"""The examination of an installation: everything that a run will need, looked at before it is needed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from geokr_core.chain.params import Params, load_params, params_path
from geokr_core.errors import ConfigError
from geokr_core.operation import installation, places
from geokr_core.operation.diagnosis import Diagnosis, examined, failure, ok, warning
from geokr_core.step.extras import lacking

_SERVERS_CLOCK_S: Final = 60.0


def examine(params_file: Path | None = None, overrides: tuple[str, ...] = ()) -> Iterator[Diagnosis]:
    """Look at the machine, the installation, the project and its servers. Nothing is changed.

    Args:
        params_file: the parameter file; see `params_path`.
        overrides: values laid over it.

    Yields:
        What each check found, as it is known. A check that cannot be made is a failure, and the others are made.
    """
    yield from examined("python", installation.python)
    yield from examined("packages", installation.packages)
    yield from examined("versions", installation.versions)
    yield from examined("gdal", installation.gdal)
    params, diagnosis = _params(params_file, overrides)
    yield from examined("extras", lambda: installation.extras(params))
    yield from examined("gpu", lambda: installation.gpu(params))
    yield diagnosis
    if params is not None:
        yield from examined("store", lambda: places.store(params))
        yield from examined("raw data", lambda: places.raw_data(params))
        yield from examined("outputs", lambda: places.outputs(params))
        yield from examined("dvc", lambda: places.dvc(params))
    yield from examined("disk", lambda: places.disk(params))
    yield from examined("clock", lambda: places.clock(params))
    yield from examined("mlflow", _mlflow)
    yield from examined("dagster", places.dagster)


def _params(file: Path | None, overrides: tuple[str, ...]) -> tuple[Params | None, Diagnosis]:
    path = params_path(file)
    try:
        params = load_params(path, overrides)
    except ConfigError as error:
        remedy = "`geokr parameters` says what each key means; `geokr init` writes a file for your data."
        return None, failure("parameter file", str(error), remedy)
    return params, ok("parameter file", f"{path}")


def _mlflow() -> Iterator[Diagnosis]:
    if lack := lacking("mlflow"):
        yield warning("mlflow", f"runs are not recorded: {lack}", "Install the extra, if you want runs and a registry.")
        return
    from geokr_core.tracking.health import health

    found = health()
    waiting = f"; {found.num_waiting} run(s) wait in files" if found.num_waiting else ""
    if found.fault:
        yield failure("mlflow", f"{found.place}: {found.fault}{waiting}", found.remedy)
        return
    if found.clock_ahead_s is not None and abs(found.clock_ahead_s) > _SERVERS_CLOCK_S:
        yield warning(
            "clock", f"the MLflow server is {found.clock_ahead_s:+.0f} s off this machine's clock", "Set both clocks."
        )
    if waiting:
        yield warning("mlflow", f"{found.place}: {found.found}{waiting}", "The next tracked step hands them over.")
        return
    yield ok("mlflow", f"{found.place}: {found.found}")
