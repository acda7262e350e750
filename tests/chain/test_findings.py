"""What the checks found is kept beside the outcome of a step, and belongs to one data version."""

from pathlib import Path

import pytest

from geokr_core.chain import findings
from geokr_core.chain.check_list import Check
from geokr_core.chain.checks import Finding
from geokr_core.chain.params import load_params
from geokr_core.step.reporter import RecordingReporter

PARAMS = """
store: {store}
scenes:
  folder: {store}/raw
  collections: [{{name: gaofen, files: "*.tiff", bands: [blue, green, red, nir], land_cover: globe}}]
land_cover:
  folder: {store}/raw_land_cover
  products: [{{name: globe, files: "*.tif", legend: globeland30, year: 2020}}]
"""


def _check(finding: Finding, seen: list[str], *, step: str, max_scenes: int | None = None) -> Check:
    class Given(Check):
        def judge(self, params: object, scene_id: str = "") -> Finding:
            seen.append(scene_id)
            return Finding(False, f"{scene_id} is bad") if scene_id.endswith("7") else finding

    return Given("given", step, False, "", lambda *_: (), max_scenes=max_scenes)


def test_findings_are_kept_with_their_data_version_and_failures_are_warnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "params.yaml").write_text(PARAMS.format(store=tmp_path), encoding="utf-8")
    params, reporter = load_params(tmp_path / "params.yaml"), RecordingReporter()
    bad = Finding(False, "two are missing", {"num_missing": 2}, [{"name": "a"}, {"name": "b"}])
    check = _check(bad, [], step="land_cover")
    monkeypatch.setattr(findings, "of_step", lambda *_: [check])
    findings.record_findings("land_cover", params, "1.dir", reporter)
    assert reporter.warnings == ["check given of land_cover: two are missing"]
    (judged,) = findings.recorded_findings("land_cover", params, "1.dir")
    assert judged.finding == bad
    assert findings.recorded_findings("land_cover", params, "2.dir") == ()
    assert findings.recorded_findings("scenes", params, "1.dir") == ()


def test_of_many_scenes_some_are_looked_at_and_all_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "params.yaml").write_text(PARAMS.format(store=tmp_path), encoding="utf-8")
    params, seen = load_params(tmp_path / "params.yaml"), list[str]()
    check = _check(Finding(True, "good"), seen, step="chips", max_scenes=20)
    monkeypatch.setattr(findings, "of_step", lambda *_: [check])
    scenes_of = dict.fromkeys(f"s{k:03d}" for k in range(400))
    monkeypatch.setattr("geokr_core.scenes.inventory.usable_scenes", lambda _: scenes_of)
    *scenes, together = findings.record_findings("chips", params, "1.dir", RecordingReporter())
    assert seen == [f"s{20 * k:03d}" for k in range(20)]
    assert (scenes, together.finding.message) == ([], "20 of 20 scene(s) pass.")
    check = _check(Finding(True, "good"), seen, step="chips")
    *scenes, together = findings.record_findings("chips", params, "1.dir", RecordingReporter())
    assert [judged.scene_id for judged in scenes] == [f"s{10 * k + 7:03d}" for k in range(40)]
    assert together.finding.message == "360 of 400 scene(s) pass. s007 is bad"
    assert together.finding.numbers == {"num_scenes": 400, "num_failed": 40}
