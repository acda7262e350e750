"""Pretraining learns, writes what it promises, stops where it must, and says the truth about its teacher."""

import csv
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from short_runs import Killed, Killer, checkpointed_config, checkpointed_run, short_config

from geokr_core.errors import BackboneError, TrainingError
from geokr_core.levir_kr.dataset import LevirKR, open_levir_kr
from geokr_core.networks.architectures import spec_of
from geokr_core.networks.batch_order import batch_rows
from geokr_core.networks.network import build
from geokr_core.networks.weights import load_weights, save_weights
from geokr_core.pretraining.labels import RunLabels, labels_of_data
from geokr_core.pretraining.pretrain import pretrain
from geokr_core.pretraining.runs import runs_of, runtime_of
from geokr_core.pretraining.training import loop
from geokr_core.pretraining.training.state import begin
from geokr_core.step.digests import data_version
from geokr_core.step.files import read_json
from geokr_core.step.reporter import Part, RecordingReporter, Reporter, Source
from geokr_core.testing import make_levir_kr

NUM_CHIPS = 96


def test_kl_falls_well_below_the_constant_and_true_labels_beat_shuffled(tmp_path: Path) -> None:
    store = make_levir_kr(tmp_path / "store", num_chips=256, chip_size_px=32)
    config = checkpointed_config(
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
    return labels_of_data(data, data.rows_of("train"), checkpointed_config().recipe(method), seed)


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


def test_output_holds_what_it_promises(data: LevirKR, tmp_path: Path) -> None:
    config = checkpointed_config(seeds=(0, 3), variants=("geokr", "shuffled"), steps=4, log_every=2)
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
        ("geokr", "0", "2"),
        ("geokr", "0", "4"),
        ("geokr", "3", "2"),
        ("geokr", "3", "4"),
    ]
    assert all(r["validation_kl"] for r in rows if r["step"] == "4")
    assert not list((tmp_path / "ck").rglob("checkpoint_*"))
    assert summary.picture_png is not None
    assert 0 < len(summary.picture_png) < 200_000


def test_curves_of_several_runs_do_not_run_into_each_other(data: LevirKR, tmp_path: Path) -> None:
    reporter = RecordingReporter()
    pretrain(checkpointed_config(seeds=(0, 1), steps=4), data.folder, tmp_path / "out", tmp_path / "ck", reporter)
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
        config = checkpointed_config(steps=6, log_every=every)
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
    config = checkpointed_config(transfer=transfer, steps=3)
    pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", RecordingReporter())
    state = kept[0][0]
    network = state.teacher.network if transfer == "teacher" else state.student
    folder = tmp_path / "out/geokr-seed0"
    for file, part in (("backbone.safetensors", network.backbone), ("head.safetensors", network.head)):
        saved = load_file(folder / file)
        assert all(torch.equal(saved[key], value) for key, value in part.state_dict().items())


def test_evidence_about_the_teacher_is_true(data: LevirKR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretrain(checkpointed_config(steps=3), data.folder, tmp_path / "out", tmp_path / "ck", RecordingReporter())
    (run,) = read_json(tmp_path / "out/runs.json")
    assert (run["teacher_shares_storage"], run["teacher_differs"], run["finite"]) == (False, True, True)
    assert run["teacher_updates"] == 3
    assert run.items() >= {k: run[k] for k in ("teacher_shares_storage", "teacher_differs", "finite")}.items()
    # A teacher that is the student in disguise must be recognised.
    monkeypatch.setattr("geokr_core.pretraining.training.teacher.copy.deepcopy", lambda student: student)
    monkeypatch.setattr(torch.nn.Module, "requires_grad_", lambda self, flag=True: self)
    pretrain(
        checkpointed_config(steps=3), data.folder, tmp_path / "out", tmp_path / "disguised-ck", RecordingReporter()
    )
    (run,) = read_json(tmp_path / "out/runs.json")
    assert (run["teacher_shares_storage"], run["teacher_differs"]) == (True, False)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_batch(
    data: LevirKR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poisoned(*arguments: Any) -> torch.Tensor:
        losses = losses_of(*arguments)
        return losses * float("nan") if arguments[-1] == 6 else losses

    losses_of = loop.losses_of
    monkeypatch.setattr(loop, "losses_of", poisoned)
    with pytest.raises(TrainingError, match=r"loss is nan at step 6.*Lower pretraining.learning_rate") as error:
        pretrain(checkpointed_config(), data.folder, tmp_path / "out", tmp_path / "ck", RecordingReporter())
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
        pretrain(checkpointed_config(steps=2), data.folder, tmp_path / "out", tmp_path / "ck", RecordingReporter())
    assert not (tmp_path / "out").exists()


def test_weights_to_start_from_are_loaded_strictly(data: LevirKR, tmp_path: Path) -> None:
    torch.manual_seed(5)
    source = build("squeezenet1_1")
    save_weights(source, tmp_path / "w.safetensors")
    config = checkpointed_config(initial_weights=tmp_path / "w.safetensors")
    (run,) = runs_of(config, data, tmp_path / "ck")
    state = begin(run)
    for network in (state.student, state.teacher.network):
        mine = network.backbone.state_dict()
        assert all(torch.equal(mine[key], value) for key, value in source.state_dict().items())
    (scratch,) = runs_of(checkpointed_config(), data, tmp_path / "ck")
    assert run.fingerprint != scratch.fingerprint
    save_file({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "w.safetensors")
    with pytest.raises(BackboneError, match="missing"):
        pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", RecordingReporter())


def test_records_do_not_depend_on_where_the_weights_lay(data: LevirKR, tmp_path: Path) -> None:
    versions = []
    for place in ("here", "there"):
        torch.manual_seed(5)
        save_weights(build("squeezenet1_1"), tmp_path / place / "w.safetensors")
        config = checkpointed_config(steps=1, initial_weights=tmp_path / place / "w.safetensors")
        pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", RecordingReporter())
        assert str(tmp_path) not in (tmp_path / "out/geokr-seed0/run.json").read_text()
        versions.append(data_version(tmp_path / "out"))
    assert versions[0] == versions[1]


def test_too_few_training_chips_are_refused(data: LevirKR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LevirKR, "rows_of", lambda self, split: np.arange(1 if split == "train" else 0))
    with pytest.raises(TrainingError, match=r"1 training chip\(s\); at least two"):
        pretrain(checkpointed_config(), data.folder, tmp_path / "out", tmp_path / "ck", RecordingReporter())


def test_a_data_set_without_validation_chips_trains_all_the_same(tmp_path: Path) -> None:
    store = make_levir_kr(tmp_path / "store", num_chips=16, validation_fraction=0.0)
    pretrain(checkpointed_config(steps=2), store.folder, tmp_path / "out", tmp_path / "ck", RecordingReporter())
    (run,) = read_json(tmp_path / "out/runs.json")
    assert run["validation_kl"] is None
    assert next(csv.DictReader((tmp_path / "out/history.csv").open()))["validation_kl"] == ""


def test_a_gpu_that_is_not_there_is_refused(data: LevirKR, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TrainingError, match="sees no GPU"):
        runtime_of(checkpointed_config(device="cuda"), 64)
    assert runtime_of(checkpointed_config(device="auto"), 64).device.type == "cpu"


def test_a_transferred_teacher_that_hardly_moved_is_pointed_out(data: LevirKR, tmp_path: Path) -> None:
    def warned(**changes: Any) -> bool:
        reporter = RecordingReporter()
        config = checkpointed_config(**({"preset": "paper", "teacher_schedule": "released", "steps": 2} | changes))
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
    config = checkpointed_config(architecture="resnet18", steps=1, batch_size=4, precision="bf16")
    pretrain(config, store.folder, tmp_path / "out", tmp_path / "ck", reporter)
    assert any("too small for bf16" in warning for warning in reporter.warnings)
    assert read_json(tmp_path / "out/geokr-seed0/run.json")["precision"] == "fp32"


def test_a_network_that_learned_nothing_is_pointed_out(
    data: LevirKR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reporter = RecordingReporter()
    judged = loop.judged
    monkeypatch.setattr("geokr_core.pretraining.results.judged", lambda *arguments: replace(judged(*arguments), kl=9.0))
    summary = pretrain(checkpointed_config(steps=1), data.folder, tmp_path / "out", tmp_path / "ck", reporter)
    assert any("no better than that of a constant prediction" in warning for warning in reporter.warnings)
    assert summary.warnings == reporter.warnings


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_it_learns_resumes_and_stops(data: LevirKR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = checkpointed_config(architecture="resnet18", device="cuda", steps=60, batch_size=32, log_every=1)
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
    assert checkpointed_run(again).fingerprint == checkpointed_run(data).fingerprint


class Parts(RecordingReporter):
    """Keeps the parts of a step, the data sets and the closing figures of each."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[Part] = []
        self.sources: list[Source] = []
        self.closing: list[Mapping[str, float]] = []

    def part(self, part: Part) -> AbstractContextManager[Reporter]:
        self.parts.append(part)
        return super().part(part)

    def source(self, source: Source) -> None:
        self.sources.append(source)

    def figures(self, values: Mapping[str, float]) -> None:
        self.closing.append(values)


def test_each_training_is_a_named_part_and_one_that_is_kept_tells_the_same_figures(
    data: LevirKR, tmp_path: Path
) -> None:
    config = short_config(steps=2, seeds=(0, 1))
    trained, kept = Parts(), Parts()
    for listener in (trained, kept):
        pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", listener)
    names = [f"geokr · squeezenet1_1 · 2 steps · seed {seed}" for seed in (0, 1)]
    assert [part.name for part in trained.parts] == [part.name for part in kept.parts] == names
    assert [part.is_kept for part in (*trained.parts, *kept.parts)] == [False, False, True, True]
    assert [part.fingerprint for part in trained.parts] == [part.fingerprint for part in kept.parts]
    assert trained.parts[0].fingerprint != trained.parts[1].fingerprint
    assert trained.parts[1].parameters["seed"] == 1
    num_train = len(data.rows_of("train"))
    assert set(trained.sources) == {Source("levir_kr", data.data_version, str(data.folder), "training", num_train)}
    assert trained.closing == kept.closing
    assert {"train_kl", "constant_kl"} <= trained.closing[0].keys()
