"""A step whose output changes raises its `code_version`, so that outputs of the earlier code are made again.

``golden_outputs.json`` holds figures of every step's output on the tiny chain. After a change on purpose, raise the version
in the step's section and write the figures anew: ``GEOKR_WRITE_GOLDEN=1 pytest tests/chain/test_code_versions.py``.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from geokr_core.chain.params import load_params
from geokr_core.chain.steps import STEPS, Folders

GOLDEN = Path(__file__).with_name("golden_outputs.json")
RELATIVE = 0.02
"""Rasters made on another processor differ by less; a change of what is computed does not hide below it."""

LEARNT = ("pretraining", "backbone", "embeddings", "map_audit", "evaluation")
RELATIVE_OF_LEARNT = 0.25
"""Three steps of a network end elsewhere on another processor, and a few test images then fall to another class."""

NOT_ASKED = ("report", "champion", "land_cover_shares")
"""Two pages, and maps of shares, which need a held-out place: the tiny world has none."""

NO_FIGURES = ("seconds", "version", "digest", "md5", "hash", "sha256", "size")


def figures(folder: Path) -> dict[str, float]:
    """Numbers that tell what an output holds, by file and name."""
    found: dict[str, float] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            found |= {f"{name}: {key}": float(value) for key, value in _figures_of(path) if _is_finite(value)}
    return found


def _is_finite(value: Any) -> bool:
    return not pd.isna(value) and bool(np.isfinite(value))


def _figures_of(path: Path) -> Iterator[tuple[str, float]]:
    if path.suffix == ".npy":
        array = np.load(path)
        yield from (("values", array.size), ("mean", array.mean()), ("deviation", array.std()))
    elif path.suffix in (".parquet", ".csv"):
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
        yield "rows", len(table)
        yield "columns", len(table.columns)
        for column in table.select_dtypes("number"):
            if not any(word in column for word in NO_FIGURES):
                yield str(column), table[column].mean()
    elif path.suffix == ".safetensors":
        tensors = load_file(path)
        yield "values", sum(tensor.size for tensor in tensors.values())
        yield "mean size", float(np.mean([np.abs(tensor).mean() for tensor in tensors.values()]))
    elif path.suffix == ".json":
        yield from _leaves("", json.loads(path.read_text(encoding="utf-8")))


def _leaves(prefix: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        yield f"{prefix}#", len(value)
        for key, part in value.items():
            if not any(word in key for word in NO_FIGURES):
                yield from _leaves(f"{prefix}.{key}", part)
    elif isinstance(value, list):
        yield f"{prefix}#", len(value)
        for number, part in enumerate(value[:3]):
            yield from _leaves(f"{prefix}.{number}", part)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield prefix, value


def differing(before: Mapping[str, float], now: Mapping[str, float], relative: float = RELATIVE) -> list[str]:
    return [
        f"{name}: {before.get(name)} → {now.get(name)}"
        for name in sorted({*before, *now})
        if name not in before
        or name not in now
        or not np.isclose(before[name], now[name], rtol=relative, atol=relative * 0.1)
    ]


@pytest.mark.parametrize("step", [name for name in STEPS if name not in NOT_ASKED])
def test_an_output_that_changed_has_a_new_code_version(
    finished: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished)
    params = load_params("params.yaml", ["pretraining.steps=3"])
    now = figures(Folders(params)[step])
    version = getattr(params, step).code_version
    golden = json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.is_file() else {}
    known = golden.get(step)
    relative = RELATIVE_OF_LEARNT if step in LEARNT else RELATIVE
    changed = differing(known["figures"], now, relative) if known else []
    where = f"{type(getattr(params, step)).__module__}"
    if os.environ.get("GEOKR_WRITE_GOLDEN"):
        assert not (known and changed and known["code_version"] == version), (
            f"raise `code_version` in {where} first: {changed[:5]}"
        )
        golden[step] = {"code_version": version, "figures": now}
        GOLDEN.write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        return
    assert known, f"{step} has no golden figures; see the head of this file"
    assert known["code_version"] == version, f"{step}: write the figures of the new version; see the head of this file"
    assert not changed, (
        f"the output of {step} changed, its `code_version` in {where} did not: {changed[:5]}. If that is meant, raise it "
        "and write the figures anew (see the head of this file)."
    )


def test_the_comparison_sees_a_change() -> None:
    assert differing({"a": 1.0}, {"a": 1.001}) == []
    assert differing({"a": 1.0}, {"a": 1.1}) == ["a: 1.0 → 1.1"]
    assert differing({"a": 1.0}, {"b": 1.0}) == ["a: 1.0 → None", "b: None → 1.0"]
