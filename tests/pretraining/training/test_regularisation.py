"""Training from given weights: warm-ups, anchors, the enlarged start and the way back."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from short_runs import inputs_at, short_config, short_run

from geokr_core.levir_kr.dataset import LevirKR
from geokr_core.networks.network import build, stages
from geokr_core.networks.weights import save_weights
from geokr_core.pretraining.network import Network
from geokr_core.pretraining.pretrain import pretrain
from geokr_core.pretraining.training import loop
from geokr_core.pretraining.training.loop import (
    learning_rate,
    losses_of,
    reading,
    train,
    update,
)
from geokr_core.pretraining.training.regularisation import channel_variance, distance, last_stage_cells, maps_of
from geokr_core.pretraining.training.schedules import parameter_groups
from geokr_core.pretraining.training.state import begin
from geokr_core.step.files import read_json
from geokr_core.step.reporter import RecordingReporter


@pytest.fixture
def given(tmp_path: Path) -> Path:
    torch.manual_seed(5)
    save_weights(build("squeezenet1_1"), tmp_path / "given.safetensors")
    return tmp_path / "given.safetensors"


def test_while_the_head_warms_up_the_backbone_stands_still(given: Path, data: LevirKR, tmp_path: Path) -> None:
    run = replace(short_run(data, steps=4, head_warmup_steps=3, warmup_steps=0, initial_weights=given), folder=tmp_path)
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
        short_config(head_warmup_steps=5, warmup_steps=3)


def test_earlier_stages_learn_more_slowly() -> None:
    recipe = short_config(layer_decay=0.5, backbone_learning_rate_factor=0.2).recipe()
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
        run = short_run(data, anchor=anchor, anchor_weight=weight, weight_decay=0.0, **changes)
        run = replace(run, folder=tmp_path / f"{weight}")
        state, _ = train(run, RecordingReporter())
        batch = inputs_at(run)
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
    run = short_run(data, architecture=architecture, precision="fp32", anchor="stages", anchor_weight=1.0)
    torch.manual_seed(1)
    state = begin(run)
    before = {key: value.clone() for key, value in (state.start or torch.nn.Identity()).state_dict().items()}
    losses = losses_of(run, state, inputs_at(run), 1)
    anchor = losses[state.terms.index("anchor_loss")]
    assert anchor.item() == pytest.approx(0.0, abs=1e-6)
    assert state.start is not None
    for key, value in state.start.state_dict().items():
        assert key.endswith("num_batches_tracked") or torch.equal(value, before[key]), key


def test_an_enlarged_start_sees_the_chip_enlarged(data: LevirKR) -> None:
    run = short_run(data, precision="fp32", anchor="cells", anchor_weight=1.0, anchor_zoom=2.0)
    state, images = begin(run), inputs_at(run).student
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
    run = replace(short_run(data, "distilled", **settings), folder=tmp_path)
    state, _ = train(run, RecordingReporter())
    curve = [float(point["anchor_loss"] or 0.0) for point in state.history]
    assert np.mean(curve[-5:]) < 0.7 * np.mean(curve[:5])


def test_distilled_knows_no_land_cover(given: Path, data: LevirKR, tmp_path: Path) -> None:
    run = short_run(data, "distilled", initial_weights=given, preset="enlarged", precision="fp32")
    other = replace(run, labels=run.labels.flip(0), folder=tmp_path / "other")
    trained = [
        train(each, RecordingReporter())[0].student.backbone.state_dict()
        for each in (replace(run, folder=tmp_path / "one"), other)
    ]
    first, second = trained
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(value, load_file(given)[key]) for key, value in first.items())


def test_a_distilled_run_has_no_kl(given: Path, data: LevirKR, tmp_path: Path) -> None:
    config = short_config(variants=("geokr", "distilled"), initial_weights=given, preset="enlarged")
    reporter = RecordingReporter()
    pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", reporter)
    figures = {run["method"]: run for run in read_json(tmp_path / "out" / "runs.json")}
    assert figures["distilled"]["validation_kl"] is None
    assert figures["geokr"]["validation_kl"] is not None


def test_what_would_teach_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="variant distilled: `land_cover_weight` is 0 and nothing stands beside it"):
        short_config(variants=("geokr", "distilled"))


@pytest.mark.parametrize("settings", [{"anchor": "weights", "anchor_weight": 1.0}, {"anchor": "cells"}])
def test_a_zoom_that_would_do_nothing_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="`anchor_zoom` 2 has nothing to enlarge"):
        short_config(anchor_zoom=2.0, **settings)


def test_enlarged_holds_its_cells_to_the_enlarged_start_and_goes_half_the_way_back(given: Path) -> None:
    with pytest.raises(ValueError, match="`preset: enlarged` trains given weights further"):
        short_config(preset="enlarged")
    recipe = short_config(preset="enlarged", initial_weights=given, steps=200).recipe()
    assert (recipe.anchor, recipe.anchor_zoom, recipe.interpolation) == ("cells", 2.0, 0.5)
    assert recipe.head_warmup_steps + recipe.warmup_steps < 200


def test_continued_needs_something_to_go_on_from_and_holds_on_to_it(given: Path) -> None:
    with pytest.raises(ValueError, match="initial_weights"):
        short_config(preset="continued")
    recipe = short_config(preset="continued", initial_weights=given, steps=200).recipe()
    assert (recipe.head_warmup_steps, recipe.anchor, recipe.anchor_weight) == (30, "stages", 1.0)
    assert recipe.head_warmup_steps + recipe.warmup_steps < 200
    assert recipe.backbone_learning_rate_factor < 1
    assert short_config(preset="continued", initial_weights=given).recipe("paper") == short_config().recipe("paper")


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_interpolated_weights_lie_between_start_and_trained(
    share: float, given: Path, data: LevirKR, tmp_path: Path
) -> None:
    weights = []
    for interpolation in (share, 1.0):
        config = short_config(steps=3, initial_weights=given, interpolation=interpolation)
        pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", RecordingReporter())
        weights.append(load_file(tmp_path / "out/geokr-seed0/backbone.safetensors"))
    for key, first in load_file(given).items():
        torch.testing.assert_close(weights[0][key], first + share * (weights[1][key] - first), atol=1e-6, rtol=1e-5)
    assert any(not torch.equal(weights[1][key], first) for key, first in load_file(given).items())
