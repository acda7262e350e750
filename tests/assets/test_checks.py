import math
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from geokr_assets import checks as asset_checks
from geokr_core.chain import checks, delivery_checks
from geokr_core.chain.check_list import CHECKS
from geokr_core.chain.checks import Finding
from geokr_core.chain.params import Params
from geokr_core.chain.steps import STEPS
from geokr_core.errors import MissingInputError
from geokr_core.levir_kr.dataset import write_manifest
from geokr_core.step.files import write_json
from geokr_core.testing import make_levir_kr

Materialise = Callable[..., dg.ExecuteInProcessResult]

# --- the core's functions, on good and on broken data ---------------------------------------------------------------


def _scene(project: Path) -> str:
    return sorted(path.stem for path in (project / "data/store/chips").glob("*.npy"))[0]


def _chips_finding(project: Path) -> Finding:
    store = project / "data/store"
    return checks.chips_show_their_ground(
        store / "chips", store / "scenes", project / "data/world/scenes", _scene(project), num_chips=4
    )


def test_chips_that_show_their_ground_pass(project: Path) -> None:
    finding = _chips_finding(project)
    assert finding.passed, finding.message
    assert finding.numbers["num_chips_read_again"] == 4


def test_chips_shifted_by_one_pixel_against_their_transform_fail(project: Path) -> None:
    path = project / "data/store/chips" / f"{_scene(project)}.npy"
    np.save(path, np.roll(np.load(path), 1, axis=2))
    finding = _chips_finding(project)
    assert not finding.passed
    assert len(finding.table) == 4


def test_chips_of_a_scene_that_is_no_longer_there_fail(project: Path) -> None:
    for path in (project / "data/world/scenes").glob(f"{_scene(project)}*"):
        path.unlink()
    finding = _chips_finding(project)
    assert not finding.passed
    assert "cannot be read again" in finding.message


def test_a_shard_longer_than_its_table_fails(project: Path) -> None:
    path = project / "data/store/chips" / f"{_scene(project)}.npy"
    np.save(path, np.load(path)[:-1])
    assert not _chips_finding(project).passed


def test_a_quarantined_scene_has_nothing_to_check_and_a_scene_never_cut_is_no_pass(tmp_path: Path) -> None:
    write_json(tmp_path / "a.quarantine.json", {"scene_id": "a", "reason": "no pixel holds data"})
    assert "no pixel holds data" in checks.chips_show_their_ground(tmp_path, tmp_path, tmp_path, "a").message
    assert checks.fractions_sum_to_one(tmp_path / "proportions", tmp_path, "a").passed
    with pytest.raises(MissingInputError, match="geokr chips"):
        checks.chips_show_their_ground(tmp_path, tmp_path, tmp_path, "b")
    with pytest.raises(MissingInputError, match="geokr proportions"):
        checks.fractions_sum_to_one(tmp_path, tmp_path, "b")


def _proportions(folder: Path, rows: list[tuple[float, float, float]]) -> Finding:
    pd.DataFrame(
        {
            "chip_id": [f"c{k}" for k in range(len(rows))],
            "known_fraction": [1.0 - row[2] for row in rows],
            "fraction_forest": [row[0] for row in rows],
            "fraction_water": [row[1] for row in rows],
        }
    ).to_parquet(folder / "a.parquet")
    return checks.fractions_sum_to_one(folder, folder, "a")


def test_fractions_that_sum_to_one_pass(tmp_path: Path) -> None:
    # The last chip has no known land cover, hence no fractions.
    assert _proportions(tmp_path, [(0.25, 0.75, 0.0), (1.0, 0.0, 0.4), (0.0, 0.0, 1.0)]).passed


@pytest.mark.parametrize(
    "row",
    [(0.25, 0.5, 0.0), (0.6, 0.6, 0.0), (-0.5, 1.5, 0.0), (math.nan, 1.0, 0.0), (0.0, 0.0, 0.2), (0.4, 0.1, 1.0)],
    ids=[
        "a class is lost",
        "counted twice",
        "outside 0-1",
        "NaN",
        "known ground without a class",
        "unknown ground with one",
    ],
)
def test_fractions_that_do_not_sum_to_one_fail(tmp_path: Path, row: tuple[float, float, float]) -> None:
    finding = _proportions(tmp_path, [(0.25, 0.75, 0.0), row])
    assert not finding.passed
    assert [entry["chip_id"] for entry in finding.table] == ["c1"]


def test_proportions_without_any_class_fail(tmp_path: Path) -> None:
    pd.DataFrame({"chip_id": ["c0"]}).to_parquet(tmp_path / "a.parquet")
    assert not checks.fractions_sum_to_one(tmp_path, tmp_path, "a").passed


def _pretraining(folder: Path, weight: float = 0.5, **evidence: object) -> Path:
    run = {
        "folder": "geokr-seed0",
        "teacher_shares_storage": False,
        "teacher_updates": 7,
        "teacher_max_difference": 0.1,
        **evidence,
    }
    write_json(folder / "runs.json", [run])
    (folder / "geokr-seed0").mkdir(exist_ok=True)
    save_file({"conv": np.array([1.0, weight], np.float32)}, folder / "geokr-seed0" / "backbone.safetensors")
    return folder


def test_finite_weights_pass(tmp_path: Path) -> None:
    assert checks.weights_are_finite(_pretraining(tmp_path)).numbers["num_values"] == 2


@pytest.mark.parametrize("weight", [math.nan, math.inf])
def test_weights_that_are_not_finite_fail(tmp_path: Path, weight: float) -> None:
    finding = checks.weights_are_finite(_pretraining(tmp_path, weight))
    assert not finding.passed
    assert finding.table[0]["tensor"] == "conv"


def test_a_run_without_weights_fails(tmp_path: Path) -> None:
    (_pretraining(tmp_path) / "geokr-seed0" / "backbone.safetensors").unlink()
    assert not checks.weights_are_finite(tmp_path).passed


def test_a_teacher_of_its_own_passes(tmp_path: Path) -> None:
    assert checks.teacher_is_apart(_pretraining(tmp_path)).passed


@pytest.mark.parametrize("evidence", [{"teacher_shares_storage": True}, {"teacher_updates": 0}])
def test_a_teacher_that_is_the_student_or_never_moved_fails(tmp_path: Path, evidence: dict[str, object]) -> None:
    assert not checks.teacher_is_apart(_pretraining(tmp_path, **evidence)).passed


def _inventory(folder: Path, num_usable: int, num_refused: int) -> Path:
    status = ["usable"] * num_usable + ["quarantined"] * num_refused
    pd.DataFrame(
        {
            "scene_id": [f"s{k}" for k in range(len(status))],
            "status": status,
            "reason": ["" if s == "usable" else "no CRS" for s in status],
        }
    ).to_parquet(folder / "inventory.parquet")
    return folder


def test_few_quarantined_scenes_pass_and_many_fail(tmp_path: Path) -> None:
    assert checks.quarantined_scenes(0.05, _inventory(tmp_path, 40, 1)).passed
    assert not checks.quarantined_scenes(0.0, tmp_path).passed, "a refused scene is named on the page of the scenes"
    finding = checks.quarantined_scenes(0.05, _inventory(tmp_path, 3, 1))
    assert "(s3)" in finding.message
    assert not finding.passed
    assert finding.table == [{"scene": "s3", "reason": "no CRS"}]


def test_scenes_quarantined_by_later_steps_count_too(tmp_path: Path) -> None:
    chips = tmp_path / "chips"
    write_json(chips / "s0.quarantine.json", {"scene_id": "s0", "reason": "cut off"})
    finding = checks.quarantined_scenes(0.05, _inventory(tmp_path, 4, 0), chips)
    assert not finding.passed
    assert finding.numbers["num_quarantined"] == 1


def test_varied_land_cover_passes_and_uniform_land_cover_fails(tmp_path: Path) -> None:
    data = make_levir_kr(tmp_path)
    assert checks.labels_vary(data.folder).passed
    table = pd.read_parquet(data.folder / "catalogue.parquet")
    fractions = [name for name in table.columns if name.startswith("fraction_")]
    table[fractions] = 0.0
    table[fractions[0]] = 1.0
    table.to_parquet(data.folder / "catalogue.parquet")
    write_manifest(data.folder, data.manifest)
    finding = checks.labels_vary(data.folder)
    assert not finding.passed
    assert finding.numbers["commonest_class_fraction"] == 1.0


@pytest.mark.parametrize(("delta", "passed"), [(None, True), (0.02, True), (0.0, True), (-0.01, False)])
def test_a_backbone_worse_than_the_champion_fails(tmp_path: Path, delta: float | None, passed: bool) -> None:
    write_json(tmp_path / "decision.json", {"promoted": passed, "delta": delta, "reason": "as measured"})
    assert checks.holds_against_champion(tmp_path).passed == passed


# --- as Dagster sees them -------------------------------------------------------------------------------------------


def test_every_check_of_the_list_is_a_function_of_the_core_and_every_step_has_one() -> None:
    for check in CHECKS:
        assert callable(getattr({"checks": checks, "delivery_checks": delivery_checks}[check.module], check.name))
    assert {check.step for check in CHECKS} == set(STEPS)


@pytest.mark.parametrize("passed", [True, False])
def test_a_finding_becomes_a_check_result(passed: bool) -> None:
    finding = Finding(passed, "as found", {"num_chips": 3}, [{"chip_id": "c0", "sum": 0.5}])
    for check in CHECKS:
        result = asset_checks.result_of(check, finding)
        assert (result.passed, result.description) == (passed, "as found")
        assert result.severity == (dg.AssetCheckSeverity.ERROR if check.blocking else dg.AssetCheckSeverity.WARN)
        assert result.metadata["num_chips"].value == 3
        assert isinstance(result.metadata["table"], dg.TableMetadataValue)


def _failing(message: str) -> Callable[..., Finding]:
    return lambda *_: Finding(False, message)


def test_a_blocking_check_that_fails_stops_what_follows(
    project: Path, materialise: Materialise, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = _scene(project)
    instance.add_dynamic_partitions("scenes", [scene])
    monkeypatch.setattr(checks, "chips_show_their_ground", _failing("shifted by a pixel"))
    result = materialise("chips", "proportions", partition_key=scene)
    assert not result.success
    made = [event.materialization.asset_key.to_user_string() for event in result.get_asset_materialization_events()]
    assert made == ["chips"]


def test_a_check_of_quality_that_fails_only_warns(
    materialise: Materialise, monkeypatch: pytest.MonkeyPatch, params: Params
) -> None:
    monkeypatch.setattr(checks, "quarantined_scenes", _failing("half of them are quarantined"))
    result = materialise("scenes")
    assert result.success
    (evaluation,) = result.get_asset_check_evaluations()
    assert (evaluation.passed, evaluation.severity) == (False, dg.AssetCheckSeverity.WARN)
