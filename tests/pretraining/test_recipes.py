"""A recipe is declared once; methods and variants differ in what their names say, and others can bring theirs."""

import csv
import importlib.metadata
import json
import sys
import types
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from short_runs import short_config

from geokr_core.errors import ConfigError
from geokr_core.levir_kr.dataset import LevirKR
from geokr_core.networks.strength import Strength
from geokr_core.pretraining import recipes, runs
from geokr_core.pretraining.config import PretrainingConfig, RunSettings
from geokr_core.pretraining.objective import Inputs
from geokr_core.pretraining.objectives.land_cover import LandCoverObjective
from geokr_core.pretraining.pretrain import pretrain
from geokr_core.pretraining.recipe import OBJECTIVES, Choices, Recipe, objective_class
from geokr_core.pretraining.recipes import METHODS, Method
from geokr_core.pretraining.runs import fingerprint, result_inputs, runs_of
from geokr_core.step.files import read_json
from geokr_core.step.reporter import RecordingReporter


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
        "objective",
        "optimiser",
        "learning_rate_schedule",
        "ramp_steps",
        "augmentation",
    }


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
    """Expected are the names that the code of version 0.1.0 gave before a recipe became one model.

    `precision` was bf16 by default then; now it is that by default on a CPU that computes in bf16.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setattr(torch, "__version__", "2.15.0")
    monkeypatch.setattr(runs, "__version__", "0.1.0")
    Path("weights.bin").write_bytes(b"weights")
    # What was `preset: geokr` then is `averaged_teacher` now.
    section = {**FINISHED[name]["section"]}
    if section.get("preset", "geokr") == "geokr":
        section["preset"] = "averaged_teacher"
    config = PretrainingConfig(**section)
    found, expected = {}, dict(FINISHED[name]["fingerprints"])
    for variant in config.named_variants:
        own = config.of_variant(variant)
        recipe = own.recipe(variant.method)
        inputs = result_inputs(own, recipe, "cpu", "0123456789abcdef.dir")
        for seed in variant.seeds or config.seeds:
            key, digest = f"{variant.name}/{seed}", fingerprint(inputs, variant.name, seed, 1)
            # Trained again: cells were asked of the last stage alone, and a short run of `paper` hardly moved its teacher.
            if recipe.dense_weight > 0 or recipe.teacher_schedule == "released_scaled":
                assert digest != expected.pop(key)
            else:
                found[key] = digest
    assert found == expected


def test_a_run_is_named_by_the_precision_that_it_was_computed_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def name(precision: str) -> str:
        config = short_config(precision=precision)
        return fingerprint(result_inputs(config, config.recipe(), "cpu", "x"), "geokr", 0, 1)

    for native in ("bf16", "fp32"):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda native=native: {"avx512_bf16": native == "bf16"})
        assert name("auto") == name(native)
    assert name("bf16") != name("fp32")


def test_neutral_fields_leave_a_run_its_name_and_others_do_not() -> None:
    def name(**changes: Any) -> str:
        config = short_config(**changes)
        return fingerprint(result_inputs(config, config.recipe(), "cpu", "x"), "geokr", 0, 1)

    other = {"checkpoint_every": 7, "keep_checkpoints": 9, "examples_every": 3, "runs_at_once": 2}
    assert set(other) == PretrainingConfig.without_effect
    assert name(**other) == name()
    for changes in ({"threads": 2}, {"log_every": 3}, {"learning_rate": 0.5}, {"steps": 7}):
        assert name(**changes) != name()


def _changed(method: str, preset: str) -> set[str]:
    """Fields in which a method differs from the preset that it is laid over."""
    ours, other = short_config(preset=preset).recipe(), short_config(preset=preset).recipe(method)
    return {field for field in Recipe.model_fields if getattr(other, field) != getattr(ours, field)}


def test_methods_differ_from_the_recommended_recipe_in_what_they_are_named_for() -> None:
    ours = short_config(preset="geokr").recipe()
    assert PretrainingConfig().preset == "geokr"
    assert (ours.land_cover_weight, ours.dense_weight, ours.contrast_weight) == (0.0, 5.0, 1.0)
    assert (ours.teacher_predicts, ours.transfer, ours.label_follows_crop) == (False, "student", True)
    assert _changed("geokr", "geokr") == set()
    assert _changed("shuffled", "geokr") == {"labels"}
    assert _changed("dense", "geokr") == {"dense_weight", "contrast_weight"}, "the same views"
    assert _changed("proportions", "geokr") == _changed("dense", "geokr") | {"land_cover_weight"}
    assert _changed("joint", "geokr") == {"land_cover_weight", "dense_weight", "augmentation"}
    assert _changed("majority", "geokr") == {"labels", "land_cover_weight", "dense_weight"}
    assert _changed("corrected", "geokr") == {"correction", "land_cover_weight", "dense_weight"}
    assert short_config().recipe("simclr").augmentation.grey_fraction == 0.2, (
        "the baseline has the views it was published with"
    )


def test_methods_over_the_averaged_teacher_differ_in_what_they_are_named_for() -> None:
    def changed(method: str) -> set[str]:
        return _changed(method, "averaged_teacher")

    assert changed("geokr") == set()
    assert changed("shuffled") == changed("majority") == {"labels"}
    assert changed("dense") == {"dense_weight", "land_cover_weight", "consistency", "transfer"}
    assert changed("proportions") == {"consistency", "transfer"}
    assert changed("corrected") == {"correction"}
    assert changed("distilled") == {"land_cover_weight", "label_follows_crop"}
    assert changed("joint") == {"contrast_weight", "consistency", "transfer", "augmentation"}
    assert {"objective", "augmentation"} <= changed("simclr")
    assert short_config().recipe("paper") == short_config(preset="paper").recipe()


@pytest.mark.parametrize("method", ["dense", "proportions", "joint", "simclr"])
def test_methods_that_set_all_of_their_losses_are_the_same_over_either_preset(method: str) -> None:
    one, other = (short_config(preset=preset).recipe(method) for preset in ("geokr", "averaged_teacher"))
    # Weights of losses that are off, and the schedule of a teacher that is not asked, are all that may differ.
    assert {name for name in Recipe.model_fields if getattr(one, name) != getattr(other, name)} <= {"land_cover_weight"}
    assert method == "simclr" or one == other


def test_what_makes_a_method_wins_over_the_file_and_the_file_over_the_rest() -> None:
    config = short_config(transfer="teacher", crop_area_fraction=(0.5, 0.6), dense_weight=0.3)
    simclr = config.recipe("simclr")
    assert (simclr.transfer, simclr.dense_weight, simclr.consistency) == ("student", 0.0, "none")
    assert simclr.augmentation.crop_area_fraction == (0.5, 0.6)
    assert config.recipe("dense").dense_weight == 0.3
    plain = short_config(jitter=0.1, grey_fraction=0.0).recipe("simclr").augmentation
    assert (plain.brightness, plain.contrast, plain.saturation, plain.grey_fraction) == (0.1, 0.1, 0.1, 0.0)
    control = short_config(labels="shuffled")
    assert (control.recipe("joint").labels, control.recipe("majority").labels) == ("shuffled", "majority")
    contrasting = short_config(contrast_weight=0.5)
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
    config = short_config(steps=2, variants=("geokr", "entropy"))
    assert config.recipe("entropy").dense_weight == 0.5
    pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", RecordingReporter())
    rows = list(csv.DictReader((tmp_path / "out/history.csv").open()))
    assert list(rows[0])[-2:] == ["anchor_loss", "sharpness"]
    assert [(r["variant"], r["sharpness"] != "") for r in rows] == [("geokr", False)] * 2 + [("entropy", True)] * 2
    assert float(rows[-1]["sharpness"]) == pytest.approx(2 * float(rows[-1]["loss"]), rel=1e-6)
    assert "of_stages.3.weight" in load_file(tmp_path / "out/entropy-seed0/head.safetensors")
    assert result_inputs(config, config.recipe("entropy"), "cpu", "x")["config"]["entropy"] == 1
    with pytest.raises(ValueError, match="no method 'entropi'; did you mean 'entropy'"):
        short_config(variants=("geokr", "entropi"))


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
        short_config(variants=("geokr", "entropy"))


def test_variants_may_differ_in_single_settings_even_in_the_architecture(data: LevirKR, tmp_path: Path) -> None:
    variants = (
        "geokr",
        {"name": "small_r18", "settings": {"architecture": "resnet18", "steps": 1, "batch_size": 2}},
        {"name": "no_teacher", "settings": {"consistency": "none", "transfer": "student"}},
    )
    pretrain(
        short_config(steps=2, variants=variants), data.folder, tmp_path / "out", tmp_path / "ck", RecordingReporter()
    )
    runs = {run["variant"]: run for run in read_json(tmp_path / "out/runs.json")}
    assert [runs[name]["architecture"] for name in runs] == ["squeezenet1_1", "resnet18", "squeezenet1_1"]
    assert (runs["small_r18"]["num_steps"], runs["no_teacher"]["transfer"]) == (1, "student")
    assert read_json(tmp_path / "out/no_teacher-seed0/run.json")["config"]["consistency"] == "none"


def test_a_variant_may_have_seeds_of_its_own(data: LevirKR, tmp_path: Path) -> None:
    variants = ({"name": "few", "method": "majority", "seeds": [2]}, "geokr")
    runs = list(runs_of(short_config(variants=variants, seeds=(0, 1)), data, tmp_path / "ck"))
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
        short_config(variants=("geokr", variant))


@pytest.mark.parametrize("variant", ["simclr", {"name": "simclr"}, {"name": "simclr", "settings": {"jitter": 0.3}}])
def test_a_variant_that_is_named_after_a_method_trains_it(variant: object) -> None:
    config = PretrainingConfig.model_validate({"variants": ["geokr", variant, {"name": "mine"}]})

    assert [one.method for one in config.named_variants] == ["geokr", "simclr", "geokr"]
    other = PretrainingConfig.model_validate({"variants": ["geokr", {"name": "simclr", "method": "joint"}]})
    assert other.named_variants[1].method == "joint"
