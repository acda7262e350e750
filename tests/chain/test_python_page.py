"""The page that shows the chain from Python is true: its code runs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from geokr_core.chain.params import Params, load_params
from geokr_core.chain.status import status, verify

ROOT = Path(__file__).resolve().parents[2]


def test_the_whole_chain_is_about_fifteen_lines_and_runs(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{finished / 'mlflow.db'}")
    params = load_params("params.yaml", ["pretraining.steps=3"])
    assert [(one.step, one.state) for one in status(params) if one.state != "up to date"] == []
    assert verify(params, deep=True) == []
    blocks = (ROOT / "docs" / "python.md").read_text(encoding="utf-8").split("```python\n")[1:]
    first, second = (block.partition("```")[0] for block in blocks)
    assert len(first.strip().splitlines()) <= 15
    exec(compile(second, "docs/python.md", "exec"), {"params": params})  # noqa: S102  (our own page)


def test_the_steps_up_to_levir_kr_import_no_torch(
    tiny: Params, tmp_path: Path, empty_database: Path, first_steps: tuple[str, ...]
) -> None:
    """Nor does the MLflow run that Levir-KR opens."""
    shutil.copy(empty_database, tmp_path)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(json.loads(tiny.model_dump_json(exclude_unset=True))))
    code = (
        "import sys, geokr_core as geokr\n"
        f"geokr.run(geokr.load_params('params.yaml'), steps={first_steps})\n"
        "found = {'torch', 'timm', 'torchvision'} & set(sys.modules)\n"
        "sys.exit(f'imported {found}' if found else 0)"
    )
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
