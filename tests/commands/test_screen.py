"""What a run shows: a line a step, one bar for all that happens in it, and details in a log file only."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from geokr_core.commands import screen as screens
from geokr_core.commands.screen import Screen, duration


def console(*, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=100)


def shown(of: Console) -> str:
    assert isinstance(of.file, io.StringIO)
    return of.file.getvalue()


def test_a_step_is_a_line_and_its_details_go_to_the_log(tmp_path: Path) -> None:
    target = console()
    screen = Screen(tmp_path / "store" / "geokr.log", console=target)
    with screen.step("chips", 4, 11) as ended:
        screen.info("a detail")
        screen.warning("scene 3 is quarantined: " + "because " * 30)
        ended("done in 3 s")
    with screen.step("proportions", 5, 11) as ended:
        ended("up to date")
    lines = shown(target).splitlines()
    assert lines == [
        "warning: scene 3 is quarantined: " + "because " * 30,
        " 4/11 chips        done in 3 s",
        " 5/11 proportions  up to date",
    ]
    log = (tmp_path / "store" / "geokr.log").read_text()
    assert re.search(r"^\d{4}-\d\d-\d\d .* INFO +a detail$", log, re.MULTILINE)
    assert "WARNING scene 3 is quarantined" in log


def test_verbose_shows_the_details_too() -> None:
    target = console()
    Screen(None, verbose=True, console=target).info("a detail")
    assert shown(target) == "a detail\n"


def test_a_progress_within_a_unit_of_another_moves_the_same_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(None, console=console())
    fractions: list[float] = []
    with screen.step("pretraining", 1, 1):
        step = screen._step
        assert step is not None
        with screen.progress("runs", 2) as run_done:
            for _ in range(2):
                with screen.progress("pretraining geokr", 4) as advance:
                    advance(2)
                    fractions.append(step.fraction)
                run_done(1)
                fractions.append(step.fraction)
    assert fractions == [0.25, 0.5, 0.75, 1.0]


def test_time_left_is_told_from_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(screens.time, "monotonic", lambda: now[0])
    target = console()
    screen = Screen(None, console=target)
    with screen.step("evaluation", 9, 11) as ended, screen.progress("evaluation", 40) as advance:
        advance(1)
        now[0] = 190.0
        advance(9)
        ended("done in 360 s")
    assert shown(target).splitlines() == [" 9/11 evaluation   25%, 4:30 left", " 9/11 evaluation   done in 360 s"]


def test_a_terminal_shows_one_bar_that_goes_when_the_step_ends() -> None:
    target = console(terminal=True)
    screen = Screen(None, console=target)
    with screen.step("pretraining", 1, 1) as ended, screen.progress("runs", 2) as done:
        with screen.progress("pretraining geokr", 10) as advance:
            advance(10)
        done(1)
        ended("done in 1 s")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown(target))
    assert "1/1 pretraining" in text
    assert "%" in text
    assert text.rstrip().splitlines()[-1].strip() == "1/1 pretraining  done in 1 s"


def test_a_progress_outside_of_steps_is_a_step_by_itself() -> None:
    target = console()
    with Screen(None, console=target).progress("scenes", 2) as advance:
        advance(2)
    assert shown(target) == "1/1 scenes       done\n"


def test_a_step_that_fails_is_not_said_to_be_done() -> None:
    target = console()
    with pytest.raises(ValueError, match="broken"), Screen(None, console=target).step("chips", 1, 1):
        raise ValueError("broken")
    assert shown(target) == ""


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (125, "2:05"), (3725, "1:02:05")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
