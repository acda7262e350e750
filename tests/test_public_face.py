"""What ``import geokr_core`` gives: light, typed, documented, and the same for programs and type checkers."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import geokr_core as geokr
from geokr_core.step.reporter import LOG

ROOT = Path(__file__).resolve().parents[1]
STEP_FUNCTIONS = (
    "generate_world",
    "take_inventory",
    "index_products",
    "cut_chips",
    "count_proportions",
    "freeze",
    "pretrain",
    "build_bundle",
    "embed_scenes",
    "audit_map",
    "evaluate",
    "write_report",
    "promote",
)


def test_every_public_name_is_there_documented_and_declared_to_type_checkers() -> None:
    stub = ast.parse((ROOT / "geokr_core" / "__init__.pyi").read_text(encoding="utf-8"))
    declared = {
        alias.asname: f"{node.module}.{alias.name}"
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    names = [name for name in geokr.__all__ if name != "__version__"]
    assert set(names) == set(declared)
    for name in names:
        value = getattr(geokr, name)
        assert f"{value.__module__}.{value.__name__}" == declared[name]
        assert inspect.getdoc(value), name
        assert value is not None
        assert name in dir(geokr)


@pytest.mark.parametrize("name", [*STEP_FUNCTIONS, "run", "run_step"])
def test_whoever_names_no_reporter_is_heard_by_pythons_log(name: str) -> None:
    assert inspect.signature(getattr(geokr, name)).parameters["reporter"].default is LOG


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        geokr.nothing  # noqa: B018


@pytest.mark.parametrize(
    "code",
    [
        "import geokr_core",
        "import geokr_core.chain.steps",
        "from geokr_core import run",
        "import geokr_core; geokr_core.load_params",
    ],
)
def test_importing_costs_nothing(code: str) -> None:
    heavy = "{'torch', 'torchvision', 'timm', 'rasterio', 'mlflow', 'pandas', 'geopandas', 'dagster', 'sklearn'}"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"{code}\nimport sys; sys.exit(str(found) if (found := {heavy} & set(sys.modules)) else 0)",
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr


def test_a_function_and_a_package_of_nearly_the_same_name_live_together() -> None:
    import geokr_core.evaluation.config
    from geokr_core import evaluate

    assert callable(evaluate)
    assert geokr_core.evaluation.config.EvaluationConfig


@pytest.mark.slow
def test_types_hold_in_a_users_strict_project(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from pathlib import Path\n"
        "import geokr_core as geokr\n"
        "from geokr_core import open_levir_kr, pretrain\n\n"
        "def main() -> float:\n"
        "    params = geokr.load_params('params.yaml', ['chips.size_px=32'])\n"
        "    outcomes = geokr.run(params, steps=['scenes'])\n"
        "    todo = [step.step for step in geokr.status(params) if step.state != 'up to date']\n"
        "    data = open_levir_kr(params.store / 'levir_kr')\n"
        "    summary = pretrain(params.pretraining, data.folder, Path('out'), Path('checkpoints'))\n"
        "    reveal_type(outcomes)\n"
        "    return float(summary.numbers['num_runs']) + len(todo)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--ignore-missing-imports", "mine.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={"MYPYPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )
    errors = [line for line in done.stdout.splitlines() if line.startswith("mine.py") and "error" in line]
    assert not errors, done.stdout
    assert "list[geokr_core.chain.run.Outcome]" in done.stdout
