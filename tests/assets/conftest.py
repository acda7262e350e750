import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.storage.defs_state.base import set_defs_state_storage
from tiny_worlds import tiny_world

from geokr_assets.assets import build_assets
from geokr_assets.checks import build_checks
from geokr_assets.resources import ParamsFile
from geokr_core.chain.params import Params, load_params
from geokr_core.chain.run import run_step
from geokr_core.step.reporter import RecordingReporter

Materialise = Callable[..., dg.ExecuteInProcessResult]


def write_params(root: Path) -> Path:
    """Parameters of the smallest world on which every step has something to do."""
    return tiny_world(root, world=root / "data" / "world", store=root / "data" / "store")


@pytest.fixture(autouse=True)
def _no_instance_of_an_earlier_test() -> Iterator[None]:
    """An instance that is entered twice, as a schedule's context does, stays Dagster's current one after it is gone."""
    with set_defs_state_storage(None):
        yield


@pytest.fixture(scope="session")
def cut_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a generated world whose scenes are cut and counted. Read only: copy it."""
    root = tmp_path_factory.mktemp("cut_world")
    params = load_params(write_params(root))
    for step in ("world", "scenes", "land_cover", "chips", "proportions"):
        run_step(step, params, RecordingReporter())
    return root


@pytest.fixture
def project(tmp_path: Path, cut_world: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a test: a copy of `cut_world` with its own parameters, and an empty MLflow database."""
    shutil.copy(empty_database, tmp_path)
    shutil.copytree(cut_world / "data", tmp_path / "data")
    write_params(tmp_path)
    monkeypatch.chdir(tmp_path)
    # The training process imports the code as the test does, whatever the working directory.
    repository = Path(__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(repository), os.environ.get("PYTHONPATH", "")]))
    return tmp_path


@pytest.fixture
def params(project: Path) -> Params:
    return load_params(project / "params.yaml")


@pytest.fixture
def params_file(project: Path) -> ParamsFile:
    return ParamsFile(path=str(project / "params.yaml"))


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def materialise(instance: dg.DagsterInstance, params: Params, params_file: ParamsFile) -> Materialise:
    """Materialise some assets with their checks, in this process."""

    def run(
        *steps: str,
        partition_key: str | None = None,
        partition_range: tuple[str, str] | None = None,
        params: Params = params,
    ) -> dg.ExecuteInProcessResult:
        first_and_last = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")
        return dg.materialize(
            [*build_assets(params), *build_checks()],
            selection=dg.AssetSelection.assets(*steps),
            partition_key=partition_key,
            tags=dict(zip(first_and_last, partition_range or (), strict=False)),
            instance=instance,
            resources={"params_file": params_file, "pipes": dg.PipesSubprocessClient()},
            raise_on_error=False,
        )

    return run
