"""What one door wrote, the others show alike."""

import json
from pathlib import Path

from geokr_core.step.summary import Summary, read_summary, write_summary

SHOWN = Summary(
    {"num_scenes": 2, "accuracy": 0.5},
    [{"task": "fields", "mean": 0.5, "ci_low": 0.4}, {"task": "roads", "mean": 0.6, "ci_low": 0.5}],
    warnings=["one scene is quarantined"],
    texts={"scores": "good", "cards": "none"},
)


def test_columns_and_figures_come_back_in_their_order(tmp_path: Path) -> None:
    write_summary(tmp_path, SHOWN)
    read = read_summary(tmp_path)
    assert read == SHOWN
    assert [list(row) for row in read.table] == [["task", "mean", "ci_low"]] * 2
    assert list(read.numbers) == ["num_scenes", "accuracy"]
    assert list(read.texts) == ["scores", "cards"]


def test_a_summary_of_an_earlier_release_is_read(tmp_path: Path) -> None:
    write_summary(tmp_path, SHOWN)
    content = json.loads((tmp_path / "summary.json").read_text())
    del content["order"]
    (tmp_path / "summary.json").write_text(json.dumps(content))
    assert read_summary(tmp_path) == SHOWN
