"""Majority, dense and corrected learn from the land cover that they are named for."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from short_runs import inputs_at, short_config, short_run
from torch.nn import functional as F

from geokr_core.levir_kr.dataset import LevirKR
from geokr_core.networks.augmentation import cells_under
from geokr_core.pretraining.correction import Correction, aggregation_loss
from geokr_core.pretraining.losses import dense_loss
from geokr_core.pretraining.network import CellHead, Outputs, shares_of_chip
from geokr_core.pretraining.objectives.land_cover import LandCoverObjective, largest_class
from geokr_core.pretraining.pretrain import pretrain
from geokr_core.pretraining.training.loop import judged, losses_of, train
from geokr_core.pretraining.training.state import begin
from geokr_core.step.files import read_json
from geokr_core.step.reporter import RecordingReporter


def test_majority_is_the_largest_class_alone_and_nothing_where_nothing_is_known() -> None:
    found = largest_class(torch.tensor([[0.2, 0.5, 0.3], [0.0, 0.0, 0.0]]))
    assert found.tolist() == [[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]


def test_majority_learns_from_one_class_and_is_judged_by_the_proportions(data: LevirKR) -> None:
    run = short_run(data, "majority", precision="fp32")
    state, seen = begin(run), inputs_at(run)
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
    run = short_run(data, "dense", precision="fp32", batch_size=16)
    state, seen = begin(run), inputs_at(run)
    assert seen.cells is not None
    right = cells_under(seen.cells, seen.geometry, 8).permute(0, 3, 1, 2)
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


def test_a_cell_head_is_one_linear_layer_on_all_stages_side_by_side() -> None:
    torch.manual_seed(0)
    maps = [torch.randn(2, width, size, size) for width, size in ((5, 16), (6, 8), (7, 4), (8, 2))]
    head = CellHead([5, 6, 7, 8], 3, 8)
    grid = [
        F.adaptive_avg_pool2d(x, 8) if x.shape[-1] >= 8 else F.interpolate(x, (8, 8), mode="bilinear") for x in maps
    ]
    weight = torch.cat([layer.weight for layer in head.of_stages], dim=1)
    assert torch.allclose(head(maps), F.conv2d(torch.cat(grid, dim=1), weight, head.of_stages[0].bias), atol=1e-5)


def test_a_chip_that_is_asked_cell_by_cell_has_the_mean_of_their_shares() -> None:
    maps = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    mean = maps.softmax(dim=1).mean(dim=(2, 3))
    assert torch.allclose(shares_of_chip(maps).softmax(dim=1), mean, atol=1e-6)


def test_the_land_cover_of_cells_reaches_every_stage_and_their_chip_is_judged(data: LevirKR) -> None:
    run = short_run(data, "dense", precision="fp32", batch_size=8, architecture="resnet18")
    state, seen = begin(run), inputs_at(run)
    losses_of(run, state, seen, 1)[0].backward()
    head = state.student.head
    assert isinstance(head, CellHead)
    assert head.cells_per_side == data.cells_per_side
    assert [float(layer.weight.grad.abs().sum()) > 0 for layer in head.of_stages] == [True] * 4  # type: ignore[union-attr]
    assert run.recipe.predicts_land_cover
    found = judged(run, state.student, run.validation_rows)
    assert np.allclose(found.predicted.sum(axis=1), 1, atol=1e-5)


def test_dense_beside_contrast_asks_both_crops_of_a_chip(data: LevirKR) -> None:
    run = short_run(data, preset="geokr", precision="fp32", batch_size=8)
    state, seen = begin(run), inputs_at(run)
    assert len(seen.student) == 16
    losses = dict(zip(state.terms, losses_of(run, state, seen, 1).tolist(), strict=True))
    assert losses["loss"] == pytest.approx(5 * losses["dense_loss"] + losses["contrast_loss"], rel=1e-5)


@pytest.mark.parametrize("method", ["geokr", "dense", "types", "cell_mean", "proportions"])
def test_what_the_map_says_of_a_chip_that_an_audit_weighs_at_nothing_teaches_nothing(
    data: LevirKR, method: str
) -> None:
    weights = np.arange(len(data.catalogue)) % 2  # every other chip
    audited = replace(data, catalogue=data.catalogue.assign(audit_weight=weights))
    settings = {"num_types": 4} if method == "types" else {}
    run = short_run(audited, method, preset="geokr", precision="fp32", batch_size=16, **settings)
    state, seen = begin(run), inputs_at(run)
    assert seen.weights is not None
    assert seen.audit_weights is not None
    off = seen.audit_weights == 0
    assert 0 < int(off.sum()) < len(off)
    assert torch.equal(off, seen.weights == 0)
    wrong = replace(seen, labels=seen.labels.clone(), cells=None if seen.cells is None else seen.cells.clone())
    wrong.labels[off] = wrong.labels[off].flip(1)
    if wrong.cells is not None:
        wrong.cells[off] = wrong.cells[off].flip(3)
    if seen.types is not None:
        wrong = replace(wrong, types=torch.where(off, (seen.types + 1) % 4, seen.types))
    objective, student = LandCoverObjective(run.recipe, torch.device("cpu")), state.student
    unweighed = replace(wrong, weights=None, audit_weights=None)
    losses = [
        float(objective.losses(student, student, student, inputs, 1).detach()[0]) for inputs in (seen, wrong, unweighed)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0] != pytest.approx(losses[2], rel=1e-3)


def test_dense_learns(data: LevirKR, tmp_path: Path) -> None:
    run = short_run(data, "dense", steps=60, batch_size=16, learning_rate=2e-3, log_every=20)
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
    recipe = short_config().recipe("corrected")
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
    config = short_config(steps=2, variants=("geokr", "corrected"))
    pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", RecordingReporter())
    written = read_json(tmp_path / "out/corrected-seed0/correction.json")
    assert written["ground_classes"] == list(data.classes)
    matrix = np.array(written["matrix"])
    assert matrix.shape == (len(data.classes),) * 2
    np.testing.assert_allclose(matrix.sum(axis=1), 1.0, atol=1e-4)
    assert not (tmp_path / "out/geokr-seed0/correction.json").exists()
