"""Pretraining learns, resumes to the same bytes, stops where it must, and says the truth about its teacher."""

import csv
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from geokr_core.errors import BackboneError, TrainingError
from geokr_core.levir_kr.dataset import LevirKR, open_levir_kr
from geokr_core.networks.architectures import spec_of
from geokr_core.networks.batch_order import Windows, batch_rows
from geokr_core.networks.distributed import World
from geokr_core.networks.network import build
from geokr_core.networks.weights import load_weights, save_weights
from geokr_core.pretraining.config import PretrainingConfig
from geokr_core.pretraining.labels import RunLabels, labels_of_data
from geokr_core.pretraining.network import Network
from geokr_core.pretraining.objective import Inputs
from geokr_core.pretraining.objectives.land_cover import consistency_weight
from geokr_core.pretraining.pretrain import forget_finished, pretrain
from geokr_core.pretraining.recipes import PAPER
from geokr_core.pretraining.runs import runs_of, runtime_of
from geokr_core.pretraining.training import loop, resuming, validation
from geokr_core.pretraining.training.batches import Batch, prefetched
from geokr_core.pretraining.training.checkpoint import load_checkpoint, save_checkpoint
from geokr_core.pretraining.training.inputs import inputs_of
from geokr_core.pretraining.training.loop import judged, learning_rate, reading
from geokr_core.pretraining.training.resuming import save
from geokr_core.pretraining.training.state import Run, State, begin, make_optimiser
from geokr_core.step.digests import data_version
from geokr_core.step.files import read_json
from geokr_core.step.reporter import RecordingReporter
from geokr_core.testing import make_levir_kr


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> LevirKR:
    return make_levir_kr(tmp_path_factory.mktemp("store"), num_chips=96, chip_size_px=32)


def _config(**changes: Any) -> PretrainingConfig:
    small = {"architecture": "squeezenet1_1", "steps": 12, "batch_size": 8, "threads": 1, "log_every": 4}
    return PretrainingConfig(**({**small, "checkpoint_every": 3, "device": "cpu"} | changes))


class Killed(Exception):
    """Stands for a process that dies."""


class Killer(RecordingReporter):
    """Dies at one step of a run."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        super().metrics(values, step)
        if step >= self.step:
            raise Killed


# --- learning -------------------------------------------------------------------------------------------------------


def test_kl_falls_well_below_the_constant_and_true_labels_beat_shuffled(tmp_path: Path) -> None:
    store = make_levir_kr(tmp_path / "store", num_chips=256, chip_size_px=32)
    config = _config(
        steps=120,
        batch_size=32,
        learning_rate=2e-3,
        variants=("geokr", "shuffled"),
        log_every=60,
        checkpoint_every=1000,
    )
    pretrain(config, store.folder, tmp_path / "out", tmp_path / "ck", RecordingReporter())
    true, shuffled = read_json(tmp_path / "out/runs.json")
    assert true["validation_kl"] < 0.8 * true["validation_constant_kl"]
    assert true["train_kl"] < 0.85 * true["constant_kl"]
    assert true["validation_kl"] < 0.8 * shuffled["validation_kl"]
    assert shuffled["validation_kl"] > 0.9 * true["validation_constant_kl"]
    assert true["constant_kl"] == pytest.approx(shuffled["constant_kl"])


def _labelled(data: LevirKR, method: Any, seed: int = 0) -> RunLabels:
    return labels_of_data(data, data.rows_of("train"), _config().recipe(method), seed)


def test_shuffled_hands_training_labels_round_and_leaves_validation_alone(data: LevirKR) -> None:
    train, validation = data.rows_of("train"), data.rows_of("validation")
    labels = _labelled(data, "shuffled").proportions
    assert not np.array_equal(labels[train], data.proportions[train])
    assert np.array_equal(np.sort(labels[train], axis=0), np.sort(data.proportions[train], axis=0))
    np.testing.assert_allclose(labels.sum(axis=1), 1.0, rtol=1e-5)
    assert np.array_equal(labels[validation], data.proportions[validation])
    other = _labelled(data, "shuffled", seed=1).proportions
    assert not np.array_equal(labels[train], other[train])
    assert np.array_equal(_labelled(data, "geokr").proportions, data.proportions)


def test_a_label_takes_its_weight_along_when_it_is_shuffled(data: LevirKR, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue = data.catalogue.assign(num_cells=np.arange(len(data.catalogue)) + 1.0)
    marked = replace(data, catalogue=catalogue)
    train = data.rows_of("train")
    plain, shuffled = (_labelled(marked, method) for method in ("geokr", "shuffled"))
    assert plain.weights is not None
    assert shuffled.weights is not None
    assert np.array_equal(shuffled.proportions, plain.proportions[shuffled.rows])
    assert np.array_equal(shuffled.weights, plain.weights[shuffled.rows])
    assert np.array_equal(shuffled.num_cells, plain.num_cells[shuffled.rows])
    assert len(set(plain.weights[train])) > 10


COLUMNS = (
    "variant",
    "seed",
    "step",
    "loss",
    "supervised_loss",
    "consistency_loss",
    "train_kl",
    "validation_kl",
    "learning_rate",
    "teacher_momentum",
    "gradient_norm",
    "label_entropy",
    "teacher_entropy",
    "student_entropy",
    "mean_bias",
    "dense_loss",
    "identity_loss",
    "aggregation_loss",
    "contrast_loss",
    "anchor_loss",
)
# --- what is written ------------------------------------------------------------------------------------------------


def test_output_holds_what_it_promises(data: LevirKR, tmp_path: Path) -> None:
    config = _config(seeds=(0, 3), variants=("geokr", "shuffled"), steps=4, log_every=2)
    reporter = RecordingReporter()
    summary = pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", reporter)
    out = tmp_path / "out"
    names = ["geokr-seed0", "geokr-seed3", "shuffled-seed0", "shuffled-seed3"]
    assert sorted(p.name for p in out.iterdir()) == sorted([*names, "history.csv", "runs.json"])
    assert [run["folder"] for run in read_json(out / "runs.json")] == names
    for name in names:
        assert sorted(p.name for p in (out / name).iterdir()) == [
            "backbone.safetensors",
            "calibration.json",
            "head.safetensors",
            "run.json",
        ]
        load_weights(build("squeezenet1_1"), out / name / "backbone.safetensors")
        head = load_file(out / name / "head.safetensors")
        assert head["weight"].shape == (len(data.classes), 512)
        assert head["bias"].shape == (len(data.classes),)
    run = read_json(out / "geokr-seed0" / "run.json")
    assert run["data_version"] == data.data_version
    assert (run["bands"], run["classes"]) == (list(data.bands), list(data.classes))
    assert run["config"]["consistency"] == "kl_teacher_student"
    with (out / "history.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == COLUMNS
    assert [(r["variant"], r["seed"], r["step"]) for r in rows[:4]] == [
        ("geokr", "0", "2"), ("geokr", "0", "4"), ("geokr", "3", "2"), ("geokr", "3", "4"),
    ]  # fmt: skip
    assert all(r["validation_kl"] for r in rows if r["step"] == "4")
    assert not list((tmp_path / "ck").rglob("checkpoint_*"))
    assert summary.picture_png is not None
    assert 0 < len(summary.picture_png) < 200_000


def test_curves_of_several_runs_do_not_run_into_each_other(data: LevirKR, tmp_path: Path) -> None:
    reporter = RecordingReporter()
    pretrain(_config(seeds=(0, 1), steps=4), data.folder, tmp_path / "out", tmp_path / "ck", reporter)
    (step, first), (_, second) = reporter.points
    assert step == 4
    assert {"loss", "supervised_loss", "consistency_loss", "train_kl", "validation_kl", "learning_rate"} <= set(first)
    assert {"teacher_momentum", "gradient_norm", "images_per_s", "data_wait_fraction"} <= set(first)
    assert {key.removeprefix("geokr-seed1/") for key in second} == set(first)
    assert set(first).isdisjoint(second)


def test_losses_in_the_history_are_means_over_the_interval(data: LevirKR, tmp_path: Path) -> None:
    histories = {}
    for every in (1, 6):
        reporter = RecordingReporter()
        config = _config(steps=6, log_every=every)
        pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", reporter)
        histories[every] = [values["loss"] for _, values in reporter.points]
    assert len(histories[1]) == 6
    assert histories[6][0] == pytest.approx(np.mean(histories[1]), rel=1e-5)


@pytest.mark.parametrize("transfer", ["teacher", "student"])
def test_the_network_asked_for_is_transferred_with_its_own_head(
    transfer: str, data: LevirKR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []
    train = loop.train
    monkeypatch.setattr("geokr_core.pretraining.pretrain.train", lambda *a: kept.append(train(*a)) or kept[-1])
    config = _config(transfer=transfer, steps=3)
    pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", RecordingReporter())
    state = kept[0][0]
    network = state.teacher.network if transfer == "teacher" else state.student
    folder = tmp_path / "out/geokr-seed0"
    for file, part in (("backbone.safetensors", network.backbone), ("head.safetensors", network.head)):
        saved = load_file(folder / file)
        assert all(torch.equal(saved[key], value) for key, value in part.state_dict().items())


def test_evidence_about_the_teacher_is_true(data: LevirKR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretrain(_config(steps=3), data.folder, tmp_path / "out", tmp_path / "ck", RecordingReporter())
    (run,) = read_json(tmp_path / "out/runs.json")
    assert (run["teacher_shares_storage"], run["teacher_differs"], run["finite"]) == (False, True, True)
    assert run["teacher_updates"] == 3
    assert run.items() >= {k: run[k] for k in ("teacher_shares_storage", "teacher_differs", "finite")}.items()
    # A teacher that is the student in disguise must be told apart.
    monkeypatch.setattr("geokr_core.pretraining.training.teacher.copy.deepcopy", lambda student: student)
    monkeypatch.setattr(torch.nn.Module, "requires_grad_", lambda self, flag=True: self)
    pretrain(_config(steps=3), data.folder, tmp_path / "out", tmp_path / "disguised-ck", RecordingReporter())
    (run,) = read_json(tmp_path / "out/runs.json")
    assert (run["teacher_shares_storage"], run["teacher_differs"]) == (True, False)


# --- resuming -------------------------------------------------------------------------------------------------------

RESUMED = [
    # BatchNorm averaged, two views, AdamW in bf16: weights lie channels_last, moments must come back the same way.
    {"architecture": "resnet18", "batch_size": 4},
    # A teacher that gathers its own statistics, Adam, released schedule, a point of the curves across the break.
    {"architecture": "resnet18", "batch_size": 4, "preset": "paper", "precision": "fp32", "log_every": 3},
]


@pytest.mark.parametrize("changes", RESUMED, ids=["geokr", "paper"])
def test_a_resumed_run_ends_with_the_same_bytes(changes: dict[str, Any], data: LevirKR, tmp_path: Path) -> None:
    config = _config(**({"steps": 7, "log_every": 1, "checkpoint_every": 4} | changes))
    pretrain(config, data.folder, tmp_path / "straight", tmp_path / "straight-ck", RecordingReporter())
    with pytest.raises(Killed):
        pretrain(config, data.folder, tmp_path / "resumed", tmp_path / "ck", Killer(6))
    assert not (tmp_path / "resumed").exists()
    reporter = RecordingReporter()
    pretrain(config, data.folder, tmp_path / "resumed", tmp_path / "ck", reporter)
    assert any("resuming after step 4" in message for message in reporter.infos)
    assert data_version(tmp_path / "straight") == data_version(tmp_path / "resumed")


SCRIPT = """
import os, signal, sys
from pathlib import Path
from geokr_core.pretraining.config import PretrainingConfig
from geokr_core.pretraining.pretrain import pretrain
from geokr_core.step.reporter import RecordingReporter

class Killer(RecordingReporter):
    def metrics(self, values, step):
        if step == int(os.environ["KILLED_AT"]):
            os.kill(os.getpid(), signal.SIGKILL)

config = PretrainingConfig.model_validate_json(sys.argv[1])
pretrain(config, *(Path(p) for p in sys.argv[2:]), Killer())
"""


@pytest.mark.parametrize("killed_at", [3, 6, 12])  # before the first checkpoint, right after one, at the last step
def test_a_run_killed_for_real_resumes_to_the_same_bytes(killed_at: int, data: LevirKR, tmp_path: Path) -> None:
    config = _config(log_every=1, checkpoint_every=5)
    pretrain(config, data.folder, tmp_path / "straight", tmp_path / "straight-ck", RecordingReporter())
    arguments = [config.model_dump_json(), str(data.folder), str(tmp_path / "resumed"), str(tmp_path / "ck")]
    environment = {**os.environ, "KILLED_AT": str(killed_at)}
    died = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], check=False, env=environment)
    assert died.returncode == -signal.SIGKILL
    reporter = RecordingReporter()
    pretrain(config, data.folder, tmp_path / "resumed", tmp_path / "ck", reporter)
    checkpoint = (killed_at - 1) // 5 * 5
    assert [step for step, _ in reporter.points] == list(range(checkpoint + 1, 13)), killed_at
    for name in ("geokr-seed0/backbone.safetensors", "history.csv"):
        assert (tmp_path / "straight" / name).read_bytes() == (tmp_path / "resumed" / name).read_bytes()


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_with_the_same_bytes(data: LevirKR, tmp_path: Path) -> None:
    config = _config(architecture="resnet18", steps=40, log_every=1, checkpoint_every=1)
    pretrain(config, data.folder, tmp_path / "straight", tmp_path / "straight-ck", RecordingReporter())
    arguments = [config.model_dump_json(), str(data.folder), str(tmp_path / "resumed"), str(tmp_path / "ck")]
    waits = []
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments], env={**os.environ, "KILLED_AT": "0"})
        before = set((tmp_path / "ck").rglob("checkpoint_*"))
        while process.poll() is None and set((tmp_path / "ck").rglob("checkpoint_*")) <= before:
            time.sleep(0.005)
        waits.append(random.uniform(0, 0.5))
        time.sleep(waits[-1])  # in a step, in the middle of writing a checkpoint, between the two
        process.kill()
        process.wait()
    pretrain(config, data.folder, tmp_path / "resumed", tmp_path / "ck", RecordingReporter())
    assert data_version(tmp_path / "straight") == data_version(tmp_path / "resumed"), waits


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["convnext_tiny", "swin_t", "vit_small_patch16_224"])
def test_networks_that_drop_layers_at_random_resume_to_the_same_bytes(
    architecture: str, data: LevirKR, tmp_path: Path
) -> None:
    config = _config(architecture=architecture, steps=4, batch_size=4, log_every=1, checkpoint_every=2)
    pretrain(config, data.folder, tmp_path / "straight", tmp_path / "straight-ck", RecordingReporter())
    with pytest.raises(Killed):
        pretrain(config, data.folder, tmp_path / "resumed", tmp_path / "ck", Killer(3))
    pretrain(config, data.folder, tmp_path / "resumed", tmp_path / "ck", RecordingReporter())
    assert data_version(tmp_path / "straight") == data_version(tmp_path / "resumed")


def test_curves_are_passed_on_before_a_checkpoint_says_that_they_were(data: LevirKR, tmp_path: Path) -> None:
    class Listener(RecordingReporter):
        passed_on: ClassVar[list[tuple[int, list[str]]]] = []

        def flush(self) -> None:
            kept = [path.name for path in (tmp_path / "ck").rglob("checkpoint_*")]
            self.passed_on.append((self.points[-1][0], kept))

    pretrain(
        _config(steps=6, log_every=1, checkpoint_every=2), data.folder, tmp_path / "out", tmp_path / "ck", Listener()
    )
    assert Listener.passed_on == [(2, []), (4, ["checkpoint_00000002.safetensors"])]


def test_weights_that_an_infinite_gradient_spoiled_are_never_saved(
    data: LevirKR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses_of = loop.losses_of

    def steep(run: Run, state: State, seen: Any, step: int) -> torch.Tensor:
        losses = losses_of(run, state, seen, step)
        if step == 4:  # the root of nothing: a finite loss whose gradient is not
            losses = losses + torch.sqrt((next(state.student.parameters()) * 0).sum())
        return losses

    monkeypatch.setattr(loop, "losses_of", steep)
    config = _config(steps=8, checkpoint_every=2, log_every=8)
    with pytest.raises(TrainingError, match="norm of the gradients is nan at step 4"):
        pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", RecordingReporter())
    assert [path.name for path in (tmp_path / "ck").rglob("checkpoint_*")] == ["checkpoint_00000002.safetensors"]
    monkeypatch.undo()
    pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", RecordingReporter())
    assert len(list((tmp_path / "ck").rglob("not_finite_step_000004.safetensors"))) == 1
    assert not list((tmp_path / "ck").rglob("checkpoint_*"))


def test_a_damaged_checkpoint_ahead_does_not_cost_those_that_are_written(data: LevirKR, tmp_path: Path) -> None:
    config = _config(steps=8, checkpoint_every=2, keep_checkpoints=1, log_every=1)
    with pytest.raises(Killed):
        pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", Killer(3))
    (folder,) = (path for path in (tmp_path / "ck").iterdir() if path.is_dir())
    (folder / "checkpoint_00000007.safetensors").write_bytes(b"damaged")
    with pytest.raises(Killed):
        pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", Killer(5))
    reporter = RecordingReporter()
    pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", reporter)
    assert any("resuming after step 4" in message for message in reporter.infos)


def test_processes_that_would_go_on_from_different_steps_stop(data: LevirKR, tmp_path: Path) -> None:
    class Apart(World):
        def mean(self, value: torch.Tensor) -> torch.Tensor:
            return (value + 0) / 2  # the other process found a checkpoint after no step

    config = _config(steps=8, checkpoint_every=2, log_every=1)
    with pytest.raises(Killed):
        pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", Killer(3))
    (run,) = runs_of(config, data, tmp_path / "ck")
    with pytest.raises(TrainingError, match="would resume after step 2, others after another one"):
        resuming.resume(replace(run, world=Apart()), begin(run), RecordingReporter())


def test_held_out_chips_are_judged_as_often_as_is_asked(data: LevirKR, tmp_path: Path) -> None:
    measured = {}
    for every in (None, 3):
        reporter, place = RecordingReporter(), tmp_path / str(every)
        config = _config(steps=8, log_every=2, validate_every=every)
        pretrain(config, data.folder, place / "out", place / "ck", reporter)
        measured[every] = [step for step, values in reporter.points if "validation_kl" in values]
        assert all(any(name.startswith("bias/") for name in v) for _, v in reporter.points if "validation_kl" in v)
    assert measured == {None: [2, 4, 6, 8], 3: [4, 6, 8]}


def test_finished_runs_of_a_killed_step_are_not_trained_again(data: LevirKR, tmp_path: Path) -> None:
    config = _config(seeds=(0, 1, 2), steps=3, log_every=1)
    pretrain(config, data.folder, tmp_path / "straight", tmp_path / "straight-ck", RecordingReporter())

    class DiesInSecondRun(RecordingReporter):
        def metrics(self, values: Mapping[str, float], step: int) -> None:
            if "geokr-seed1/loss" in values:
                raise Killed

    with pytest.raises(Killed):
        pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", DiesInSecondRun())
    reporter = RecordingReporter()
    pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", reporter)
    assert not any("loss" in values for _, values in reporter.points)
    assert any("geokr-seed0: finished before" in message for message in reporter.infos)
    assert data_version(tmp_path / "straight") == data_version(tmp_path / "out")


def test_a_finished_run_that_was_damaged_is_trained_again(data: LevirKR, tmp_path: Path) -> None:
    config = _config(steps=3)
    pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", RecordingReporter())
    weights = tmp_path / "out/geokr-seed0/backbone.safetensors"
    right = weights.read_bytes()
    weights.write_bytes(right[:-4] + b"oops")  # in place: it is the kept file under its second name, too
    reporter = RecordingReporter()
    pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", reporter)
    assert any("backbone.safetensors changed since it was written" in warning for warning in reporter.warnings)
    assert weights.read_bytes() == right


def test_what_is_forgotten_is_trained_again(data: LevirKR, tmp_path: Path) -> None:
    config, other = _config(steps=3), _config(steps=3, seeds=(1,))
    for chosen in (config, other):
        pretrain(chosen, data.folder, tmp_path / "out", tmp_path / "ck", RecordingReporter())
    forget_finished(config, data.folder, tmp_path / "ck")
    reporter = RecordingReporter()
    pretrain(_config(steps=3, seeds=(0, 1)), data.folder, tmp_path / "out", tmp_path / "ck", reporter)
    assert [m for m in reporter.infos if "finished before" in m] == ["geokr-seed1: finished before, kept"]


def test_what_several_processes_finished_is_forgotten_apart_from_what_one_did(
    data: LevirKR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config(steps=3)
    pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", RecordingReporter())
    monkeypatch.setenv("WORLD_SIZE", "2")  # as under torchrun
    forget_finished(config, data.folder, tmp_path / "ck")
    monkeypatch.delenv("WORLD_SIZE")
    reporter = RecordingReporter()
    pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", reporter)
    assert any("finished before, kept" in message for message in reporter.infos)


def test_a_variant_and_a_seed_more_train_nothing_again(data: LevirKR, tmp_path: Path) -> None:
    small, large = _config(steps=3), _config(steps=3, seeds=(0, 1), variants=("geokr", "shuffled"))
    pretrain(small, data.folder, tmp_path / "out", tmp_path / "ck", RecordingReporter())
    first = (tmp_path / "out/geokr-seed0/backbone.safetensors").read_bytes()
    reporter = RecordingReporter()
    pretrain(large, data.folder, tmp_path / "out", tmp_path / "ck", reporter)
    assert [m for m in reporter.infos if "finished before" in m] == ["geokr-seed0: finished before, kept"]
    assert (tmp_path / "out/geokr-seed0/backbone.safetensors").read_bytes() == first
    pretrain(large, data.folder, tmp_path / "afresh", tmp_path / "other-ck", RecordingReporter())
    assert data_version(tmp_path / "out") == data_version(tmp_path / "afresh")


@pytest.mark.parametrize("changes", [{"learning_rate": 2e-3}, {"log_every": 6}, {"seeds": (5,)}])
def test_half_done_work_of_other_parameters_is_not_used(changes: dict[str, Any], data: LevirKR, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        pretrain(_config(), data.folder, tmp_path / "out", tmp_path / "ck", Killer(4))
    reporter = RecordingReporter()
    pretrain(_config(**changes), data.folder, tmp_path / "out", tmp_path / "ck", reporter)
    assert any("other parameters or data" in warning for warning in reporter.warnings)
    assert reporter.points[-1][0] == 12
    assert len([step for step, _ in reporter.points]) == (2 if "log_every" in changes else 3)


def test_a_checkpoint_of_another_run_is_refused_and_said_so(data: LevirKR, tmp_path: Path) -> None:
    (run,) = runs_of(_config(), data, tmp_path / "ck")
    save_checkpoint(run.folder / "checkpoint_00000009.safetensors", "another", {"x": torch.zeros(1)}, {"step": 9})
    reporter = RecordingReporter()
    state, _ = loop.train(run, reporter)
    assert any("run another" in w and "passing over" in w for w in reporter.warnings)
    assert state.step == 12
    assert [point["step"] for point in state.history] == [4, 8, 12]


@pytest.mark.parametrize("damage", [b"", b"half a file"])
def test_a_damaged_checkpoint_is_refused(damage: bytes, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(damage)
    with pytest.raises(TrainingError, match="not a readable checkpoint"):
        load_checkpoint(path, "mine")


def test_a_single_bit_that_changed_in_a_checkpoint_is_found_and_the_one_before_is_used(
    data: LevirKR, tmp_path: Path
) -> None:
    config = _config(steps=8, checkpoint_every=2, log_every=1)
    pretrain(config, data.folder, tmp_path / "straight", tmp_path / "straight-ck", RecordingReporter())
    with pytest.raises(Killed):
        pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", Killer(7))
    newest = max((tmp_path / "ck").rglob("checkpoint_*"))
    content = bytearray(newest.read_bytes())
    for place in (len(content) - 7, content.index(b"num_summed") + 15):  # in a weight, in a number of the header
        damaged = bytearray(content)
        damaged[place] ^= 1
        newest.write_bytes(damaged)
        with pytest.raises(TrainingError, match=r"not what was written|not a readable checkpoint"):
            load_checkpoint(newest, newest.parent.name)
    reporter = RecordingReporter()
    pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", reporter)
    assert any(newest.name in w and "passing over" in w for w in reporter.warnings)
    assert any("resuming after step 4" in message for message in reporter.infos)
    assert data_version(tmp_path / "straight") == data_version(tmp_path / "out")


def test_checkpoints_of_the_first_format_are_still_read(tmp_path: Path) -> None:
    header = {"format": "1", "fingerprint": "mine", "scalars": '{"step": 3}'}
    save_file({"w": torch.ones(2)}, tmp_path / "c.safetensors", metadata=header)
    assert load_checkpoint(tmp_path / "c.safetensors", "mine").scalars == {"step": 3}


@pytest.mark.parametrize("damage", [b"", b"{", b'{"result": 3}', None], ids=["empty", "cut", "other", "digit"])
def test_a_damaged_record_of_a_finished_run_is_named_and_made_again(
    damage: bytes | None, data: LevirKR, tmp_path: Path
) -> None:
    config = _config(steps=2)
    pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", RecordingReporter())
    right = data_version(tmp_path / "out")
    (record,) = (tmp_path / "ck").rglob("record.json")
    content = record.read_bytes()
    record.write_bytes(content.replace(b'"num_steps": 2', b'"num_steps": 3') if damage is None else damage)
    assert record.read_bytes() != content
    reporter = RecordingReporter()
    pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", reporter)
    assert any("record.json" in w and "geokr-seed0 is trained again" in w for w in reporter.warnings)
    assert data_version(tmp_path / "out") == right


def test_a_checkpoint_gives_back_every_bit(tmp_path: Path) -> None:
    tensors = {"w": torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last), "n": torch.tensor(7)}
    scalars = {"step": 3, "history": [{"loss": 0.1 + 0.2, "validation_kl": None}]}
    save_checkpoint(tmp_path / "c.safetensors", "mine", tensors, scalars)
    back = load_checkpoint(tmp_path / "c.safetensors", "mine")
    assert back.scalars == scalars
    assert all(torch.equal(back.tensors[name], value) for name, value in tensors.items())
    with pytest.raises(TrainingError, match=r"of format 2 and run mine, but the run now is yours"):
        load_checkpoint(tmp_path / "c.safetensors", "yours")


def test_torchs_own_random_state_is_part_of_a_checkpoint(data: LevirKR, tmp_path: Path) -> None:
    (run,) = runs_of(_config(steps=1), data, tmp_path / "ck")
    state, _ = loop.train(run, RecordingReporter())
    torch.manual_seed(11)
    save(run, state)
    expected = torch.rand(3)
    torch.manual_seed(12)
    resuming.resume(run, begin(run), RecordingReporter())
    assert torch.equal(torch.rand(3), expected)


def test_training_leaves_the_callers_random_numbers_and_threads_alone(data: LevirKR, tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    threads = torch.get_num_threads()
    pretrain(_config(steps=1, threads=threads + 1), data.folder, tmp_path / "out", tmp_path / "ck", RecordingReporter())
    assert torch.equal(torch.rand(2), expected)
    assert torch.get_num_threads() == threads


# --- stopping -------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_batch(
    data: LevirKR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poisoned(*arguments: Any) -> torch.Tensor:
        losses = losses_of(*arguments)
        return losses * float("nan") if arguments[-1] == 6 else losses

    losses_of = loop.losses_of
    monkeypatch.setattr(loop, "losses_of", poisoned)
    with pytest.raises(TrainingError, match=r"loss is nan at step 6.*Lower pretraining.learning_rate") as error:
        pretrain(_config(), data.folder, tmp_path / "out", tmp_path / "ck", RecordingReporter())
    assert not (tmp_path / "out").exists()
    (kept,) = (tmp_path / "ck").rglob("not_finite_step_000006.safetensors")
    assert str(kept) in str(error.value)
    batch = load_file(kept)
    expected = batch_rows(data.rows_of("train"), 8, 0, 6)
    assert batch["rows"].tolist() == expected.tolist()
    assert np.array_equal(batch["images"].numpy(), data.images(expected))
    assert np.array_equal(batch["proportions"].numpy(), data.proportions[expected])
    # The last good checkpoint is untouched: what comes after a repair goes on from it.
    checkpoints = list((tmp_path / "ck").rglob("checkpoint_*.safetensors"))
    assert [path.stem[-2:] for path in checkpoints] == ["03"]
    assert all(bool(torch.isfinite(t).all()) for path in checkpoints for t in load_file(path).values())


def test_weights_that_are_not_finite_are_not_delivered(
    data: LevirKR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiled(*arguments: Any) -> Any:
        state, clock = train(*arguments)
        with torch.no_grad():
            state.teacher.network.head.bias[0] = float("inf")
        return state, clock

    train = loop.train
    monkeypatch.setattr("geokr_core.pretraining.pretrain.train", spoiled)
    with pytest.raises(TrainingError, match="a weight is not finite after 2 steps"):
        pretrain(_config(steps=2), data.folder, tmp_path / "out", tmp_path / "ck", RecordingReporter())
    assert not (tmp_path / "out").exists()


def test_weights_to_start_from_are_loaded_strictly(data: LevirKR, tmp_path: Path) -> None:
    torch.manual_seed(5)
    source = build("squeezenet1_1")
    save_weights(source, tmp_path / "w.safetensors")
    config = _config(initial_weights=tmp_path / "w.safetensors")
    (run,) = runs_of(config, data, tmp_path / "ck")
    state = begin(run)
    for network in (state.student, state.teacher.network):
        mine = network.backbone.state_dict()
        assert all(torch.equal(mine[key], value) for key, value in source.state_dict().items())
    (scratch,) = runs_of(_config(), data, tmp_path / "ck")
    assert run.fingerprint != scratch.fingerprint
    save_file({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "w.safetensors")
    with pytest.raises(BackboneError, match="missing"):
        pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", RecordingReporter())


def test_records_do_not_depend_on_where_the_weights_lay(data: LevirKR, tmp_path: Path) -> None:
    versions = []
    for place in ("here", "there"):
        torch.manual_seed(5)
        save_weights(build("squeezenet1_1"), tmp_path / place / "w.safetensors")
        config = _config(steps=1, initial_weights=tmp_path / place / "w.safetensors")
        pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", RecordingReporter())
        assert str(tmp_path) not in (tmp_path / "out/geokr-seed0/run.json").read_text()
        versions.append(data_version(tmp_path / "out"))
    assert versions[0] == versions[1]


# --- batches --------------------------------------------------------------------------------------------------------


def test_every_chip_comes_once_an_epoch_in_another_order() -> None:
    rows = np.arange(100, 110)
    seen = np.concatenate([batch_rows(rows, 4, seed=0, step=step) for step in range(1, 11)])
    epochs = seen.reshape(4, 10)
    assert all(sorted(epoch) == rows.tolist() for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert not np.array_equal(batch_rows(rows, 4, seed=1, step=1), seen[:4])


def test_windows_keep_reading_local_and_leave_no_chip_out() -> None:
    shards = np.repeat(np.arange(12), [5, 30, 1, 17, 8, 8, 40, 2, 9, 9, 9, 12])  # of any length
    rows, windows = 1000 + np.arange(150), Windows(shards, window_chips=40)
    epoch = batch_rows(rows, 150, 0, 1, windows)
    assert sorted(epoch) == rows.tolist()
    assert not np.array_equal(epoch, batch_rows(rows, 150, 0, 2, windows))
    read = shards[epoch - 1000]
    spans = [int(np.ptp(np.flatnonzero(read == shard))) + 1 for shard in range(12)]
    assert max(spans) <= 40 + 39  # never further apart than a window and what its last shard may add
    even = Windows(np.repeat(np.arange(8), 30), window_chips=40).order(0, 0) // 30
    assert [len(set(even[k : k + 60])) for k in range(0, 240, 60)] == [2, 2, 2, 2]  # filled up before the next begins
    assert len(set(read[:20])) > 1  # a window mixes shards
    batches = np.concatenate([batch_rows(rows, 15, 0, step, windows) for step in range(1, 11)])
    assert np.array_equal(batches, epoch)  # batches are cut from the epoch: a resumed run goes on with the same ones


def test_a_run_in_windows_reads_few_shards_at_a_time(data: LevirKR, tmp_path: Path) -> None:
    read: dict[int | None, int] = {}
    for window_chips in (None, 8):
        (run,) = runs_of(_config(shuffle_window_chips=window_chips, batch_size=8), data, tmp_path / "ck")
        rows = reading(run)(1).rows
        read[window_chips] = len(np.unique(data.shard_of_row[rows]))
    assert read[8] < (read[None] or 0)


def test_a_batch_may_be_larger_than_the_data_set() -> None:
    assert np.bincount(batch_rows(np.arange(3), 7, seed=0, step=1)).tolist() in ([3, 2, 2], [2, 3, 2], [2, 2, 3])


def _batch(step: int) -> Batch:
    return Batch(step, np.array([step]), torch.zeros(1), None, 0.0)


def test_the_next_batch_is_read_while_this_one_is_used() -> None:
    read_two = threading.Event()

    def read(step: int) -> Batch:
        if step == 2:
            read_two.set()
        return _batch(step)

    with prefetched(read, 1, 3) as batches:
        assert next(batches).step == 1
        assert read_two.wait(timeout=10)
        assert [batch.step for batch in batches] == [2, 3]


def test_what_the_reader_raises_reaches_the_loop() -> None:
    def read(step: int) -> Batch:
        if step == 2:
            raise OSError("the disk is gone")
        return _batch(step)

    with prefetched(read, 1, 3) as batches:
        next(batches)
        with pytest.raises(OSError, match="the disk is gone"):
            next(batches)


# --- schedules and presets ------------------------------------------------------------------------------------------


def _run(data: LevirKR, **changes: Any) -> Run:
    (run,) = runs_of(_config(**changes), data, Path("unused"))
    return run


def test_learning_rate_warms_up_and_falls_to_nothing(data: LevirKR) -> None:
    run = _run(data, steps=100, warmup_steps=10, learning_rate=1.0)
    rates = [learning_rate(step, run) for step in range(1, 101)]
    assert rates[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert max(rates) == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5, abs=0.02)
    assert all(a >= b for a, b in itertools.pairwise(rates[9:]))
    assert 0 < rates[-1] < 0.001


def test_paper_learning_rate_falls_by_a_tenth_each_epoch(data: LevirKR) -> None:
    num_train = len(data.rows_of("train"))
    run = _run(data, preset="paper", steps=1000, batch_size=8)
    last_of_first_epoch = num_train // 8 if num_train % 8 == 0 else num_train // 8 + 1
    assert learning_rate(1, run) == pytest.approx(1e-3)
    assert learning_rate(last_of_first_epoch, run) == pytest.approx(1e-3)
    assert learning_rate(last_of_first_epoch + 1, run) == pytest.approx(9e-4)
    assert learning_rate(1 + 10 * num_train // 8 + 1, run) == pytest.approx(1e-3 * 0.9**10)


def test_consistency_ramps_up_and_stays(data: LevirKR) -> None:
    recipe = _config(steps=100).recipe().model_copy(update={"consistency_weight": 2.0})
    weights = [consistency_weight(step, recipe) for step in range(1, 101)]
    assert weights[0] < 0.04
    assert all(a <= b for a, b in itertools.pairwise(weights))
    assert weights[29:] == [2.0] * 71
    assert consistency_weight(1, PAPER) == 1.0


def test_norms_and_biases_are_not_decayed(data: LevirKR) -> None:
    student = Network("resnet18", 3, 10)
    decayed, plain = make_optimiser(student, _config().recipe()).param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.02, 0.0)
    names = {id(p): name for name, p in student.named_parameters()}
    assert {names[id(p)] for p in plain["params"]} == {
        name for name in names.values() if ".bn" in name or "downsample.1" in name or name.endswith("bias")
    }
    assert len(decayed["params"]) + len(plain["params"]) == len(names)


def test_presets_are_what_they_are_named_for() -> None:
    paper, ours = _config(preset="paper", steps=200).recipe(), _config(steps=200).recipe()
    assert (paper.optimiser, paper.learning_rate, paper.weight_decay) == ("adam", 1e-3, 0.0)
    assert (paper.consistency, paper.reduction, paper.batchnorm) == ("ce_student_teacher", "per_element", "own")
    assert (paper.teacher_schedule, paper.teacher_momentum, paper.two_views) == ("released", 0.95, False)
    assert (ours.consistency, ours.reduction, ours.batchnorm) == ("kl_teacher_student", "per_sample", "averaged")
    assert (paper.transfer, ours.transfer) == ("teacher", "teacher")
    assert [_config(steps=n).recipe().teacher_momentum for n in (10, 200, 300, 10_000)] == pytest.approx(
        [0.97, 0.97, 0.98, 0.99]
    )


@pytest.mark.parametrize("preset", ["paper", "geokr"])
def test_a_given_field_overrules_the_preset_even_if_it_is_zero(preset: str) -> None:
    given = {
        "learning_rate": 0.5, "weight_decay": 0.0, "warmup_steps": 0, "consistency": "none", "consistency_weight": 0.0,
        "teacher_momentum": 0.0, "teacher_schedule": "every_step", "batchnorm": "copied", "reduction": "per_sample",
        "two_views": False, "transfer": "student", "label_weighting": False,
    }  # fmt: skip
    recipe = _config(preset=preset, **given).recipe()
    assert {name: getattr(recipe, name) for name in given} == given


def _seen(run: Run, step: int = 1) -> Inputs:
    batch = reading(run)(1)
    return inputs_of(run, replace(batch, step=step), slice(0, len(batch.rows)), run.normalisation())


def test_two_views_differ_in_colour_and_agree_in_orientation(data: LevirKR) -> None:
    run = _run(data)
    views = _seen(run)
    assert not torch.equal(views.student, views.teacher)
    for one, other in zip(views.student.flatten(1), views.teacher.flatten(1), strict=True):
        assert float(torch.corrcoef(torch.stack([one, other]))[0, 1]) > 0.8
    same = _seen(_run(data, two_views=False))
    assert same.student is same.teacher
    assert torch.equal(same.student, views.student)
    assert not torch.equal(_seen(run, step=2).student, views.student)


def test_teacher_momentum_warms_up_each_step_and_the_released_schedule_does_not(data: LevirKR, tmp_path: Path) -> None:
    expected = {"geokr": ([1 / 2, 2 / 3, 3 / 4], 3), "paper": ([0.95, 0.95, 0.95], 1)}
    for preset, (momenta, updates) in expected.items():
        reporter = RecordingReporter()
        config = _config(preset=preset, steps=3, log_every=1)
        pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", reporter)
        assert [values["teacher_momentum"] for _, values in reporter.points] == pytest.approx(momenta)
        assert read_json(tmp_path / "out/runs.json")[0]["teacher_updates"] == updates


@pytest.mark.parametrize("batchnorm", ["averaged", "own"])
def test_judging_leaves_mode_and_statistics_of_the_network_alone(batchnorm: str, data: LevirKR) -> None:
    run = _run(data, architecture="resnet18", batchnorm=batchnorm)
    state = begin(run)
    network, before = state.teacher.network, {k: v.clone() for k, v in state.teacher.network.state_dict().items()}
    judged(run, network, run.train_rows[:4])
    assert network.training is (batchnorm == "own")
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_at_most_a_thousand_chips_are_judged(data: LevirKR, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    images = LevirKR.images
    monkeypatch.setattr(LevirKR, "images", lambda self, rows: read.extend(rows) or images(self, rows))
    monkeypatch.setattr(validation, "MAX_JUDGED_CHIPS", 10)
    run = _run(data)
    judged(run, Network("squeezenet1_1", 3, len(data.classes)), np.arange(50))
    assert (len(set(read)), min(read), max(read)) == (10, 0, 49)


def test_too_few_training_chips_are_refused(data: LevirKR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LevirKR, "rows_of", lambda self, split: np.arange(1 if split == "train" else 0))
    with pytest.raises(TrainingError, match=r"1 training chip\(s\); at least two"):
        pretrain(_config(), data.folder, tmp_path / "out", tmp_path / "ck", RecordingReporter())


def test_a_data_set_without_validation_chips_trains_all_the_same(tmp_path: Path) -> None:
    store = make_levir_kr(tmp_path / "store", num_chips=16, validation_fraction=0.0)
    pretrain(_config(steps=2), store.folder, tmp_path / "out", tmp_path / "ck", RecordingReporter())
    (run,) = read_json(tmp_path / "out/runs.json")
    assert run["validation_kl"] is None
    assert next(csv.DictReader((tmp_path / "out/history.csv").open()))["validation_kl"] == ""


def test_a_gpu_that_is_not_there_is_refused(data: LevirKR, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TrainingError, match="sees no GPU"):
        runtime_of(_config(device="cuda"), 64)
    assert runtime_of(_config(device="auto"), 64).device.type == "cpu"


def test_a_transferred_teacher_that_hardly_moved_is_pointed_out(data: LevirKR, tmp_path: Path) -> None:
    def warned(**changes: Any) -> bool:
        reporter = RecordingReporter()
        config = _config(preset="paper", steps=2, **changes)
        pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", reporter)
        return any("moved 1 time(s) and is still 0.95 its own start" in warning for warning in reporter.warnings)

    assert warned()
    assert read_json(tmp_path / "out/runs.json")[0]["teacher_initial_fraction"] == pytest.approx(0.95)
    assert not warned(transfer="student")
    assert not warned(teacher_schedule="every_step")
    assert read_json(tmp_path / "out/runs.json")[0]["teacher_initial_fraction"] == pytest.approx(1 / 3)


def _weight_gradient(weight: torch.Tensor, maps: torch.Tensor, slopes: torch.Tensor, *, bf16: bool) -> torch.Tensor:
    weight = weight.clone().contiguous(memory_format=torch.channels_last).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        result = torch.nn.functional.conv2d(maps, weight, stride=2, padding=1)
    result.backward(slopes.to(result.dtype))
    assert weight.grad is not None
    return weight.grad


@pytest.mark.parametrize("batch", [2, 8, 32])
def test_bf16_gradients_are_right_for_the_smallest_chips_that_get_them(batch: int) -> None:
    side = -(
        -spec_of("resnet18").bf16_min_size_px // 16
    )  # of the maps that go into a ResNet's last strided convolution
    for seed in range(6):
        torch.manual_seed(seed)
        # What a wrong kernel leaves unwritten must not look right by being fresh and zero.
        torch.full((3_000_000,), 1e30)
        maps = torch.randn(batch, 256, side, side).contiguous(memory_format=torch.channels_last)
        weight, slopes = torch.randn(512, 256, 3, 3) * 0.02, torch.randn(batch, 512, -(-side // 2), -(-side // 2))
        exact, rounded = (_weight_gradient(weight, maps, slopes, bf16=bf16) for bf16 in (False, True))
        assert float((exact - rounded).norm() / exact.norm()) < 0.05


def test_chips_too_small_for_bf16_are_computed_in_fp32_and_that_is_said(tmp_path: Path) -> None:
    store = make_levir_kr(tmp_path / "store", num_chips=16, chip_size_px=16)
    reporter = RecordingReporter()
    config = _config(architecture="resnet18", steps=1, batch_size=4)
    pretrain(config, store.folder, tmp_path / "out", tmp_path / "ck", reporter)
    assert any("too small for bf16" in warning for warning in reporter.warnings)
    assert read_json(tmp_path / "out/geokr-seed0/run.json")["precision"] == "fp32"


def test_a_network_that_learned_nothing_is_pointed_out(
    data: LevirKR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reporter = RecordingReporter()
    judged = loop.judged
    monkeypatch.setattr("geokr_core.pretraining.results.judged", lambda *arguments: replace(judged(*arguments), kl=9.0))
    summary = pretrain(_config(steps=1), data.folder, tmp_path / "out", tmp_path / "ck", reporter)
    assert any("no better than that of a constant prediction" in warning for warning in reporter.warnings)
    assert summary.warnings == reporter.warnings


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_it_learns_resumes_and_stops(data: LevirKR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = _config(architecture="resnet18", device="cuda", steps=60, batch_size=32, log_every=1)
    with pytest.raises(Killed):
        pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", Killer(20))
    pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", RecordingReporter())
    (run,) = read_json(tmp_path / "out/runs.json")
    assert run["train_kl"] < run["constant_kl"]
    losses_of = loop.losses_of
    monkeypatch.setattr(loop, "losses_of", lambda *a: losses_of(*a) * (float("nan") if a[-1] == 6 else 1.0))
    with pytest.raises(TrainingError, match="loss is nan at step 6"):
        pretrain(config, data.folder, tmp_path / "out2", tmp_path / "ck2", RecordingReporter())


def test_reopened_data_is_the_same_run(data: LevirKR) -> None:
    again = open_levir_kr(data.folder)
    assert _run(again).fingerprint == _run(data).fingerprint
