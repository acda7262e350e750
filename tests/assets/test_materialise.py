import json
import shutil
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest

from geokr_assets import metadata
from geokr_assets.materialise import handling_of, record_in_dvc, result_of
from geokr_core.chain import versioning
from geokr_core.chain.params import Params
from geokr_core.chain.run import Outcome
from geokr_core.chain.scene_by_scene import is_made, scene_ids, scene_version
from geokr_core.chain.steps import Folders
from geokr_core.errors import SceneRefusedError, VersioningError
from geokr_core.scenes import inventory
from geokr_core.step.digests import data_version
from geokr_core.step.summary import Summary
from geokr_core.step.tables import table_of

Materialise = Callable[..., dg.ExecuteInProcessResult]


def _failure(result: dg.ExecuteInProcessResult) -> str:
    (event,) = [
        event for event in result.all_events if event.is_step_failure and event.step_failure_data.user_failure_data
    ]
    return str(event.step_failure_data.user_failure_data.description)


def _made(result: dg.ExecuteInProcessResult, asset: str) -> list[dg.AssetMaterialization]:
    """Materialisations of an asset in a run, in order."""
    events = [event.materialization for event in result.get_asset_materialization_events()]
    return [event for event in events if event.asset_key.to_user_string() == asset]


def _scene_ids(params: Params) -> list[str]:
    return scene_ids(params)


def test_materialising_scenes_makes_a_partition_of_each(
    materialise: Materialise, instance: dg.DagsterInstance, params: Params
) -> None:
    result = materialise("scenes")
    assert result.success
    assert sorted(instance.get_dynamic_partitions("scenes")) == sorted(_scene_ids(params))
    (made,) = result.asset_materializations_for_node("scenes")
    assert made.tags["dagster/data_version"] == data_version(Folders(params)["scenes"])
    assert made.metadata["num_scenes"].value == 2
    assert made.metadata["path"].value == str(Folders(params)["scenes"])


def test_a_scene_shows_its_own_numbers_picture_and_data_version(
    materialise: Materialise, instance: dg.DagsterInstance, params: Params
) -> None:
    ids = _scene_ids(params)
    instance.add_dynamic_partitions("scenes", ids)
    made = []
    for scene_id in ids:
        result = materialise("chips", "proportions", partition_key=scene_id)
        assert result.success
        made.append(_made(result, "chips")[0])
    assert [m.partition for m in made] == ids
    assert "data:image/png;base64," in made[0].metadata["preview"].value
    assert made[0].metadata["num_chips"].value > 0
    versions = {m.tags["dagster/data_version"] for m in made}
    assert len(versions) == 2
    assert versions == {scene_version("chips", scene_id, params) for scene_id in ids}


def test_levir_kr_names_the_scenes_that_are_missing(materialise: Materialise, params: Params) -> None:
    missing = _scene_ids(params)[0]
    for path in Folders(params)["proportions"].glob(f"{missing}*"):
        path.unlink()
    result = materialise("levir_kr")
    assert not result.success
    assert f"1 of 2 scenes have no proportions: {missing}" in _failure(result)
    assert "the job `chips_and_proportions`" in _failure(result)


def test_levir_kr_does_not_miss_the_proportions_of_a_scene_that_was_quarantined(params: Params) -> None:
    scene_id = _scene_ids(params)[0]
    for path in Folders(params)["proportions"].glob(f"{scene_id}*"):
        path.unlink()
    assert not is_made("proportions", scene_id, params)
    record = {"scene_id": scene_id, "reason": "no pixel holds data"}
    (Folders(params)["chips"] / f"{scene_id}.quarantine.json").write_text(json.dumps(record), encoding="utf-8")
    assert is_made("proportions", scene_id, params)


def test_a_step_that_refuses_fails_the_run_with_its_own_words(
    materialise: Materialise, monkeypatch: pytest.MonkeyPatch, instance: dg.DagsterInstance, params: Params
) -> None:
    shutil.rmtree(Folders(params)["scenes"])

    def refuse(*_: object) -> Summary:
        raise SceneRefusedError("none of 2 scenes is usable")

    monkeypatch.setattr(inventory, "take_inventory", refuse)
    instance.add_dynamic_partitions("scenes", ["a"])
    result = materialise("scenes", "chips", partition_key="a")
    assert not result.success
    assert _failure(result) == "none of 2 scenes is usable"
    assert not result.get_asset_materialization_events()


def test_a_step_of_missing_raw_data_fails_the_run(materialise: Materialise, params: Params) -> None:
    shutil.rmtree(params.scenes.folder)
    result = materialise("scenes")
    assert not result.success
    assert "scenes.folder" in _failure(result)


def test_an_output_that_dvc_refuses_to_record_is_kept(
    materialise: Materialise, monkeypatch: pytest.MonkeyPatch, params: Params
) -> None:
    def refuse(*_: object) -> bool:
        raise VersioningError("DVC is busy; run `dvc commit --force scenes` later")

    monkeypatch.setattr(versioning, "commit", refuse)
    assert materialise("scenes").success


def test_recording_names_the_step_and_the_parameter_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = []
    monkeypatch.setattr(versioning, "commit", lambda step, file, reporter: calls.append((step, file)))
    record_in_dvc(dg.get_dagster_logger(), tmp_path / "params.yaml", "chips")
    assert calls == [("chips", tmp_path / "params.yaml")]


# --- what is shown --------------------------------------------------------------------------------------------------


def _outcome(summary: Summary, mlflow_url: str | None = None) -> Outcome:
    return Outcome("scenes", Path("store/scenes"), "0123.dir", summary, False, mlflow_url)


def test_a_summary_becomes_metadata() -> None:
    summary = Summary(
        numbers={"num_chips": 3, "kl": 0.5, "bad": float("nan"), "name": "geokr", "promoted": True},
        table=[{"class": "forest", "fraction": 1}, {"class": "water", "fraction": 0.5}],
        picture_png=b"png",
        warnings=["a: no CRS"],
    )
    shown = metadata.as_dagster(metadata.of_outcome(_outcome(summary, "http://127.0.0.1:5000/#/runs/1")))
    assert {name: shown[name].value for name in ("num_chips", "kl", "bad", "name", "promoted")} == {
        "num_chips": 3,
        "kl": 0.5,
        "bad": "nan",
        "name": "geokr",
        "promoted": True,
    }
    assert isinstance(shown["promoted"], dg.BoolMetadataValue)
    assert shown["dagster/row_count"].value == 3
    assert shown["data version"].value == "0123.dir"
    assert shown["path"].value == str(Path("store/scenes").resolve())
    assert isinstance(shown["MLflow run"], dg.UrlMetadataValue)
    assert shown["warnings"].value == "- a: no CRS"
    table = shown["table"]
    assert isinstance(table, dg.TableMetadataValue)
    assert [(column.name, column.type) for column in table.schema.columns] == [
        ("class", "string"),
        ("fraction", "float"),
    ]
    assert table.records[1].data == {"class": "water", "fraction": 0.5}


def test_a_picture_too_large_for_the_event_log_is_left_out() -> None:
    shown = metadata.of_outcome(_outcome(Summary({}, picture_png=bytes(metadata.MAX_PICTURE_BYTES + 1))))
    assert "base64" not in str(shown["preview"]["raw_value"])
    assert "store/scenes" in str(shown["preview"]["raw_value"])


def test_sentences_stand_above_tables_and_numbers(tmp_path: Path) -> None:
    summary = Summary(numbers={"seconds": 2.0, "version": "1", "reason": "no champion yet"}, table=[{"a": 1}])
    shown = list(metadata.of_outcome(Outcome("champion", tmp_path, "v", summary, was_current=False)))
    assert shown[:2] == ["reason", "table"]
    assert {"seconds", "version"} < set(shown[2:])


def test_curves_are_thinned_and_keep_both_ends() -> None:
    shown = metadata.curves([(step, {"loss": 1.0 / (step + 1)}) for step in range(1001)], max_rows=10)
    records = shown["curves"]["raw_value"]["records"]  # type: ignore[index, call-overload]
    assert len(records) <= 11
    assert (records[0]["step"], records[-1]["step"]) == (0, 1000)
    assert metadata.curves([]) == {}


def test_columns_are_shown_with_what_they_mean(tmp_path: Path) -> None:
    path = tmp_path / "tiles.parquet"
    pd.DataFrame({"product": ["nlcd"], "year": [2021], "mine": [1.0]}).to_parquet(path)
    shown = metadata.columns_of(path, table_of("land_cover", "tiles.parquet"))
    (schema,) = [entry.value for name, entry in shown.items() if name == "dagster/column_schema"]
    assert {column.name: column.description for column in schema.columns} == {
        "product": "name of the product",
        "year": "edition",
        "mine": None,
    }
    assert {column.name: column.type for column in schema.columns} == {
        "product": "string",
        "year": "int64",
        "mine": "double",
    }


@pytest.mark.parametrize(("step", "first"), [("evaluation", False), ("map_audit", False), ("levir_kr", True)])
def test_columns_do_not_stand_above_scores_and_galleries(step: str, first: bool, tmp_path: Path) -> None:
    pd.DataFrame({"a": [1, 2, 3]}).to_parquet(tmp_path / str(handling_of(step).table))
    made = result_of(Outcome(step, tmp_path, "v", Summary(numbers={}), was_current=False))
    assert ("dagster/column_schema" in made.metadata) is first
    assert made.metadata["dagster/row_count"].value == 3
