import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest
import yaml

from geokr_assets.jobs import build_whole_chain
from geokr_assets.partitions import PARTITIONED
from geokr_assets.resources import ParamsFile
from geokr_assets.sensors import store
from geokr_core.chain import checks
from geokr_core.chain.checks import Finding
from geokr_core.chain.params import Params, load_params
from geokr_core.chain.scene_by_scene import scene_ids
from geokr_core.chain.steps import Folders, steps_of
from geokr_core.step.digests import data_version

REPOSITORY = Path(__file__).parents[2]

Launch = Callable[[Params], dg.ExecuteInProcessResult]


@pytest.fixture
def launch(instance: dg.DagsterInstance, params_file: ParamsFile) -> Launch:
    def run(params: Params) -> dg.ExecuteInProcessResult:
        resources = {"params_file": params_file, "pipes": dg.PipesSubprocessClient()}
        return build_whole_chain(params).execute_in_process(
            instance=instance, resources=resources, raise_on_error=False
        )

    return run


def _made(result: dg.ExecuteInProcessResult) -> list[tuple[str, str | None]]:
    events = [event for event in result.all_events if event.event_type_value == "ASSET_MATERIALIZATION"]
    return [(event.materialization.asset_key.to_user_string(), event.materialization.partition) for event in events]


def test_a_blocking_check_that_fails_ends_the_chain(
    launch: Launch, instance: dg.DagsterInstance, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "fractions_sum_to_one", lambda *_: Finding(False, "a class is lost"))
    result = launch(params)
    assert not result.success
    made = _made(result)
    first, second = scene_ids(params)
    assert ("chips", second) in made
    assert made[-1] == ("proportions", first)
    failed = {event.step_key: event.step_failure_data for event in result.all_events if event.is_step_failure}
    assert set(failed) == {"run_proportions"}
    said = failed["run_proportions"].user_failure_data
    assert said is not None
    assert f"fractions_sum_to_one of proportions ({first}) failed: a class is lost" in str(said.description)
    key = dg.AssetCheckKey(dg.AssetKey("proportions"), "fractions_sum_to_one")
    assert instance.event_log_storage.get_latest_asset_check_execution_by_key([key])[key].status.value == "FAILED"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_one_click_makes_everything_and_all_three_tools_agree(
    tmp_path: Path, project: Path, launch: Launch, instance: dg.DagsterInstance, params_file: ParamsFile
) -> None:
    shutil.rmtree(project / "data")
    _put_under_version_control(project)
    params = load_params(Path("params.yaml"))
    result = launch(params)
    assert result.success

    ids = scene_ids(params)
    steps = [step.name for step in steps_of(params)]
    expected = [(step, scene_id) for step in steps for scene_id in (ids if step in PARTITIONED else [None])]
    assert sorted(_made(result), key=str) == sorted(expected, key=str)
    for step in steps:
        latest = instance.get_latest_materialization_event(dg.AssetKey(step))
        assert latest is not None
        assert latest.asset_materialization is not None
        if step not in PARTITIONED:
            tags = latest.asset_materialization.tags or {}
            assert tags["dagster/data_version"] == data_version(Folders(params)[step])

    assert _dvc("status").stdout.strip() == "Data and pipelines are up to date."
    # Dagster said it all itself: the sensor that watches the store has nothing to add.
    heard = store(dg.build_sensor_context(instance=instance), params_file=params_file)
    assert isinstance(heard, dg.SensorResult)
    assert not heard.asset_events

    again = launch(params)
    assert again.success
    champion = instance.get_latest_materialization_event(dg.AssetKey("champion"))
    assert champion is not None
    assert champion.asset_materialization is not None
    assert champion.asset_materialization.metadata["was up to date"].value is True


def _put_under_version_control(project: Path) -> None:
    """The working directory as a checkout: the repository's dvc.yaml, and parameters with relative folders."""
    text = (project / "params.yaml").read_text(encoding="utf-8").replace(f"{project}/", "")
    content = yaml.safe_load(text)
    content |= {
        "backbone": {},
        "report": {},
        "proportions": {},
        "embeddings": {},
        "map_audit": {},
        "land_cover_shares": {},
        "levir_kr": {
            **content["levir_kr"],
            "place_size_deg": 0.003,
            "validation_fraction": 0.3,
        },  # maps need a held-out place
    }  # dvc.yaml asks for every section
    (project / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    shutil.copy(REPOSITORY / "dvc.yaml", project / "dvc.yaml")
    (project / ".gitignore").write_text("/data/world\n/data/store\n/mlflow.db\n", encoding="utf-8")
    subprocess.run(["git", "init", "--quiet", str(project)], check=True)
    _dvc("init", "--quiet")
    # A generated world is recorded only where someone has begun to.
    Path("dvc.lock").write_text("schema: '2.0'\nstages: {}\n", encoding="utf-8")


def _dvc(*arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done
