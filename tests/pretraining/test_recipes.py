"""Every method runs in the one loop, differs from the others in what its name says, and resumes to the same bytes."""

import csv
import importlib.metadata
import json
import shutil
import subprocess
import sys
import types
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from geokr_core.errors import ConfigError
from geokr_core.levir_kr.dataset import LevirKR
from geokr_core.networks.augmentation import cells_under
from geokr_core.networks.network import build, stages
from geokr_core.networks.strength import Strength
from geokr_core.networks.weights import save_weights
from geokr_core.pretraining import recipes, runs
from geokr_core.pretraining.config import PretrainingConfig, RunSettings
from geokr_core.pretraining.correction import Correction, aggregation_loss
from geokr_core.pretraining.losses import dense_loss
from geokr_core.pretraining.network import Network, Outputs
from geokr_core.pretraining.objective import Inputs
from geokr_core.pretraining.objectives.land_cover import LandCoverObjective, largest_class
from geokr_core.pretraining.pretrain import pretrain
from geokr_core.pretraining.recipe import OBJECTIVES, Choices, Recipe, objective_class
from geokr_core.pretraining.recipes import METHODS, Method
from geokr_core.pretraining.runs import fingerprint, result_inputs, runs_of
from geokr_core.pretraining.training import loop
from geokr_core.pretraining.training.inputs import inputs_of
from geokr_core.pretraining.training.loop import (
    gradient_norm,
    learning_rate,
    losses_of,
    reading,
    train,
    update,
)
from geokr_core.pretraining.training.regularisation import channel_variance, distance, last_stage_cells, maps_of
from geokr_core.pretraining.training.schedules import parameter_groups
from geokr_core.pretraining.training.state import Run, begin
from geokr_core.step.digests import data_version
from geokr_core.step.files import read_json
from geokr_core.step.reporter import RecordingReporter
from geokr_core.testing import make_levir_kr


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> LevirKR:
    return make_levir_kr(tmp_path_factory.mktemp("store"), num_chips=64, chip_size_px=32)


@pytest.fixture(scope="module")
def whole_chips(tmp_path_factory: pytest.TempPathFactory) -> LevirKR:
    return make_levir_kr(tmp_path_factory.mktemp("store"), num_chips=32, chip_size_px=32, cells_per_side=0)


def _config(**changes: Any) -> PretrainingConfig:
    small = {"architecture": "squeezenet1_1", "steps": 6, "batch_size": 8, "threads": 1, "log_every": 1}
    return PretrainingConfig(**({**small, "device": "cpu", "examples_every": 0} | changes))


def _run(data: LevirKR, method: str = "geokr", **changes: Any) -> Run:
    variants = ("geokr",) if method == "geokr" else ("geokr", method)
    return list(runs_of(_config(variants=variants, **changes), data, Path("unused")))[-1]


def _seen(run: Run, step: int = 1) -> Inputs:
    batch = reading(run)(step)
    return inputs_of(run, batch, slice(0, len(batch.rows)), run.normalisation())


class Killed(Exception):
    """Stands for a process that dies."""


class Killer(RecordingReporter):
    def __init__(self, name: str, step: int) -> None:
        super().__init__()
        self.name, self.step = name, step

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        if step == self.step and any(key.startswith(self.name) for key in values):
            raise Killed


# --- the registry -----------------------------------------------------------------------------------------------------


def test_every_method_sets_fields_that_recipes_have() -> None:
    known = {*Recipe.model_fields, *(field.name for field in fields(Strength)), "jitter"}
    assert all({*method.changes, *method.required} <= known for method in METHODS.values())


def test_each_choice_is_declared_once_and_the_section_leaves_all_open() -> None:
    assert not set(Choices.model_fields) & set(RunSettings.model_fields)
    assert set(PretrainingConfig.model_fields) == set(Choices.model_fields) | set(RunSettings.model_fields)
    for name, choice in Choices.model_fields.items():
        offered = PretrainingConfig.model_fields[name]
        assert (offered.default, offered.description) == (None, choice.description)
    assert set(Recipe.model_fields) - set(Choices.model_fields) == {
        "objective", "labels", "optimiser", "learning_rate_schedule", "ramp_steps", "augmentation",
    }  # fmt: skip


def test_what_is_known_of_an_objective_without_torch_is_what_it_says_itself() -> None:
    assert {name: objective_class(name).learns_land_cover for name in OBJECTIVES} == {
        name: kind.learns_land_cover for name, kind in OBJECTIVES.items()
    }
    with pytest.raises(ConfigError, match=r"'simcl': expected one of land_cover, simclr, moco, or `module:Class`"):
        objective_class("simcl")


FINISHED = json.loads((Path(__file__).parent / "fingerprints_of_finished_runs.json").read_text())


@pytest.mark.parametrize("name", FINISHED)
def test_runs_that_were_finished_with_earlier_code_keep_their_names(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Expected are the names that the code of version 0.1.0 gave before a recipe became one model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "__version__", "2.15.0")
    monkeypatch.setattr(runs, "__version__", "0.1.0")
    Path("weights.bin").write_bytes(b"weights")
    config = PretrainingConfig(**FINISHED[name]["section"])
    found = {}
    for variant in config.named_variants:
        own = config.of_variant(variant)
        inputs = result_inputs(own, own.recipe(variant.method), "cpu", "0123456789abcdef.dir")
        for seed in variant.seeds or config.seeds:
            found[f"{variant.name}/{seed}"] = fingerprint(inputs, variant.name, seed, 1)
    assert found == FINISHED[name]["fingerprints"]


def test_neutral_fields_leave_a_run_its_name_and_others_do_not() -> None:
    def name(**changes: Any) -> str:
        config = _config(**changes)
        return fingerprint(result_inputs(config, config.recipe(), "cpu", "x"), "geokr", 0, 1)

    other = {"checkpoint_every": 7, "keep_checkpoints": 9, "examples_every": 3}
    assert set(other) == PretrainingConfig.without_effect
    assert name(**other) == name()
    for changes in ({"threads": 2}, {"log_every": 3}, {"learning_rate": 0.5}, {"steps": 7}):
        assert name(**changes) != name()


def test_methods_differ_from_the_recipe_in_what_they_are_named_for() -> None:
    ours = _config().recipe()

    def changed(method: Any) -> set[str]:
        other = _config().recipe(method)
        return {field for field in Recipe.model_fields if getattr(other, field) != getattr(ours, field)}

    assert changed("geokr") == set()
    assert changed("shuffled") == {"labels"}
    assert changed("majority") == {"labels"}
    assert changed("dense") == {"dense_weight"}
    assert changed("corrected") == {"correction"}
    assert changed("distilled") == {"land_cover_weight", "label_follows_crop"}
    assert changed("joint") == {"contrast_weight", "consistency", "transfer", "augmentation"}
    assert {"objective", "augmentation"} <= changed("simclr")
    assert _config().recipe("paper") == _config(preset="paper").recipe()


def test_what_makes_a_method_wins_over_the_file_and_the_file_over_the_rest() -> None:
    config = _config(transfer="teacher", crop_area_fraction=(0.5, 0.6), dense_weight=0.3)
    simclr = config.recipe("simclr")
    assert (simclr.transfer, simclr.dense_weight, simclr.consistency) == ("student", 0.0, "none")
    assert simclr.augmentation.crop_area_fraction == (0.5, 0.6)
    assert config.recipe("dense").dense_weight == 0.3
    contrasting = _config(contrast_weight=0.5)
    assert contrasting.recipe("geokr").contrast_weight == 0.5
    for baseline in ("simclr", "moco"):  # their own loss is all they have
        assert contrasting.recipe(baseline).contrast_weight == 0.0


class EntropyObjective(LandCoverObjective):
    """What a package of the user's own may bring: one more term, under a name that no column had before."""

    def __init__(self, recipe: Recipe, device: torch.device, *, distributed: bool = False) -> None:
        super().__init__(recipe, device, distributed=distributed)
        self.terms = (*self.terms, "sharpness")

    def losses(self, network: Any, student: Any, teacher: Any, inputs: Inputs, step: int) -> torch.Tensor:
        losses = super().losses(network, student, teacher, inputs, step)
        return torch.cat([losses, losses[:1].detach() * 2.0])

    @classmethod
    def code(cls, recipe: Recipe) -> Mapping[str, Any]:
        return {"entropy": 1}


ENTROPY = Method("Learns as `dense`, and measures one figure more.", {"dense_weight": 0.5}, {"objective": "toy:Toy"})


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that is installed beside the project: an entry point, a method and an objective."""
    module = types.ModuleType("toy")
    module.ENTROPY, module.Toy = ENTROPY, EntropyObjective  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toy", module)
    point = importlib.metadata.EntryPoint("entropy", "toy:ENTROPY", "geokr.methods")
    monkeypatch.setattr(recipes, "plugins", lambda group: {"entropy": point})
    monkeypatch.setattr(recipes, "load_plugin", lambda group, name: point.load())


@pytest.mark.usefixtures("toy")
def test_a_method_of_another_package_is_trained_to_the_end_with_its_own_column(data: LevirKR, tmp_path: Path) -> None:
    config = _config(steps=2, variants=("geokr", "entropy"))
    assert config.recipe("entropy").dense_weight == 0.5
    pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", RecordingReporter())
    rows = list(csv.DictReader((tmp_path / "out/history.csv").open()))
    assert list(rows[0])[-2:] == ["anchor_loss", "sharpness"]
    assert [(r["variant"], r["sharpness"] != "") for r in rows] == [("geokr", False)] * 2 + [("entropy", True)] * 2
    assert float(rows[-1]["sharpness"]) == pytest.approx(2 * float(rows[-1]["loss"]), rel=1e-6)
    assert (tmp_path / "out/entropy-seed0/dense_head.safetensors").is_file()
    assert result_inputs(config, config.recipe("entropy"), "cpu", "x")["config"]["entropy"] == 1
    with pytest.raises(ValueError, match="no method 'entropi'; did you mean 'entropy'"):
        _config(variants=("geokr", "entropi"))


@pytest.mark.parametrize(
    ("found", "complaint"),
    [
        (object(), "'entropy' is object, expected a `geokr_core.pretraining.recipes.Method`"),
        (Method("Wrong.", {"dense_wait": 1.0}), "method 'entropy': .*dense_wait"),
        (Method("Wrong.", required={"objective": "toy:None"}), "objective 'toy:None': expected one of land_cover"),
    ],
)
@pytest.mark.usefixtures("toy")
def test_a_wrong_method_of_another_package_is_refused_when_the_file_is_read(
    found: Any, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toy.ENTROPY", found)
    with pytest.raises(ValueError, match=complaint):
        _config(variants=("geokr", "entropy"))


# --- every method, killed and resumed -----------------------------------------------------------------------------------

CAREFUL = {
    "head_warmup_steps": 2, "warmup_steps": 1, "layer_decay": 0.7, "backbone_learning_rate_factor": 0.1,
    "anchor": "features", "anchor_weight": 1.0, "interpolation": 0.5, "gradient_clip_norm": 0.5,
}  # fmt: skip


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("majority", {}),
        ("dense", {}),
        ("corrected", {}),
        ("joint", {"accumulation_parts": 2}),
        ("simclr", {}),
        ("moco", {"memory_bank_size": 20}),
        ("geokr", {**CAREFUL, "accumulation_parts": 2, "deliver": "best"}),
    ],
)
def test_each_method_resumes_to_the_same_bytes(
    method: str, settings: dict[str, Any], data: LevirKR, tmp_path: Path
) -> None:
    variant = {"name": "judged", "method": method, "settings": settings}
    config = _config(variants=("geokr", variant), checkpoint_every=2)
    pretrain(config, data.folder, tmp_path / "straight", tmp_path / "straight-ck", RecordingReporter())
    with pytest.raises(Killed):
        pretrain(config, data.folder, tmp_path / "resumed", tmp_path / "ck", Killer("judged", 5))
    reporter = RecordingReporter()
    pretrain(config, data.folder, tmp_path / "resumed", tmp_path / "ck", reporter)
    assert any("judged-seed0: resuming after step 4" in message for message in reporter.infos)
    assert any("geokr-seed0: finished before" in message for message in reporter.infos)
    assert data_version(tmp_path / "straight") == data_version(tmp_path / "resumed")
    run = next(run for run in read_json(tmp_path / "straight/runs.json") if run["variant"] == "judged")
    assert run["method"] == method
    assert (run["validation_kl"] is None) == (method in {"simclr", "moco"})


def test_a_damaged_checkpoint_costs_some_steps_and_not_the_run(data: LevirKR, tmp_path: Path) -> None:
    config = _config(checkpoint_every=2)
    pretrain(config, data.folder, tmp_path / "straight", tmp_path / "straight-ck", RecordingReporter())
    with pytest.raises(Killed):
        pretrain(config, data.folder, tmp_path / "resumed", tmp_path / "ck", Killer("loss", 5))
    older, newer = sorted((tmp_path / "ck").rglob("checkpoint_*.safetensors"))
    newer.write_bytes(newer.read_bytes()[:1000])
    reporter = RecordingReporter()
    pretrain(config, data.folder, tmp_path / "resumed", tmp_path / "ck", reporter)
    assert any("passing over a checkpoint" in warning for warning in reporter.warnings)
    assert any("resuming after step 2" in message for message in reporter.infos)
    assert data_version(tmp_path / "straight") == data_version(tmp_path / "resumed")
    assert not older.exists()


# --- variants ---------------------------------------------------------------------------------------------------------


def test_variants_may_differ_in_single_settings_even_in_the_architecture(data: LevirKR, tmp_path: Path) -> None:
    variants = (
        "geokr",
        {"name": "small_r18", "settings": {"architecture": "resnet18", "steps": 1, "batch_size": 2}},
        {"name": "no_teacher", "settings": {"consistency": "none", "transfer": "student"}},
    )
    pretrain(_config(steps=2, variants=variants), data.folder, tmp_path / "out", tmp_path / "ck", RecordingReporter())
    runs = {run["variant"]: run for run in read_json(tmp_path / "out/runs.json")}
    assert [runs[name]["architecture"] for name in runs] == ["squeezenet1_1", "resnet18", "squeezenet1_1"]
    assert (runs["small_r18"]["num_steps"], runs["no_teacher"]["transfer"]) == (1, "student")
    assert read_json(tmp_path / "out/no_teacher-seed0/run.json")["config"]["consistency"] == "none"


def test_a_variant_may_have_seeds_of_its_own(data: LevirKR, tmp_path: Path) -> None:
    variants = ({"name": "few", "method": "majority", "seeds": [2]}, "geokr")
    runs = list(runs_of(_config(variants=variants, seeds=(0, 1)), data, tmp_path / "ck"))
    assert [run.name for run in runs] == ["few-seed2", "geokr-seed0", "geokr-seed1"]
    assert sum(run.is_first for run in runs) == 1


@pytest.mark.parametrize(
    ("variant", "complaint"),
    [
        ({"name": "a", "settings": {"stepps": 3}}, "stepps"),
        ({"name": "a", "settings": {"steps": "many"}}, "steps"),
        ({"name": "a", "settings": {"seeds": [1]}}, "stands beside"),
        ({"name": "geokr", "method": "moco"}, "name each variant once"),
        ({"name": "a", "method": "dino"}, "no method 'dino'; Known: geokr"),
        ({"name": "a", "method": "simclrr"}, "did you mean 'simclr'"),
        ("dens", "did you mean 'dense'"),
    ],
)
def test_a_wrong_variant_is_refused(variant: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        _config(variants=("geokr", variant))


# --- the label follows the crop -----------------------------------------------------------------------------------------


def test_the_label_is_that_of_the_crop_that_both_networks_see(data: LevirKR) -> None:
    run = _run(data)
    seen = _seen(run)
    assert seen.cells is not None
    assert seen.geometry.boxes is not None
    shares = cells_under(seen.cells, seen.geometry, 1)[:, 0, 0]
    torch.testing.assert_close(seen.labels, shares / shares.sum(dim=1, keepdim=True))
    own = run.labels[torch.from_numpy(reading(run)(1).rows)]
    assert float((seen.labels - own).abs().sum(dim=1).median()) > 0.05
    for one, other in zip(seen.student.flatten(1), seen.teacher.flatten(1), strict=True):
        assert float(torch.corrcoef(torch.stack([one, other]))[0, 1]) > 0.8


def test_where_the_label_stays_the_crop_keeps_the_chips_own(data: LevirKR) -> None:
    run = _run(data, label_follows_crop=False)
    seen = _seen(run)
    rows = torch.from_numpy(reading(run)(1).rows)
    assert seen.cells is None
    assert torch.equal(seen.labels, run.labels[rows])


def test_shuffled_labels_bring_the_land_cover_within_their_chip_along(data: LevirKR) -> None:
    run = _run(data, "shuffled", crop_area_fraction=(0.9, 1.0))
    batch = reading(run)(1)
    assert batch.cells is not None
    expected = data.cells(run.label_rows[batch.rows])
    assert expected is not None
    assert np.array_equal(batch.cells.numpy(), expected)
    assert not np.array_equal(expected, data.cells(batch.rows))


def test_a_crop_counts_less_the_less_of_it_is_known_and_the_fewer_cells_voted(tmp_path: Path) -> None:
    store = make_levir_kr(tmp_path, num_chips=64, unknown_columns=4)
    run = _run(store, batch_size=64, label_weighting=True)
    seen = _seen(run)
    assert seen.weights is not None
    assert seen.cells is not None
    assert seen.geometry.boxes is not None
    known = cells_under(seen.cells, seen.geometry, 1)[:, 0, 0].sum(dim=1)
    assert float(torch.corrcoef(torch.stack([known, seen.weights]))[0, 1]) > 0.98
    box = seen.geometry.boxes
    # Half of each chip is unknown; with 290 voting cells a chip, a crop's number of cells hardly matters.
    torch.testing.assert_close(seen.weights, run.weights[torch.from_numpy(reading(run)(1).rows)] * known / 0.5, rtol=0.05, atol=0.01)  # type: ignore[index]  # fmt: skip
    few = replace(run, num_cells=torch.full_like(run.num_cells, 4.0))
    area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
    ratio = _seen(few).weights / seen.weights  # type: ignore[operator]
    torch.testing.assert_close(ratio, area * 8 / (area * 4 + 4), rtol=0.05, atol=0.01)


def test_ground_of_which_nothing_is_known_teaches_nothing(tmp_path: Path) -> None:
    store = make_levir_kr(tmp_path, num_chips=24, unknown_columns=8)
    seen = _seen(_run(store))
    assert float(seen.labels.abs().max()) == 0.0
    assert bool(torch.isfinite(seen.labels).all())


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({}, r"label_follows_crop.*cells\.npy.*crop_area_fraction"),
        (
            {"variants": ("geokr", "dense"), "crop_area_fraction": (1.0, 1.0)},
            r"variant dense.*dense_weight.*cells\.npy",
        ),
    ],
)
def test_land_cover_within_chips_that_is_not_there_is_refused(
    changes: dict[str, Any], complaint: str, whole_chips: LevirKR, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        pretrain(_config(**changes), whole_chips.folder, tmp_path / "out", tmp_path / "ck", RecordingReporter())


@pytest.mark.parametrize(
    "changes", [{"crop_area_fraction": (1.0, 1.0)}, {"label_follows_crop": False}, {"preset": "paper"}]
)
def test_whole_chips_are_enough_for_what_asks_for_no_more(changes: dict[str, Any], whole_chips: LevirKR) -> None:
    assert _seen(_run(whole_chips, **changes)).cells is None


# --- majority, dense, corrected ---------------------------------------------------------------------------------------


def test_majority_is_the_largest_class_alone_and_nothing_where_nothing_is_known() -> None:
    found = largest_class(torch.tensor([[0.2, 0.5, 0.3], [0.0, 0.0, 0.0]]))
    assert found.tolist() == [[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]


def test_majority_learns_from_one_class_and_is_judged_by_the_proportions(data: LevirKR) -> None:
    run = _run(data, "majority", precision="fp32")
    state, seen = begin(run), _seen(run)
    losses = dict(zip(state.terms, losses_of(run, state, seen, 1).tolist(), strict=True))
    state.student.train()
    shares = state.student(seen.student).logits.log_softmax(dim=1)
    chosen = shares.gather(1, seen.labels.argmax(dim=1, keepdim=True))[:, 0]
    # Dropout is off here, so that both passes agree: SqueezeNet's sits in the classifier that was taken off.
    assert losses["supervised_loss"] == pytest.approx(float(-(chosen.detach() * seen.weights).mean()), rel=1e-4)
    assert np.array_equal(run.labels.numpy(), data.proportions)


def test_dense_loss_by_hand_counts_a_cell_as_much_as_it_is_known_in_any_company() -> None:
    logits = torch.log(torch.tensor([[[[0.5, 0.5], [0.9, 0.1]]]]))  # one row of two cells
    parts = torch.tensor([[[[1.0, 0.0], [0.0, 0.5]]]])  # the second cell is half unknown
    expected = -(np.log(0.5) + 0.5 * np.log(0.1)) / 2
    assert float(dense_loss(logits, parts, "per_sample")) == pytest.approx(expected, rel=1e-5)
    unknown = torch.zeros_like(parts)
    assert float(dense_loss(logits, unknown, "per_sample")) == 0.0
    both = dense_loss(torch.cat([logits, logits]), torch.cat([parts, unknown]), "per_sample")
    assert float(both) == pytest.approx(expected / 2, rel=1e-5)


def test_dense_asks_each_cell_for_the_land_cover_of_its_own_ground(data: LevirKR) -> None:
    run = _run(data, "dense", precision="fp32", batch_size=16)
    state, seen = begin(run), _seen(run)
    assert seen.cells is not None
    right = cells_under(seen.cells, seen.geometry, 4).permute(0, 3, 1, 2)
    found = {}
    for name, shares in (("right", right), ("mirrored", right.flip(3)), ("constant", right.mean((2, 3), keepdim=True))):
        maps = (shares.expand_as(right) + 1e-4).log()
        said = Outputs(torch.zeros(16, 512), seen.labels.log().clamp_min(-9.0), maps)
        losses = LandCoverObjective(run.recipe, torch.device("cpu")).losses(
            state.student, lambda _, s=said: s, lambda _, s=said: s, seen, 1
        )
        found[name] = float(losses[state.terms.index("dense_loss")])
    assert found["right"] < 0.7 * found["constant"]
    assert found["constant"] < found["mirrored"]


def test_dense_learns(data: LevirKR, tmp_path: Path) -> None:
    run = _run(data, "dense", steps=60, batch_size=16, learning_rate=2e-3, log_every=20)
    state, _ = train(replace(run, folder=tmp_path), RecordingReporter())
    first, last = (float(state.history[index]["dense_loss"] or 0) for index in (0, -1))
    assert last < 0.95 * first


def test_a_correction_starts_near_identity_and_its_rows_are_shares() -> None:
    correction = Correction(10)
    matrix = correction.matrix()
    torch.testing.assert_close(matrix.sum(dim=1), torch.ones(10))
    torch.testing.assert_close(matrix.diagonal(), torch.full((10,), 0.95), atol=1e-4, rtol=0)
    assert float(correction.identity_loss().detach()) == pytest.approx(0.05, abs=1e-4)
    with torch.no_grad():
        correction.scores.copy_(torch.eye(10) * 50)
    shares = torch.softmax(torch.randn(3, 10), dim=1)
    torch.testing.assert_close(correction(shares.log()).exp(), shares, atol=1e-5, rtol=0)


def test_aggregation_is_zero_for_even_ground_and_grows_with_mixture_and_raggedness() -> None:
    even = torch.zeros(1, 2, 4, 4)
    even[:, 0] = 50.0
    ragged = torch.where(torch.eye(2).repeat(2, 2).bool(), 50.0, -50.0).expand(1, 2, 4, 4).clone()
    ragged[:, 1] *= -1
    halves = torch.where(torch.arange(4) < 2, 50.0, -50.0).expand(1, 2, 4, 4).clone()
    halves[:, 1] *= -1
    found = [float(aggregation_loss(maps)) for maps in (even, halves, ragged, torch.zeros(1, 2, 4, 4))]
    assert found[0] == pytest.approx(0.0, abs=1e-6)
    assert found[0] < found[1] < found[2]
    assert found[3] == pytest.approx(np.log(2), rel=1e-4)


def test_a_correction_finds_the_confusion_of_the_product() -> None:
    """Ground of class 0 is reported as class 1 in 40 of 100 cases; nothing else is confused."""
    torch.manual_seed(0)
    truth = torch.randint(0, 3, (3000,))
    images = torch.eye(3)[truth] + 0.1 * torch.randn(3000, 3)
    reported = torch.where((truth == 0) & (torch.rand(3000) < 0.4), torch.ones_like(truth), truth)
    labels = torch.eye(3)[reported]
    head, correction = torch.nn.Linear(3, 3), Correction(3)
    parameters = [{"params": head.parameters(), "lr": 0.05}, {"params": correction.parameters(), "lr": 0.02}]
    optimiser = torch.optim.Adam(parameters)
    recipe = _config().recipe("corrected")
    for _ in range(600):
        logits = head(images)
        loss = -(labels * correction(logits)).sum(dim=1).mean()
        loss = loss + recipe.correction_identity_weight * correction.identity_loss()
        loss = loss + recipe.correction_aggregation_weight * aggregation_loss(logits[:, :, None, None])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    matrix = correction.matrix().detach()
    assert float(matrix[0, 1]) == pytest.approx(0.4, abs=0.08)
    assert float(matrix[1:].diagonal(1).min()) > 0.9
    clean = head(images).detach().softmax(dim=1)[truth == 0].mean(dim=0)
    assert float(clean[0]) > 0.9  # the network speaks of the ground, not of the product


def test_what_was_corrected_is_written_beside_the_weights(data: LevirKR, tmp_path: Path) -> None:
    config = _config(steps=2, variants=("geokr", "corrected"))
    pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", RecordingReporter())
    written = read_json(tmp_path / "out/corrected-seed0/correction.json")
    assert written["ground_classes"] == list(data.classes)
    matrix = np.array(written["matrix"])
    assert matrix.shape == (len(data.classes),) * 2
    np.testing.assert_allclose(matrix.sum(axis=1), 1.0, atol=1e-4)
    assert not (tmp_path / "out/geokr-seed0/correction.json").exists()


# --- contrastive ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["simclr", "moco"])
def test_contrastive_views_are_crops_of_their_own(method: str, data: LevirKR) -> None:
    seen = _seen(_run(data, method))
    pairs = zip(seen.student.flatten(1), seen.teacher.flatten(1), strict=True)
    alike = [float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in pairs]
    assert np.median(alike) < 0.8


@pytest.mark.parametrize("method", ["simclr", "moco"])
def test_contrastive_methods_read_no_land_cover(method: str, data: LevirKR) -> None:
    run = _run(data, method, precision="fp32")
    other = replace(run, labels=torch.rand_like(run.labels), weights=None)
    gradients = []
    for one in (run, other):
        torch.manual_seed(0)
        state = begin(one)
        loop.gradients(one, state, reading(one)(1), one.normalisation())
        gradients.append([p.grad for p in state.student.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_simclr_learns_to_tell_chips_apart(data: LevirKR, tmp_path: Path) -> None:
    settings = {"architecture": "resnet18", "crop_area_fraction": (0.5, 1.0), "learning_rate": 2e-3}
    run = _run(data, "simclr", steps=60, batch_size=16, log_every=15, **settings)
    state, _ = train(replace(run, folder=tmp_path), RecordingReporter())
    guessing = np.log(2 * 16 - 1)  # which of the 31 other views is it
    assert float(state.history[-1]["loss"] or 0) < guessing - 0.1


def test_joint_learns_land_cover_and_tells_chips_apart(data: LevirKR, tmp_path: Path) -> None:
    settings = {"architecture": "resnet18", "learning_rate": 2e-3, "crop_area_fraction": (1.0, 1.0)}
    run = replace(_run(data, "joint", steps=60, batch_size=16, log_every=15, **settings), folder=tmp_path)
    state, _ = train(run, RecordingReporter())
    first, last = state.history[0], state.history[-1]
    for term in ("contrast_loss", "train_kl"):
        assert (last[term] or 0) < 0.8 * (first[term] or 0), term


def test_joint_holds_each_of_two_crops_to_the_land_cover_of_its_own_ground(data: LevirKR) -> None:
    run = _run(data, "joint")
    shown, batch = _seen(run), reading(run)(1)
    num_chips = len(batch.rows)
    assert (len(shown.student), len(shown.labels)) == (2 * num_chips, 2 * num_chips)
    assert shown.geometry.boxes is not None
    assert not torch.equal(*shown.geometry.boxes.chunk(2)), "both views show the same crop"
    assert batch.cells is not None
    expected = cells_under(batch.cells.repeat(2, 1, 1, 1), shown.geometry, 1)[:, 0, 0]
    torch.testing.assert_close(shown.labels, expected / expected.sum(dim=1, keepdim=True))
    network = Network("squeezenet1_1", 3, len(data.classes), run.recipe).eval()
    terms = LandCoverObjective(run.recipe, torch.device("cpu")).losses(network, network, network, shown, 1)
    alone = LandCoverObjective(_config(consistency="none").recipe(), torch.device("cpu")).losses(
        network, network, network, shown, 1
    )
    torch.testing.assert_close(terms[1], alone[1])
    torch.testing.assert_close(terms[0], alone[0] + run.recipe.contrast_weight * terms[-1])


def test_moco_compares_with_what_it_remembers(data: LevirKR) -> None:
    run = _run(data, "moco", memory_bank_size=20, precision="fp32")
    torch.manual_seed(0)
    state = begin(run)
    before = state.objective.state()["bank"].clone()
    loop.gradients(run, state, reading(run)(1), run.normalisation())
    changed = (state.objective.state()["bank"] != before).any(dim=1)
    assert changed.tolist() == [True] * 8 + [False] * 12


def test_the_contrastive_library_calls_nobody() -> None:
    script = """
import socket
def refuse(*arguments, **options): raise SystemExit("called out")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import torch
from lightly.loss import NTXentLoss
from lightly.models.modules.heads import MoCoProjectionHead, SimCLRProjectionHead
loss = NTXentLoss(0.2, memory_bank_size=(16, 8))
loss(torch.randn(4, 8, requires_grad=True), torch.randn(4, 8)).backward()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-1000:]


# --- starting from given weights ----------------------------------------------------------------------------------------


@pytest.fixture
def given(tmp_path: Path) -> Path:
    torch.manual_seed(5)
    save_weights(build("squeezenet1_1"), tmp_path / "given.safetensors")
    return tmp_path / "given.safetensors"


def test_while_the_head_warms_up_the_backbone_stands_still(given: Path, data: LevirKR, tmp_path: Path) -> None:
    run = replace(_run(data, steps=4, head_warmup_steps=3, warmup_steps=0, initial_weights=given), folder=tmp_path)
    start = load_file(given)
    state = begin(run)
    read, normalisation = reading(run), run.normalisation()
    for step in range(1, 5):
        losses = loop.gradients(run, state, read(step), normalisation)
        head = state.student.head.weight.detach().clone()
        update(run, state, losses)
        assert not torch.equal(state.student.head.weight, head)
        same = all(torch.equal(p, start[key]) for key, p in state.student.backbone.named_parameters())
        assert same == (step <= 3)
    assert learning_rate(3, run) == run.recipe.learning_rate


def test_too_long_a_warm_up_is_refused() -> None:
    with pytest.raises(ValueError, match="head_warmup_steps 5 and warmup_steps 3 are more than the 6 steps"):
        _config(head_warmup_steps=5, warmup_steps=3)


def test_earlier_stages_learn_more_slowly() -> None:
    recipe = _config(layer_decay=0.5, backbone_learning_rate_factor=0.2).recipe()
    network = Network("resnet18", 3, 10, recipe)
    rates = {id(p): group["rate_factor"] for group in parameter_groups(network, recipe) for p in group["params"]}  # type: ignore[attr-defined]
    of = {name: rates[id(p)] for name, p in network.named_parameters()}
    assert len(of) == len(rates)
    assert of["head.weight"] == 1.0
    assert of["backbone.layer4.0.conv1.weight"] == pytest.approx(0.2)
    assert of["backbone.layer3.0.conv1.weight"] == pytest.approx(0.1)
    assert of["backbone.conv1.weight"] == pytest.approx(0.2 / 16)


@pytest.mark.parametrize("anchor", ["weights", "features", "stages", "cells"])
def test_an_anchor_holds_the_backbone_to_its_start(anchor: str, given: Path, data: LevirKR, tmp_path: Path) -> None:
    start, distances = load_file(given), []
    for weight in (0.0, 100.0):
        changes = {"steps": 12, "learning_rate": 1e-3, "initial_weights": given, "optimiser": None}
        changes.pop("optimiser")
        run = _run(data, anchor=anchor, anchor_weight=weight, weight_decay=0.0, **changes)
        run = replace(run, folder=tmp_path / f"{weight}")
        state, _ = train(run, RecordingReporter())
        batch = _seen(run)
        with torch.no_grad():
            if anchor == "weights":
                pairs = state.student.backbone.named_parameters()
                distances.append(sum(float((p - start[key]).square().sum()) for key, p in pairs))
            else:
                first = build("squeezenet1_1")
                first.load_state_dict(start)
                mine, theirs = (stages(network, batch.student) for network in (state.student.backbone, first))
                if anchor in ("features", "cells"):
                    mine, theirs = mine[-1:], theirs[-1:]
                distances.append(sum(_angle(a, b) for a, b in zip(mine, theirs, strict=True)))
        assert ("anchor_loss" in state.terms) == (weight > 0)
    assert distances[1] < 0.7 * distances[0]


def _angle(mine: torch.Tensor, theirs: torch.Tensor) -> float:
    """1 − cosine of pooled stages."""
    return float(1 - torch.cosine_similarity(mine.mean(dim=(2, 3)), theirs.mean(dim=(2, 3))).mean())


def test_the_distance_of_stages_is_in_units_of_each_channel() -> None:
    torch.manual_seed(0)
    first = torch.randn(64, 3) * torch.tensor([1.0, 100.0, 0.0])  # the last channel never fires
    moved = first + torch.tensor([0.5, 50.0, 0.0]) * torch.sign(torch.randn(64, 3))
    units = channel_variance([[first[:30]], [first[30:]]])
    alone = [distance([moved[:, k : k + 1]], [first[:, k : k + 1]], [units[0][k]]) for k in range(2)]

    assert distance([first, first], [first, first], units * 2) == 0.0
    assert alone[1] == pytest.approx(0.25, rel=0.3)
    assert alone[0] == pytest.approx(0.25 / (1 + 0.01 * 10_000 / 3), rel=0.5)  # hardly varies beside the other one
    assert distance([first[:, 2:] + 1e-3], [first[:, 2:]], [units[0][2:]]) < 1e-6
    parts = torch.stack([distance([moved[k::2]], [first[k::2]], units) for k in range(2)])
    assert parts.mean() == pytest.approx(float(distance([moved], [first], units)))  # whatever a batch is cut into


@pytest.mark.parametrize("architecture", ["resnet18", "squeezenet1_1"])
def test_an_anchored_backbone_begins_at_no_distance_from_its_start(architecture: str, data: LevirKR) -> None:
    """BatchNorm in training and at rest say different things of the same images: that is no distance of weights."""
    run = _run(data, architecture=architecture, precision="fp32", anchor="stages", anchor_weight=1.0)
    torch.manual_seed(1)
    state = begin(run)
    before = {key: value.clone() for key, value in (state.start or torch.nn.Identity()).state_dict().items()}
    losses = losses_of(run, state, _seen(run), 1)
    anchor = losses[state.terms.index("anchor_loss")]
    assert anchor.item() == pytest.approx(0.0, abs=1e-6)
    assert state.start is not None
    for key, value in state.start.state_dict().items():
        assert key.endswith("num_batches_tracked") or torch.equal(value, before[key]), key


def test_an_enlarged_start_sees_the_chip_enlarged(data: LevirKR) -> None:
    run = _run(data, precision="fp32", anchor="cells", anchor_weight=1.0, anchor_zoom=2.0)
    state, images = begin(run), _seen(run).student
    assert state.start is not None
    said = maps_of(state.start, images, run.runtime.autocast(), 2.0)
    larger = torch.nn.functional.interpolate(images, size=64, mode="bilinear")
    assert said[-1].shape[2:] == stages(state.start, larger)[-1].shape[2:]
    torch.testing.assert_close(said[-1], stages(state.start, larger)[-1])
    assert said[-1].shape[2] > stages(state.start, images)[-1].shape[2]
    assert not torch.allclose(
        state.variances[0], begin(replace(run, recipe=run.recipe.model_copy(update={"anchor_zoom": 1.0}))).variances[0]
    )


def test_cells_are_averaged_over_the_ground_of_the_coarser_map() -> None:
    fine = torch.arange(2 * 3 * 4 * 4, dtype=torch.float32).view(2, 3, 4, 4)
    (coarse,) = last_stage_cells([fine], (2, 2))
    assert coarse.shape == (2 * 2 * 2, 3)
    torch.testing.assert_close(coarse[1], fine[0, :, :2, 2:].mean(dim=(1, 2)))  # first chip, first row, second column
    assert torch.equal(last_stage_cells([fine])[0][1], fine[0, :, 0, 1])


def test_a_backbone_learns_to_say_of_a_chip_what_its_start_says_of_it_enlarged(
    given: Path, data: LevirKR, tmp_path: Path
) -> None:
    settings = {"initial_weights": given, "preset": "enlarged", "steps": 30, "learning_rate": 1e-3, "precision": "fp32"}
    run = replace(_run(data, "distilled", **settings), folder=tmp_path)
    state, _ = train(run, RecordingReporter())
    curve = [float(point["anchor_loss"] or 0.0) for point in state.history]
    assert np.mean(curve[-5:]) < 0.7 * np.mean(curve[:5])


def test_distilled_knows_no_land_cover(given: Path, data: LevirKR, tmp_path: Path) -> None:
    run = _run(data, "distilled", initial_weights=given, preset="enlarged", precision="fp32")
    other = replace(run, labels=run.labels.flip(0), folder=tmp_path / "other")
    trained = [
        train(each, RecordingReporter())[0].student.backbone.state_dict()
        for each in (replace(run, folder=tmp_path / "one"), other)
    ]
    first, second = trained
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(value, load_file(given)[key]) for key, value in first.items())


def test_a_distilled_run_has_no_kl(given: Path, data: LevirKR, tmp_path: Path) -> None:
    config = _config(variants=("geokr", "distilled"), initial_weights=given, preset="enlarged")
    reporter = RecordingReporter()
    pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", reporter)
    figures = {run["method"]: run for run in read_json(tmp_path / "out" / "runs.json")}
    assert figures["distilled"]["validation_kl"] is None
    assert figures["geokr"]["validation_kl"] is not None


def test_what_would_teach_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="variant distilled: `land_cover_weight` is 0 and nothing stands beside it"):
        _config(variants=("geokr", "distilled"))


@pytest.mark.parametrize("settings", [{"anchor": "weights", "anchor_weight": 1.0}, {"anchor": "cells"}])
def test_a_zoom_that_would_do_nothing_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="`anchor_zoom` 2 has nothing to enlarge"):
        _config(anchor_zoom=2.0, **settings)


def test_enlarged_holds_its_cells_to_the_enlarged_start_and_goes_half_the_way_back(given: Path) -> None:
    with pytest.raises(ValueError, match="`preset: enlarged` trains given weights further"):
        _config(preset="enlarged")
    recipe = _config(preset="enlarged", initial_weights=given, steps=200).recipe()
    assert (recipe.anchor, recipe.anchor_zoom, recipe.interpolation) == ("cells", 2.0, 0.5)
    assert recipe.head_warmup_steps + recipe.warmup_steps < 200


def test_continued_needs_something_to_go_on_from_and_holds_on_to_it(given: Path) -> None:
    with pytest.raises(ValueError, match="initial_weights"):
        _config(preset="continued")
    recipe = _config(preset="continued", initial_weights=given, steps=200).recipe()
    assert (recipe.head_warmup_steps, recipe.anchor, recipe.anchor_weight) == (30, "stages", 1.0)
    assert recipe.head_warmup_steps + recipe.warmup_steps < 200
    assert recipe.backbone_learning_rate_factor < 1
    assert _config(preset="continued", initial_weights=given).recipe("paper") == _config().recipe("paper")


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_interpolated_weights_lie_between_start_and_trained(
    share: float, given: Path, data: LevirKR, tmp_path: Path
) -> None:
    weights = []
    for interpolation in (share, 1.0):
        config = _config(steps=3, initial_weights=given, interpolation=interpolation)
        pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", RecordingReporter())
        weights.append(load_file(tmp_path / "out/geokr-seed0/backbone.safetensors"))
    for key, first in load_file(given).items():
        torch.testing.assert_close(weights[0][key], first + share * (weights[1][key] - first), atol=1e-6, rtol=1e-5)
    assert any(not torch.equal(weights[1][key], first) for key, first in load_file(given).items())


# --- the engine -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["geokr", "dense"])
def test_parts_of_a_batch_add_up_to_the_whole(method: str, tmp_path: Path) -> None:
    data = make_levir_kr(tmp_path / "store", num_chips=24, unknown_columns=3)
    found = []
    for parts in (1, 3):
        run = _run(data, method, precision="fp32", accumulation_parts=parts)
        torch.manual_seed(0)
        state = begin(run)
        losses = loop.gradients(run, state, reading(run)(1), run.normalisation())
        found.append((losses, [p.grad for p in state.student.parameters()]))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-6)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_more_parts_than_chips_are_refused() -> None:
    with pytest.raises(ValueError, match="4 chip.* cannot be cut into 5 parts; choose at most 4"):
        _config(batch_size=4, accumulation_parts=5)


def test_the_best_by_a_figure_that_is_not_measured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="variant simclr: `deliver: best` chooses by the KL on held-out chips"):
        _config(variants=("geokr", "simclr"), deliver="best")
    none_held_out = make_levir_kr(tmp_path, num_chips=16, validation_fraction=0.0)
    with pytest.raises(
        ConfigError, match=r"`deliver: best` chooses .* holds none out \(`levir_kr.validation_fraction`\)"
    ):
        list(runs_of(_config(deliver="best"), none_held_out, tmp_path / "ck"))


# Two are the student and the teacher; `auto` compiles on GPUs alone.
@pytest.mark.parametrize(("compile_", "wanted"), [("on", 2), ("off", 0), ("auto", 0)])
def test_only_who_asks_for_it_is_compiled(
    compile_: str, wanted: int, data: LevirKR, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda module: compiled.append(module) or module)
    run = _run(data, compile=compile_)
    state = begin(run)
    assert torch.isfinite(losses_of(run, state, _seen(run), 1)).all()
    assert len(compiled) == wanted


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler on PATH")
def test_compiled_networks_learn_the_same_and_their_teacher_follows(data: LevirKR) -> None:
    curves: dict[str, torch.Tensor] = {}
    for compile_ in ("off", "on"):
        torch.manual_seed(0)
        run = _run(data, compile=compile_, precision="fp32", architecture="squeezenet1_1")
        state, seen = begin(run), _seen(run)
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
        method: LandCoverObjective(_run(data, method).recipe, torch.device("cpu")).terms
        for method in ("geokr", "joint")
    }
    assert "teacher_entropy" in names["geokr"]
    assert "student_entropy" not in names["geokr"]
    assert "student_entropy" in names["joint"]
    assert "teacher_entropy" not in names["joint"]


def test_gradients_are_clipped_to_the_norm_asked_for(data: LevirKR) -> None:
    run = _run(data, precision="fp32", gradient_clip_norm=0.01)
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
        config = _config(**settings, deliver=deliver)
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
    config = _config(steps=4, examples_every=2)
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
