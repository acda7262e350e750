import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest
import rasterio
import yaml

from geokr_assets.resources import ParamsFile
from geokr_assets.sensors import scene_folder, store
from geokr_core.chain.params import Params
from geokr_core.chain.run import run, run_step
from geokr_core.chain.scene_by_scene import scene_ids
from geokr_core.chain.steps import Folders
from geokr_core.step.digests import data_version
from geokr_core.step.reporter import RecordingReporter

# --- scene_folder ---------------------------------------------------------------------------------------------------


def _watch(instance: dg.DagsterInstance, params_file: ParamsFile, cursor: str | None = None) -> dg.SensorResult:
    context = dg.build_sensor_context(instance=instance, cursor=cursor)
    result = scene_folder(context, params_file=params_file)
    if isinstance(result, dg.SkipReason):
        return dg.SensorResult(skip_reason=result, cursor=cursor)
    assert isinstance(result, dg.SensorResult)
    return result


def _added(result: dg.SensorResult) -> list[str]:
    return [key for request in result.dynamic_partitions_requests or [] for key in request.partition_keys]


def _said(result: dg.SensorResult) -> str:
    assert result.skip_reason is not None
    return str(result.skip_reason.skip_message)


def _age(folder: Path) -> None:
    """Files copied a while ago, before the inventory that the tests share was taken."""
    for path in folder.rglob("*"):
        os.utime(path, (time.time() - 86_400, time.time() - 86_400))


@pytest.fixture
def known(instance: dg.DagsterInstance, params: Params) -> dg.DagsterInstance:
    """An instance in which someone has materialised ``scenes``."""
    instance.add_dynamic_partitions("scenes", scene_ids(params))
    _age(params.scenes.folder)
    return instance


@pytest.fixture
def watched(known: dg.DagsterInstance, params_file: ParamsFile) -> str:
    """The cursor after the first tick."""
    return str(_watch(known, params_file).cursor)


def _drop_new_scenes(params: Params, number: int = 1) -> list[str]:
    old = sorted(params.scenes.folder.glob("*.tiff"))[0]
    new = [old.with_name(f"new{k}_{old.name}") for k in range(number)]
    for path in new:
        shutil.copy(old, path)
    _age(params.scenes.folder)
    return [path.stem for path in new]


def _take_inventory(
    instance: dg.DagsterInstance, materialise: Callable[..., dg.ExecuteInProcessResult], result: dg.SensorResult
) -> None:
    """Carry out what the sensor asked for, as the daemon does."""
    (request,) = result.run_requests or []
    assert request.job_name == "take_inventory"
    done = materialise("scenes")
    assert done.success
    instance.add_run_tags(done.run_id, {"dagster/run_key": str(request.run_key)})


def test_scenes_have_their_partitions_before_the_world_is_made(
    instance: dg.DagsterInstance, params: Params, params_file: ParamsFile
) -> None:
    found = scene_ids(params)
    shutil.rmtree(Folders(params)["scenes"])
    shutil.rmtree(params.scenes.folder)
    result = _watch(instance, params_file)
    assert _added(result) == found  # what the inventory finds later, to the letter
    assert not result.run_requests
    assert "Materialize all" in _said(result)
    instance.add_dynamic_partitions("scenes", found)
    assert _added(_watch(instance, params_file)) == []


def test_scenes_of_an_archive_have_their_partitions_before_its_inventory_by_their_names(
    instance: dg.DagsterInstance, params: Params, params_file: ParamsFile, tmp_path: Path
) -> None:
    found = scene_ids(params)
    shutil.move(params.scenes.folder, tmp_path / "archive")
    shutil.rmtree(Folders(params)["scenes"])
    given = ParamsFile(path=params_file.path, overrides=[f"scenes.folder={tmp_path / 'archive'}"])
    assert _added(_watch(instance, given)) == found
    shutil.rmtree(tmp_path / "archive")
    assert "no such scene folder" in _said(_watch(instance, given))


def test_new_scenes_are_inventoried_by_a_run_and_then_cut_many_a_run(
    known: dg.DagsterInstance,
    watched: str,
    params: Params,
    params_file: ParamsFile,
    materialise: Callable[..., dg.ExecuteInProcessResult],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GEOKR_SCENES_PER_RUN", "2")
    new = _drop_new_scenes(params, 3)
    asked = _watch(known, params_file, watched)
    # Until that run is there and done, nothing more is asked for.
    assert "being taken" in _said(_watch(known, params_file, asked.cursor))
    _take_inventory(known, materialise, asked)
    result = _watch(known, params_file, asked.cursor)
    both, single = result.run_requests or []
    assert {request.job_name for request in (both, single)} == {"chips_and_proportions"}
    assert both.tags["dagster/asset_partition_range_start"] == new[0]
    assert both.tags["dagster/asset_partition_range_end"] == new[1]
    assert single.partition_key == new[2]
    assert "No file came" in _said(_watch(known, params_file, result.cursor))


def test_a_tick_reads_no_file(
    known: dg.DagsterInstance, watched: str, params: Params, params_file: ParamsFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("the sensor hashed a file")

    monkeypatch.setattr("geokr_core.step.digests.file_md5", never)
    monkeypatch.setattr("geokr_core.chain.run.run_step", never)
    assert "No file came" in _said(_watch(known, params_file, watched))
    _drop_new_scenes(params)
    assert _watch(known, params_file, watched).run_requests


def test_an_inventory_that_fails_is_not_asked_for_again_and_again(
    known: dg.DagsterInstance, watched: str, params: Params, params_file: ParamsFile
) -> None:
    @dg.job(name="take_inventory")
    def job() -> None: ...

    _drop_new_scenes(params)
    asked = _watch(known, params_file, watched)
    (request,) = asked.run_requests or []
    tags = {"dagster/run_key": str(request.run_key)}
    known.create_run_for_job(job, status=dg.DagsterRunStatus.FAILURE, tags=tags)
    result = _watch(known, params_file, asked.cursor)
    assert "failed; mend what it says" in _said(result)
    assert "No file came" in _said(_watch(known, params_file, result.cursor))


def test_a_file_that_is_still_being_copied_is_left_alone(
    known: dg.DagsterInstance, watched: str, params: Params, params_file: ParamsFile
) -> None:
    (new,) = _drop_new_scenes(params)
    (params.scenes.folder / f"{new}.tiff").touch()
    result = _watch(known, params_file, watched)
    assert "was written to" in _said(result)
    assert result.cursor == watched


def test_a_time_ahead_of_the_clock_blocks_nothing(
    known: dg.DagsterInstance, watched: str, params: Params, params_file: ParamsFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    (new,) = _drop_new_scenes(params)
    path = params.scenes.folder / f"{new}.tiff"
    os.utime(path, (time.time() + 3600, time.time() + 3600))
    assert "was written to" in _said(_watch(known, params_file, watched)), "it came this moment"
    monkeypatch.setattr("geokr_assets.sensors.SETTLING_S", 0.0)
    assert _watch(known, params_file, watched).run_requests


def test_a_scene_behind_a_linked_folder_is_noticed(
    known: dg.DagsterInstance, params: Params, params_file: ParamsFile, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    (params.scenes.folder / "archive").symlink_to(disk)
    cursor = str(_watch(known, params_file).cursor)
    shutil.copy(sorted(params.scenes.folder.glob("*.tiff"))[0], disk / "new.tiff")
    _age(disk)
    assert _watch(known, params_file, cursor).run_requests


def test_an_unusable_file_gets_no_partition_and_that_of_a_vanished_scene_is_retired(
    known: dg.DagsterInstance,
    watched: str,
    params: Params,
    params_file: ParamsFile,
    materialise: Callable[..., dg.ExecuteInProcessResult],
) -> None:
    (params.scenes.folder / "broken.tiff").write_bytes(b"no raster")
    gone = scene_ids(params)[0]
    (params.scenes.folder / f"{gone}.tiff").unlink()
    _age(params.scenes.folder)
    asked = _watch(known, params_file, watched)
    _take_inventory(known, materialise, asked)
    result = _watch(known, params_file, asked.cursor)
    assert "no new usable scene" in _said(result)
    (retired,) = result.dynamic_partitions_requests or []
    assert isinstance(retired, dg.DeleteDynamicPartitionsRequest)
    assert retired.partition_keys == [gone]
    assert "broken" not in known.get_dynamic_partitions("scenes")


def test_scenes_that_the_command_line_cut_get_partitions_but_no_runs(
    instance: dg.DagsterInstance, params: Params, params_file: ParamsFile
) -> None:
    _age(params.scenes.folder)
    run_step("scenes", params, RecordingReporter())
    result = _watch(instance, params_file)
    assert sorted(_added(result)) == scene_ids(params)
    assert not result.run_requests


def test_the_watch_waits_while_the_whole_chain_runs(
    known: dg.DagsterInstance, watched: str, params: Params, params_file: ParamsFile
) -> None:
    @dg.job(name="whole_chain")
    def job() -> None: ...

    _drop_new_scenes(params)
    known.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    result = _watch(known, params_file, watched)
    assert "under way" in _said(result)
    assert result.cursor == watched


# --- store ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def versioned(project: Path, params: Params) -> Path:
    """The project as ``dvc repro`` leaves it: a lock file that names what lies in the store."""
    for step in ("scenes", "land_cover", "chips", "proportions"):
        run_step(step, params, RecordingReporter())
    (project / ".dvc").mkdir()
    (project / "dvc.yaml").write_text("stages: {}", encoding="utf-8")
    _lock(params)
    return project


def _lock(params: Params) -> None:
    stages = {
        step: {
            "cmd": "geokr",
            "outs": [{"path": str(Folders(params)[step]), "md5": data_version(Folders(params)[step])}],
        }
        for step in ("scenes", "chips", "proportions")
    }
    Path("dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}), encoding="utf-8")


def _hear(instance: dg.DagsterInstance, params_file: ParamsFile, cursor: str | None = None) -> dg.SensorResult:
    result = store(dg.build_sensor_context(instance=instance, cursor=cursor), params_file=params_file)
    if isinstance(result, dg.SkipReason):
        return dg.SensorResult(skip_reason=result, cursor=cursor)
    assert isinstance(result, dg.SensorResult)
    # What the daemon does with a result.
    for request in result.dynamic_partitions_requests or []:
        instance.add_dynamic_partitions("scenes", request.partition_keys)
    for event in result.asset_events:
        instance.report_runless_asset_event(event)
    return result


def _events(result: dg.SensorResult) -> list[tuple[str, str | None]]:
    events = [event for event in result.asset_events if isinstance(event, dg.AssetMaterialization)]
    return [(event.asset_key.to_user_string(), event.partition) for event in events]


def test_dagster_hears_of_what_dvc_made(
    instance: dg.DagsterInstance, versioned: Path, params: Params, params_file: ParamsFile
) -> None:
    ids = scene_ids(params)
    result = _hear(instance, params_file)
    assert _events(result) == [
        ("world", None),
        ("scenes", None),
        ("land_cover", None),
        *(("chips", scene_id) for scene_id in ids),
        *(("proportions", scene_id) for scene_id in ids),
    ]
    assert sorted(instance.get_dynamic_partitions("scenes")) == ids
    event = instance.get_latest_materialization_event(dg.AssetKey("scenes"))
    assert event is not None
    assert event.asset_materialization is not None
    assert (event.asset_materialization.tags or {})["dagster/data_version"] == data_version(Folders(params)["scenes"])
    assert event.asset_materialization.metadata["num_scenes"].value == 2
    # It has been said; it is not said again, neither from the cursor nor without it.
    assert "Nothing was made" in _said(_hear(instance, params_file, result.cursor))
    assert "knows already" in _said(_hear(instance, params_file))


def test_dagster_hears_what_the_checks_found_in_runs_outside_of_it(
    instance: dg.DagsterInstance,
    project: Path,
    params: Params,
    params_file: ParamsFile,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DVC_STAGE", "chips")  # as `dvc repro` sets it: it records the output itself
    (params.scenes.folder / "broken.tiff").write_bytes(b"no raster")
    cut_off = params.scenes.folder / f"{scene_ids(params)[0]}.tiff"
    cut_off.write_bytes(cut_off.read_bytes()[: cut_off.stat().st_size // 2])
    reporter = RecordingReporter()
    run(params, reporter, steps=["scenes", "land_cover", "chips", "proportions"])
    assert any("check quarantined_scenes of scenes" in warning and "broken" in warning for warning in reporter.warnings)
    (project / ".dvc").mkdir()
    (project / "dvc.yaml").write_text("stages: {}", encoding="utf-8")
    _lock(params)
    _hear(instance, params_file)
    _change_pixels(cut_off.with_name(f"{scene_ids(params)[1]}.tiff"))
    run(params, reporter, steps=["scenes", "chips"])
    _lock(params)
    assert len(_hear(instance, params_file).asset_events) > 2, "what was found again is reported again"
    keys = [
        dg.AssetCheckKey(dg.AssetKey(step), name)
        for step, name in [
            ("scenes", "quarantined_scenes"),
            ("chips", "scene_is_usable"),
            ("chips", "chips_show_their_ground"),
            ("proportions", "fractions_sum_to_one"),
        ]
    ]
    found = instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
    passed = {key.name: found[key].status.value for key in keys}
    assert passed == {
        "quarantined_scenes": "FAILED",
        "scene_is_usable": "FAILED",
        "chips_show_their_ground": "SUCCEEDED",
        "fractions_sum_to_one": "SUCCEEDED",
    }
    evaluation = found[keys[1]].event.dagster_event.asset_check_evaluation_data  # type: ignore[union-attr]
    assert cut_off.stem in str(evaluation.description)
    assert evaluation.severity == dg.AssetCheckSeverity.WARN


def _change_pixels(path: Path) -> None:
    with rasterio.open(path, "r+") as scene:
        scene.write(scene.read() + 1)


def test_only_the_scene_that_changed_is_news(
    instance: dg.DagsterInstance, versioned: Path, params: Params, params_file: ParamsFile
) -> None:
    cursor = _hear(instance, params_file).cursor
    scene_id = scene_ids(params)[0]
    _change_pixels(params.scenes.folder / f"{scene_id}.tiff")
    for step in ("scenes", "chips"):
        run_step(step, params, RecordingReporter())
    _lock(params)
    assert _events(_hear(instance, params_file, cursor)) == [("scenes", None), ("chips", scene_id)]


def test_data_other_than_recorded_are_no_news(
    instance: dg.DagsterInstance, versioned: Path, params: Params, params_file: ParamsFile
) -> None:
    (Folders(params)["scenes"] / "inventory.json").write_text("{}", encoding="utf-8")
    result = _hear(instance, params_file)
    assert "scenes" not in {name for name, _ in _events(result)}
    # Once the data are there (`dvc checkout`), it is heard of although the lock is the same.
    state = json.loads(result.cursor or "{}")
    assert state["scenes"]
    run_step("scenes", params, RecordingReporter())
    assert _events(_hear(instance, params_file, result.cursor)) == [("scenes", None)]


def test_a_summary_of_another_version_is_not_shown(
    instance: dg.DagsterInstance, versioned: Path, params: Params, params_file: ParamsFile
) -> None:
    state = Folders(params).state("scenes") / "state.json"
    state.write_text(state.read_text(encoding="utf-8").replace(".dir", "x.dir"), encoding="utf-8")
    events = _hear(instance, params_file).asset_events
    event = next(one for one in events if one.asset_key == dg.AssetKey("scenes"))
    assert isinstance(event, dg.AssetMaterialization)
    assert "num_scenes" not in event.metadata
    assert "path" in event.metadata


def test_without_dvc_dagster_hears_of_what_the_command_line_made(
    instance: dg.DagsterInstance, project: Path, params: Params, params_file: ParamsFile
) -> None:
    assert not Path("dvc.lock").exists()
    result = _hear(instance, params_file)
    assert {step for step, _ in _events(result)} == {"world", "scenes", "land_cover", "chips", "proportions"}
    assert "Nothing was made" in _said(_hear(instance, params_file, result.cursor))
    shutil.rmtree(params.store / ".state")
    assert "No step has run yet" in _said(_hear(instance, params_file))
