"""The loop: parts of a batch, compilation, clipping, what is delivered and what is heard meanwhile."""

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from short_runs import inputs_at, short_config, short_run

from geokr_core.errors import ConfigError
from geokr_core.levir_kr.dataset import LevirKR
from geokr_core.pretraining.objectives.land_cover import LandCoverObjective
from geokr_core.pretraining.pretrain import pretrain
from geokr_core.pretraining.runs import runs_of
from geokr_core.pretraining.training import loop
from geokr_core.pretraining.training.loop import (
    gradient_norm,
    losses_of,
    reading,
    update,
)
from geokr_core.pretraining.training.state import begin
from geokr_core.step.files import read_json
from geokr_core.step.reporter import RecordingReporter
from geokr_core.testing import make_levir_kr


@pytest.mark.parametrize("method", ["geokr", "dense"])
def test_parts_of_a_batch_add_up_to_the_whole(method: str, tmp_path: Path) -> None:
    data = make_levir_kr(tmp_path / "store", num_chips=24, unknown_columns=3)
    found = []
    for parts in (1, 3):
        run = short_run(data, method, precision="fp32", accumulation_parts=parts)
        torch.manual_seed(0)
        state = begin(run)
        losses = loop.gradients(run, state, reading(run)(1), run.normalisation())
        found.append((losses, [p.grad for p in state.student.parameters()]))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-6)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_more_parts_than_chips_are_refused() -> None:
    with pytest.raises(ValueError, match="4 chip.* cannot be cut into 5 parts; choose at most 4"):
        short_config(batch_size=4, accumulation_parts=5)


def test_the_best_by_a_figure_that_is_not_measured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="variant simclr: `deliver: best` chooses by the KL on held-out chips"):
        short_config(variants=("geokr", "simclr"), deliver="best")
    none_held_out = make_levir_kr(tmp_path, num_chips=16, validation_fraction=0.0)
    with pytest.raises(
        ConfigError, match=r"`deliver: best` chooses .* holds none out \(`levir_kr.validation_fraction`\)"
    ):
        list(runs_of(short_config(deliver="best"), none_held_out, tmp_path / "ck"))


# Two are the student and the teacher; `auto` compiles on GPUs alone.
@pytest.mark.parametrize(("compile_", "wanted"), [("on", 2), ("off", 0), ("auto", 0)])
def test_only_who_asks_for_it_is_compiled(
    compile_: str, wanted: int, data: LevirKR, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda module: compiled.append(module) or module)
    run = short_run(data, compile=compile_)
    state = begin(run)
    assert torch.isfinite(losses_of(run, state, inputs_at(run), 1)).all()
    assert len(compiled) == wanted


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler on PATH")
def test_compiled_networks_learn_the_same_and_their_teacher_follows(data: LevirKR) -> None:
    curves: dict[str, torch.Tensor] = {}
    for compile_ in ("off", "on"):
        torch.manual_seed(0)
        run = short_run(data, compile=compile_, precision="fp32", architecture="squeezenet1_1")
        state, seen = begin(run), inputs_at(run)
        steps = []
        for step in range(1, 6):
            state.optimiser.zero_grad(set_to_none=True)
            losses = losses_of(run, state, seen, step)
            torch.autograd.backward(losses[0])
            update(run, state, losses.detach())
            steps.append(losses.detach())
        curves[compile_] = torch.stack(steps)

    torch.testing.assert_close(curves["on"], curves["off"], rtol=1e-3, atol=1e-5)
    teacher = curves["off"][:, state.terms.index("teacher_entropy")]
    assert float(teacher.max() / teacher.min()) > 1.005  # it moves by more than the tolerance


def test_without_a_teacher_the_entropy_is_called_the_students(data: LevirKR) -> None:
    names = {
        method: LandCoverObjective(short_run(data, method).recipe, torch.device("cpu")).terms
        for method in ("geokr", "joint")
    }
    assert "teacher_entropy" in names["geokr"]
    assert "student_entropy" not in names["geokr"]
    assert "student_entropy" in names["joint"]
    assert "teacher_entropy" not in names["joint"]


def test_gradients_are_clipped_to_the_norm_asked_for(data: LevirKR) -> None:
    run = short_run(data, precision="fp32", gradient_clip_norm=0.01)
    state = begin(run)
    loop.gradients(run, state, reading(run)(1), run.normalisation())
    before = float(gradient_norm(state, 0.01))
    assert before > 0.01
    assert float(gradient_norm(state, 0.0)) == pytest.approx(0.01, rel=1e-3)


def test_the_best_network_is_delivered_where_asked_for(data: LevirKR, tmp_path: Path) -> None:
    # A rate that rises until the network is worse than at its start: the last is not the best.
    settings = {"learning_rate": 0.03, "warmup_steps": 8, "steps": 8, "gradient_clip_norm": 1.0}
    results = {}
    for deliver in ("best", "last"):
        config = short_config(**settings, deliver=deliver)
        pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", RecordingReporter())
        (results[deliver],) = read_json(tmp_path / "out/runs.json")
    with (tmp_path / "out/history.csv").open() as stream:
        measured = {int(r["step"]): float(r["validation_kl"]) for r in csv.DictReader(stream) if r["validation_kl"]}
    best = min(measured, key=lambda step: measured[step])
    assert results["best"]["delivered_step"] == best
    assert results["best"]["validation_kl"] == pytest.approx(measured[best], rel=1e-6)
    assert results["last"]["delivered_step"] == 8


def test_early_signs_are_heard_and_shown(data: LevirKR, tmp_path: Path) -> None:
    reporter = RecordingReporter()
    config = short_config(steps=4, examples_every=2)
    pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", reporter)
    last = reporter.points[-1][1]
    assert {"label_entropy", "teacher_entropy", "gradient_norm", "mean_bias", "data_wait_fraction"} <= set(last)
    assert {f"bias/{name}" for name in data.classes} <= set(last)
    assert sum(last[f"bias/{name}"] for name in data.classes) == pytest.approx(0.0, abs=1e-5)
    assert sorted(reporter.pictures) == ["examples/geokr-seed0_step_000002.png", "examples/geokr-seed0_step_000004.png"]
    assert all(content.startswith(b"\x89PNG") for content in reporter.pictures.values())
    calibration = read_json(tmp_path / "out/geokr-seed0/calibration.json")
    assert [row["class"] for row in calibration] == list(data.classes)
    held_out = len(data.rows_of("validation"))
    assert all(sum(part["num_chips"] for part in row["bins"]) == held_out for row in calibration)
