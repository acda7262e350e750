"""Chips and proportions of many scenes in one run: each is told by itself, and one that fails keeps none from being made."""

import shutil
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest

from geokr_core import chain, checks, chips
from geokr_core.checks import Finding
from geokr_core.config import Params
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
    assert versions == [chain.scene_version(step, scene, params) for step, scene in wanted]
    judged = [(check.check_name, check.partition) for check in result.get_asset_check_evaluations()]
    assert judged == [
        (name, scene) for scene in four_scenes[:3] for name in ("chips_show_their_ground", "fractions_sum_to_one")
    ]
    assert instance.get_materialized_partitions(dg.AssetKey("chips")) == set(four_scenes[:3])
    # The last scene is still to do, so the step as a whole is not.
    assert not chain.is_current(params, chain.STEPS["chips"])
    assert materialise("chips", "proportions", partition_key=four_scenes[3]).success
    assert chain.is_current(params, chain.STEPS["proportions"])


def test_a_scene_that_fails_keeps_no_other_from_being_made(
    materialise: Materialise, four_scenes: list[str], params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, bad = chips.cut_scene, four_scenes[1]

    def cut(config, source, scenes, scene, out):  # type: ignore[no-untyped-def]
        if scene.scene_id == bad:
            raise LandCoverError("the tile cannot be read; fetch it again")
        return whole(config, source, scenes, scene, out)

    monkeypatch.setattr(chips, "cut_scene", cut)
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
    assert failed == [("chips_show_their_ground", bad)]


def test_a_scene_that_is_set_aside_is_no_failure(
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
