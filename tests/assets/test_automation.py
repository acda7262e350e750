"""What follows by itself: nothing for the first time, the data set when scenes change, training behind a switch."""

from pathlib import Path

import dagster as dg
import pytest
import yaml

from geokr_assets.definitions import build_defs
from tests.assets.conftest import write_params

UPSTREAM = ("world", "scenes", "land_cover")


@pytest.fixture(scope="module")
def definitions(tmp_path_factory: pytest.TempPathFactory) -> dg.Definitions:
    return build_defs(params_file=str(write_params(tmp_path_factory.mktemp("project"))))


def _report(instance: dg.DagsterInstance, key: str, partition: str | None = None) -> None:
    instance.report_runless_asset_event(dg.AssetMaterialization(key, partition=partition))


def test_switches_and_who_turns_them(definitions: dg.Definitions) -> None:
    status = {sensor.name: sensor.default_status.value for sensor in definitions.sensors or ()}
    assert status["data_set_follows"] == "RUNNING"
    assert status["training_follows"] == "STOPPED"
    specs = {spec.key.to_user_string(): spec for spec in definitions.resolve_all_asset_specs()}
    following = {name for name, spec in specs.items() if spec.automation_condition is not None}
    assert following == {"levir_kr", "pretraining", "backbone", "evaluation", "report", "champion"}
    assert {name for name, spec in specs.items() if spec.freshness_policy is not None} == {
        "scenes",
        "evaluation",
        "champion",
    }


def test_nothing_is_made_for_the_first_time(definitions: dg.Definitions) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.evaluate_automation_conditions(defs=definitions, instance=instance)
    assert result.total_requested == 0


def test_the_data_set_follows_its_scenes_and_nothing_else_does_yet(definitions: dg.Definitions) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("scenes", ["a"])
        for key in UPSTREAM:
            _report(instance, key)
        for key in ("chips", "proportions"):
            _report(instance, key, "a")
        for key in ("levir_kr", "pretraining", "backbone", "evaluation", "report", "champion"):
            _report(instance, key)
        before = dg.evaluate_automation_conditions(defs=definitions, instance=instance)
        _report(instance, "proportions", "a")
        after = dg.evaluate_automation_conditions(defs=definitions, instance=instance, cursor=before.cursor)
    assert before.total_requested == 0
    assert after.get_num_requested(dg.AssetKey("levir_kr")) == 1


def test_a_dropped_scene_reaches_vectors_and_audit_without_a_click(tmp_path: Path) -> None:
    """Once all was made, a new scene's chips and proportions are enough; before, nothing is."""
    path = write_params(tmp_path)
    text = yaml.safe_load(path.read_text(encoding="utf-8"))
    path.write_text(
        yaml.safe_dump({**text, "embeddings": {}, "map_audit": {}, "land_cover_shares": {}}), encoding="utf-8"
    )
    definitions = build_defs(params_file=str(path))
    following = ("embeddings", "map_audit")
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("scenes", ["a"])
        for key in UPSTREAM:
            _report(instance, key)
        for key in ("chips", "proportions"):
            _report(instance, key, "a")
        rest = (
            "levir_kr",
            "pretraining",
            "backbone",
            *following,
            "land_cover_shares",
            "evaluation",
            "report",
            "champion",
        )
        for key in rest:
            _report(instance, key)
        before = dg.evaluate_automation_conditions(defs=definitions, instance=instance)
        instance.add_dynamic_partitions("scenes", ["b"])
        for key in ("chips", "proportions"):
            _report(instance, key, "b")
        after = dg.evaluate_automation_conditions(defs=definitions, instance=instance, cursor=before.cursor)
    assert before.total_requested == 0
    assert [after.get_num_requested(dg.AssetKey(key)) for key in following] == [1, 1]
    switch = next(sensor for sensor in definitions.sensors or () if sensor.name == "data_set_follows")
    assert switch.default_status.value == "RUNNING"
    assert {"levir_kr", *following} <= {
        key.to_user_string() for key in switch.asset_selection.resolve(definitions.resolve_asset_graph())
    }


def test_every_asset_leads_to_its_code_and_can_be_searched_by_its_command(definitions: dg.Definitions) -> None:
    specs = {spec.key.to_user_string(): spec for spec in definitions.resolve_all_asset_specs()}
    for name in ("world", "scenes", "chips", "levir_kr", "champion"):
        (place,) = specs[name].metadata["dagster/code_references"].code_references
        lines = Path(place.file_path).read_text().splitlines()
        assert f"def {name}(" in lines[place.line_number - 1] or name == "chips"
        assert specs[name].tags["command"]
