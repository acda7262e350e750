"""The help of the command line: commands in groups, and of each what it reads, what it writes and an example."""

import pytest
import typer
from typer.testing import CliRunner

from geokr_core import __version__
from geokr_core.chain.steps import STEPS
from geokr_core.cli import app
from geokr_core.commands.options import ABOUT, GROUPS

RUNNER = CliRunner()
COMMANDS = typer.main.get_group(app).commands


def test_every_command_stands_in_a_group() -> None:
    assert {getattr(command, "rich_help_panel", None) for command in COMMANDS.values()} == set(GROUPS)


def test_help_shows_the_groups_in_order_and_every_command_once() -> None:
    page = RUNNER.invoke(app, ["--help"]).stdout
    places = [page.index(f"{group}:") for group in GROUPS]
    assert places == sorted(places)
    listed = [line.split()[0] for line in page.splitlines() if line[:2] == "  " and line[2:3].isalpha()]
    assert all(listed.count(name) == 1 for name in COMMANDS)


def test_the_steps_are_listed_in_the_order_of_the_chain() -> None:
    names = [name for name in COMMANDS if name in {step.command for step in STEPS.values()}]
    assert names == [step.command for step in STEPS.values()]


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.rich_help_panel != ABOUT])
def test_a_command_says_what_it_touches_and_gives_an_example(name: str) -> None:
    page = RUNNER.invoke(app, [name, "--help"]).stdout
    assert "  Reads:" in page or "  Writes:" in page
    assert f"  Example: geokr {name}" in page


@pytest.mark.parametrize("name", [step.command for step in STEPS.values()])
def test_the_example_of_a_step_is_accepted(name: str) -> None:
    (example,) = [line for line in RUNNER.invoke(app, [name, "--help"]).stdout.splitlines() if "Example:" in line]
    words = example.split("geokr ")[1].split()
    done = RUNNER.invoke(app, [*words, "--params", "/nowhere/params.yaml"])
    assert done.exit_code == 1  # the missing file is the first thing that is wrong
    assert "/nowhere/params.yaml" in str(done.exception)


@pytest.mark.parametrize("arguments", [["--version"], ["version"]])
def test_the_version(arguments: list[str]) -> None:
    assert RUNNER.invoke(app, arguments).stdout == f"{__version__}\n"


def test_defaults_are_shown() -> None:
    page = " ".join(RUNNER.invoke(app, ["rollback", "--help"]).stdout.split())
    assert "the one that was replaced" in page
    assert "$GEOKR_PARAMS, else params.yaml" in " ".join(RUNNER.invoke(app, ["run", "--help"]).stdout.split())
