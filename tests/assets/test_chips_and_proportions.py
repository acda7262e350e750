"""Chips and proportions of many scenes in one run: each is reported by itself, and one that fails keeps none from being made."""

import base64
import shutil
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest

from geokr_core.chain import checks
from geokr_core.chain.checks import Finding
from geokr_core.chain.freshness import is_current
from geokr_core.chain.params import Params, load_params
from geokr_core.chain.scene_by_scene import scene_version
from geokr_core.chain.steps import STEPS
from geokr_core.chips import cut as cutting
from geokr_core.chips.cut import cut_scene
from geokr_core.errors import LandCoverError

Materialise = Callable[..., dg.ExecuteInProcessResult]


@pytest.fixture
def four_scenes(project: Path, params: Params, materialise: Materialise, instance: dg.DagsterInstance) -> list[str]:
    """Four usable scenes as partitions, none of them cut."""
    for path in sorted(params.scenes.folder.glob("*.tiff")):
        shutil.copy(path, path.with_name(f"again_{path.name}"))
    for step in ("chips", "proportions"):
        shutil.rmtree(project / "data" / "store" / step)
    assert materialise("scenes").success
    return list(instance.get_dynamic_partitions("scenes"))


def _materialised(result: dg.ExecuteInProcessResult) -> list[tuple[str, str | None]]:
    events = [event.materialization for event in result.get_asset_materialization_events()]
    return [(event.asset_key.to_user_string(), event.partition) for event in events]


def _message(result: dg.ExecuteInProcessResult) -> str:
    (failure,) = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    assert failure.user_failure_data is not None
    return str(failure.user_failure_data.description)


def test_a_run_over_a_range_tells_each_scene_with_its_own_metadata_and_checks(
    materialise: Materialise, four_scenes: list[str], params: Params, instance: dg.DagsterInstance
) -> None:
    result = materialise("chips", "proportions", partition_range=(four_scenes[0], four_scenes[2]))
    assert result.success
    wanted = [(step, scene) for scene in four_scenes[:3] for step in ("chips", "proportions")]
    assert _materialised(result) == wanted
    versions = [
        event.materialization.tags["dagster/data_version"] for event in result.get_asset_materialization_events()
    ]
    assert versions == [scene_version(step, scene, params) for step, scene in wanted]
    evaluations = result.get_asset_check_evaluations()
    judged = [(check.check_name, check.partition) for check in evaluations if check.partition]
    summed_up = {check.check_name: check.description for check in evaluations if not check.partition}
    names = ("chips_show_their_ground", "scene_is_usable", "fractions_sum_to_one", "scene_is_usable")
    assert summed_up == dict.fromkeys(names, "3 of 3 scene(s) pass.")
    assert judged == [(name, scene) for scene in four_scenes[:3] for name in names]
    assert instance.get_materialized_partitions(dg.AssetKey("chips")) == set(four_scenes[:3])
    # The last scene is still to do, so the step as a whole is not.
    assert not is_current(params, STEPS["chips"])
    assert materialise("chips", "proportions", partition_key=four_scenes[3]).success
    assert is_current(params, STEPS["proportions"])


def test_a_scene_that_fails_keeps_no_other_from_being_made(
    materialise: Materialise, four_scenes: list[str], params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, bad = cut_scene, four_scenes[1]

    def cut(config, source, scenes, scene, out, **options):  # type: ignore[no-untyped-def]
        if scene.scene_id == bad:
            raise LandCoverError("the tile cannot be read; fetch it again")
        return whole(config, source, scenes, scene, out)

    monkeypatch.setattr(cutting, "cut_scene", cut)
    result = materialise("chips", "proportions", partition_range=(four_scenes[0], four_scenes[3]))
    assert not result.success
    assert "1 of 4 scene(s)" in _message(result)
    assert f"{bad}: the tile cannot be read; fetch it again" in _message(result)
    assert {scene for _, scene in _materialised(result)} == set(four_scenes) - {bad}


def test_a_blocking_check_that_fails_stops_its_own_scene_only(
    materialise: Materialise, four_scenes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = four_scenes[0]
    monkeypatch.setattr(
        checks, "chips_show_their_ground", lambda *arguments: Finding(arguments[-1] != bad, "shifted by a pixel")
    )
    result = materialise("chips", "proportions", partition_range=(four_scenes[0], four_scenes[1]))
    assert not result.success
    assert "chips_show_their_ground of chips: shifted by a pixel" in _message(result)
    assert _materialised(result) == [("chips", bad), ("chips", four_scenes[1]), ("proportions", four_scenes[1])]
    failed = [(check.check_name, check.partition) for check in result.get_asset_check_evaluations() if not check.passed]
    assert failed == [("chips_show_their_ground", bad), ("chips_show_their_ground", None)]


def test_a_scene_that_is_quarantined_is_no_failure_but_a_warning_that_names_it(
    materialise: Materialise, four_scenes: list[str], params: Params
) -> None:
    cut_off = sorted(params.scenes.folder.glob("*.tiff"))[0]
    cut_off.write_bytes(cut_off.read_bytes()[: cut_off.stat().st_size // 2])
    result = materialise("chips", "proportions", partition_range=(four_scenes[0], four_scenes[3]))
    assert result.success
    (aside,) = [
        event.materialization
        for event in result.get_asset_materialization_events()
        if event.materialization.asset_key == dg.AssetKey("chips") and "quarantined" in event.materialization.metadata
    ]
    assert aside.partition == cut_off.stem
    warned = [check for check in result.get_asset_check_evaluations() if not check.passed]
    assert [(check.asset_key.to_user_string(), check.check_name, check.partition) for check in warned] == [
        ("chips", "scene_is_usable", cut_off.stem),
        ("proportions", "scene_is_usable", cut_off.stem),
        ("chips", "scene_is_usable", None),
        ("proportions", "scene_is_usable", None),
    ]
    assert all(check.severity == dg.AssetCheckSeverity.WARN for check in warned)
    assert all(cut_off.stem in str(check.description) for check in warned)
    assert warned[2].metadata["table"].records[0].data["scene"] == cut_off.stem


def test_a_scene_that_is_gone_is_an_outcome_and_no_failure(
    materialise: Materialise, four_scenes: list[str], params: Params, instance: dg.DagsterInstance
) -> None:
    vanished = four_scenes[1]
    (params.scenes.folder / f"{vanished}.tiff").unlink()
    assert materialise("scenes").success
    result = materialise("chips", "proportions", partition_range=(four_scenes[0], four_scenes[3]))
    assert result.success, "a backfill of all partitions would fail for good"
    (gone, _) = [
        event.materialization
        for event in result.get_asset_materialization_events()
        if event.materialization.partition == vanished
    ]
    assert vanished in gone.metadata["gone"].value
    assert not (params.store / "chips" / f"{vanished}.npy").exists()
    assert is_current(params, STEPS["proportions"])


def test_the_alignment_check_is_made_of_every_scene_only_when_it_is_switched_on(
    materialise: Materialise, four_scenes: list[str], project: Path, params: Params
) -> None:
    def names(result: dg.ExecuteInProcessResult) -> set[str]:
        return {check.check_name for check in result.get_asset_check_evaluations()}

    first = (four_scenes[0], four_scenes[1])
    assert names(materialise("chips", "proportions", partition_range=first)) == {
        "chips_show_their_ground",
        "fractions_sum_to_one",
        "scene_is_usable",
    }
    path = project / "params.yaml"
    path.write_text(path.read_text() + "\nalignment: {check: true, max_pixels: 20000}\n")
    on = load_params(path)
    # It is no part of the labels: nothing is counted again.
    before = {path: path.stat().st_mtime_ns for path in (project / "data/store/proportions").iterdir()}
    result = materialise("chips", "proportions", partition_range=first, params=on)
    assert result.success
    assert {path: path.stat().st_mtime_ns for path in (project / "data/store/proportions").iterdir()} == before
    found = [
        c for c in result.get_asset_check_evaluations() if c.check_name == "land_cover_lies_on_image" and c.partition
    ]
    assert [check.partition for check in found] == list(first)
    assert {check.severity for check in found} == {dg.AssetCheckSeverity.WARN}
    assert "data:image/png;base64," in found[0].metadata["picture"].value
    assert found[0].metadata["verdict"].value in {"aligned", "unclear", "shifted"}


def test_scenes_and_the_data_set_list_what_was_quarantined(
    materialise: Materialise, four_scenes: list[str], params: Params
) -> None:
    (params.scenes.folder / "broken.tiff").write_bytes(b"no raster")
    cut_off = params.scenes.folder / f"{four_scenes[1]}.tiff"
    cut_off.write_bytes(cut_off.read_bytes()[: cut_off.stat().st_size // 2])
    (scenes,) = materialise("scenes").get_asset_materialization_events()
    assert "| broken | scenes |" in scenes.materialization.metadata["quarantine"].value
    assert materialise("chips", "proportions", partition_range=(four_scenes[0], four_scenes[3])).success
    (data_set,) = materialise("levir_kr").get_asset_materialization_events()
    shown = data_set.materialization.metadata
    for line in ("| broken | scenes |", f"| {four_scenes[1]} | chips |"):
        assert line in shown["quarantine"].value
    for name in ("preview", "footprints", "class histogram"):
        assert shown[name].value.startswith("![preview](data:image/png;base64,")


def test_a_scene_is_shown_with_the_land_cover_of_its_ground(materialise: Materialise, four_scenes: list[str]) -> None:
    result = materialise("chips", "proportions", partition_key=four_scenes[0])
    (shown,) = [
        event.materialization.metadata
        for event in result.get_asset_materialization_events()
        if event.materialization.asset_key == dg.AssetKey("proportions")
    ]
    picture = base64.b64decode(shown["scene and land cover"].value.partition("base64,")[2].rstrip(")"))
    assert picture[:4] == b"\x89PNG"
    assert len(picture) <= 200_000
