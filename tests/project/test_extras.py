"""``pip install geokr`` brings the way from scenes to a backbone; every door that needs more names the extra to install."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from installing import uv_command
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from geokr_core.step import extras
from geokr_core.testing import write_raster

PROJECT = Path(__file__).resolve().parents[2]
EXTRAS = ("dagster", "mlflow", "dvc", "evaluate")

_BLOCKED = """
import sys
for name in {blocked!r}:
    sys.modules[name] = None  # cannot be imported from here on
{code}
"""
_COMMANDS = """
import contextlib, io, json
from geokr_core.cli import main
found = []
for arguments in {commands!r}:
    sys.argv[1:] = arguments
    said, shown = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(shown):
        try:
            code = main()
        except SystemExit as end:
            code = end.code
    found.append([code or 0, said.getvalue(), shown.getvalue()])
print(json.dumps(found))
"""


def modules_of(*names: str) -> list[str]:
    return [module for module, extra in extras._EXTRA_OF.items() if extra in names]


def without(names: Sequence[str], code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter in which nothing of some extras can be imported."""
    script = _BLOCKED.format(blocked=modules_of(*names), code=code)
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )


def commands_without(names: Sequence[str], cwd: Path, *commands: str) -> list[tuple[int, str, str]]:
    """Exit code, standard error and output of commands, all run by one interpreter."""
    done = without(names, _COMMANDS.format(commands=[command.split() for command in commands]), cwd)
    assert done.returncode == 0, done.stderr
    return [tuple(outcome) for outcome in json.loads(done.stdout)]


def closure(extra: str = "") -> set[str]:
    """Every installed distribution that ``pip install geokr`` brings, or ``geokr[extra]``."""
    found: set[tuple[str, str]] = set()
    waiting = [("geokr", extra)]
    while waiting:
        name, its_extra = waiting.pop()
        if (name, its_extra) in found:
            continue
        found.add((name, its_extra))
        try:
            requirements = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # of another platform
            continue
        for requirement in map(Requirement, requirements):
            if requirement.marker is None or requirement.marker.evaluate({"extra": its_extra}):
                waiting += [(canonicalize_name(requirement.name), part) for part in ("", *requirement.extras)]
    return {name for name, _ in found}


def distributions_of(*modules: str) -> set[str]:
    known = metadata.packages_distributions()
    return {canonicalize_name(name) for module in modules for name in known[module]}


def test_core_brings_nothing_of_an_extra() -> None:
    brought = closure()
    assert {"torch", "rasterio", "typer"} <= brought
    assert not brought & distributions_of(*modules_of(*EXTRAS))
    assert not brought & {"dagster-webserver", "mlflow-skinny", "dvc-data", "hydra-core"}


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_brings_its_modules_and_none_of_the_others(extra: str) -> None:
    brought = closure(extra)
    assert distributions_of(*modules_of(extra)) <= brought
    others = {module for other in EXTRAS if other != extra for module in modules_of(other)}
    tools = {"dagster", "mlflow", "dvc", "lightly"} & others
    assert not brought & distributions_of(*tools)


def test_all_brings_every_extra_of_one_machine() -> None:
    assert distributions_of(*modules_of(*EXTRAS)) <= closure("all")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with scenes, land cover and a parameter file, worked on up to the backbone without any extra."""
    folder = tmp_path_factory.mktemp("bare")
    rng = np.random.default_rng(0)
    utm = Affine(16, 0, 500000, 0, -16, 3300000)
    for name in ("a", "b"):
        pixels = rng.integers(0, 3000, (3, 128, 128)).astype(np.uint16)
        write_raster(folder / "scenes" / f"{name}.tif", pixels, "EPSG:32648", utm)
    codes = rng.choice(np.array([10, 20, 60], np.uint8), (160, 160))
    write_raster(folder / "lc" / "t.tif", codes, "EPSG:32648", Affine(30, 0, 499990, 0, -30, 3300010))
    (folder / "tasks" / "t").mkdir(parents=True)
    (folder / "tasks" / "t" / "image.png").write_bytes(b"")
    collection = {"name": "c", "files": "*.tif", "bands": ["red", "green", "blue"], "land_cover": "gl"}
    training = {"architecture": "squeezenet1_1", "steps": 2, "batch_size": 4, "threads": 1, "device": "cpu"}
    content = {
        "store": "store",
        "scenes": {"folder": "scenes", "collections": [collection]},
        "land_cover": {
            "folder": "lc",
            "products": [{"name": "gl", "files": "*.tif", "legend": "globeland30", "year": 2020}],
        },
        "chips": {"size_px": 32, "stride_px": 32},
        "levir_kr": {"validation_fraction": 0.0},
        "pretraining": training,
        "evaluation": {"folder": "tasks", "tasks": [{"name": "t"}]},
        "champion": {"primary": [{"task": "t"}]},
    }
    (folder / "params.yaml").write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML
    steps = ["scenes", "land-cover", "chips", "proportions", "levir-kr", "pretrain", "backbone"]
    outcomes = commands_without(EXTRAS, folder, *steps)
    assert [code for code, *_ in outcomes] == [0] * len(steps), outcomes
    return folder


def test_from_scenes_to_a_backbone_nothing_more_is_needed_and_mlflow_is_missed_by_name(project: Path) -> None:
    from geokr_core.backbone.bundle import verify_bundle

    verify_bundle(project / "store" / "backbone")
    log = " ".join((project / "store" / "geokr.log").read_text(encoding="utf-8").split())
    assert (
        "pretraining: not recorded in MLflow, mlflow, psutil, sqlalchemy not installed; pip install 'geokr[mlflow]'"
        in log
    )
    assert not (project / "mlflow.db").exists()


REFUSED = {
    "evaluate": "evaluate",
    "promote": "mlflow",
    "download geokr-resnet18@champion --to there": "mlflow",
    "rollback geokr-resnet18 --because drift": "mlflow",
    "compare a@champion b@champion": "mlflow",
    "pretrain --set pretraining.variants=[geokr,moco]": "evaluate",
    "run --set store=elsewhere": "evaluate",
}


def test_a_command_that_lacks_its_extra_refuses_by_name_and_status_needs_none(project: Path) -> None:
    *refused, status = commands_without(EXTRAS, project, *REFUSED, "status --json")
    for (command, extra), (code, said, _) in zip(REFUSED.items(), refused, strict=True):
        assert code == 2, (command, said)
        assert f"pip install 'geokr[{extra}]'" in said, command
    assert not (project / "elsewhere" / "scenes").exists(), "the whole chain refuses before anything runs"
    assert status[0] == 0, status[1]
    assert {row["step"]: row["state"] for row in json.loads(status[2])}["backbone"] == "up to date"


_FROM_PYTHON = """
import importlib
from pathlib import Path
import geokr_core as geokr
from geokr_core import registry
from geokr_core.chain.versioning import why_not_recorded
from geokr_core.errors import MissingExtraError
from geokr_core.evaluation.config import EvaluationConfig, TaskConfig
from geokr_core.evaluation.opening import open_task
doors = [
    lambda: geokr.promote,
    lambda: registry.download,
    lambda: open_task(TaskConfig(name="t"), EvaluationConfig(folder=Path("tasks"), tasks=(TaskConfig(name="t"),))),
    lambda: importlib.import_module("geokr_assets.definitions"),
]
for door in doors:
    try:
        door()
    except MissingExtraError as error:
        print(error)
print(why_not_recorded())
"""


def test_python_refuses_by_name_and_without_dvc_outputs_are_not_recorded(tmp_path: Path) -> None:
    done = without(EXTRAS, _FROM_PYTHON, tmp_path)
    assert done.returncode == 0, done.stderr
    wanted = ("mlflow", "mlflow", "evaluate", "dagster", "dvc")
    for line, extra in zip(done.stdout.splitlines(), wanted, strict=True):
        assert f"pip install 'geokr[{extra}]'" in line


@pytest.mark.slow
def test_a_clean_environment_without_extras_trains_a_backbone(project: Path, tmp_path: Path) -> None:
    uv = uv_command()
    environment = {**os.environ, "UV_PROJECT_ENVIRONMENT": str(tmp_path / "venv"), "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("VIRTUAL_ENV", None)
    sync = [uv, "sync", "--frozen", "--no-dev", "--no-editable", "--quiet", "--python", sys.executable]
    subprocess.run(sync, cwd=PROJECT, env=environment, check=True, timeout=1500)
    python = tmp_path / "venv" / "bin" / "python"
    for module in ("dagster", "mlflow", "dvc", "sklearn", "lightly"):
        assert subprocess.run([python, "-c", f"import {module}"], capture_output=True, check=False).returncode == 1, (
            module
        )
    for command in ("scenes", "land-cover", "chips", "proportions", "levir-kr", "pretrain", "backbone"):
        done = subprocess.run(
            [tmp_path / "venv" / "bin" / "geokr", command, "--set", "store=clean"],
            cwd=project,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
    promoted = subprocess.run(
        [tmp_path / "venv" / "bin" / "geokr", "promote", "--set", "store=clean"],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert promoted.returncode == 2
    assert "pip install 'geokr[mlflow]'" in promoted.stderr
