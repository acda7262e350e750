"""Refused scenes: told at once where another is usable, by the error alone where none is."""

from geokr_core.scenes.refusals import Refusals
from geokr_core.step.reporter import RecordingReporter


def test_refused_scenes_are_told_once_and_only_where_one_is_usable() -> None:
    heard = RecordingReporter()
    refusals = Refusals(heard)
    refusals.refused("a", "torn")
    assert heard.warnings == []
    refusals.usable()
    refusals.usable()
    refusals.refused("b", "empty")
    assert heard.warnings == ["scene a quarantined: torn", "scene b quarantined: empty"]
    assert refusals.named() == "  a: torn\n  b: empty"


def test_an_error_names_the_first_ones_and_counts_the_rest() -> None:
    refusals = Refusals(RecordingReporter())
    for number in range(12):
        refusals.refused(f"s{number}", "torn")
    *lines, last = refusals.named().splitlines()
    assert len(lines) == 10
    assert last == "  … and 2 more; `geokr quarantine` lists all"
