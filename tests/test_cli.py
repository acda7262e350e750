"""The command line as a person meets it: quick help, clear errors, exit codes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from geokr_core.chain.steps import STEPS

ROOT = Path(__file__).resolve().parents[1]


def geokr(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "geokr_core.cli", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=120)


def test_help_loads_the_parser_of_arguments_and_nothing_else(tmp_path: Path) -> None:
    code = (
        "import sys; before = set(sys.modules); sys.argv = ['geokr', '--help']\n"
        "from geokr_core.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "loaded = {n.partition('.')[0] for n in set(sys.modules) - before} - set(sys.stdlib_module_names)\n"
        "extra = loaded - {'geokr_core', 'typer', 'click', 'annotated_doc', 'shellingham', 'typing_extensions'}\n"
        "sys.exit(f'imported {sorted(extra)}' if extra else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "run" in done.stdout


def test_help_names_every_command_with_a_whole_sentence(tmp_path: Path) -> None:
    page = geokr("--help", cwd=tmp_path).stdout
    listed = re.findall(r"^  ([a-z-]+) .*(?:\n {5,}.*)*[.]$", page, re.MULTILINE)
    assert {step.command for step in STEPS.values()} < set(listed)
    assert "...\n" not in page.partition("Options:")[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "params.yaml: no such parameter file"),
        (
            ["scenes", "--params", str(ROOT / "params.yaml")],
            "data/world/scenes: no such folder; point `scenes.folder` at your data",
        ),
        (
            ["chips", "--params", str(ROOT / "params.yaml"), "--set", "chips.sizepx=3"],
            "chips.sizepx: unknown key. Did you mean `size_px`?",
        ),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = geokr(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs to mount a small file system (root)")
def test_a_full_disk_is_one_message_and_loses_nothing(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(small)], check=False, capture_output=True
    ).returncode:
        pytest.skip("this machine does not allow to mount a tmpfs")
    try:
        (small / "earlier").write_text("kept")
        done = geokr("world", "--out", str(small / "world"), cwd=ROOT)
        assert done.returncode == 2, done.stderr
        assert "No space left on device" in done.stderr
        assert "Traceback" not in done.stderr
        assert [p.name for p in small.iterdir()] == ["earlier"]
    finally:
        subprocess.run(["umount", str(small)], check=True)
