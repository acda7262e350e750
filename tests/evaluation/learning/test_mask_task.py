"""Masks: independent checks of the metric, of sliding windows and of what a crop may contain."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score
from torch import nn
from torchmetrics.functional.classification import multiclass_jaccard_index

from geokr_core.errors import EvaluationError
from geokr_core.evaluation.cells import Cell, Start
from geokr_core.evaluation.config import EvaluationConfig, TaskConfig
from geokr_core.evaluation.learning.mask_metrics import iou_of, mean_iou
from geokr_core.evaluation.learning.mask_network import MaskNetwork, predict_mask, window_starts, window_weight
from geokr_core.evaluation.learning.mask_task import MaskTask, _crop, _statistics
from geokr_core.evaluation.opening import open_task
from geokr_core.evaluation.sets.masks.layout import IGNORED
from geokr_core.evaluation.tasks.cloud_snow import (
    CloudSnowDetection,
    cloud_precision,
    cloud_recall,
    cloud_tables,
    screening,
)
from geokr_core.networks.network import build
from geokr_core.networks.runtime import Runtime
from geokr_core.testing import make_mask_set

CPU = Runtime(torch.device("cpu"), bf16=False)


def start(architecture: str = "squeezenet1_1", bands: tuple[str, ...] = ("red", "green", "blue")) -> Start:
    return Start("random", 0, architecture, None, (0.5,) * len(bands), (0.2,) * len(bands), bands)


def opened(root: Path, kind: str = "segmentation", evaluation: dict[str, Any] | None = None, **fields: Any) -> MaskTask:
    section = {"name": "set", "kind": kind, "crop_size_px": 32, "decoder_channels": 32, "batch_size": 4, **fields}
    settings = {"folder": root, "tasks": [section], "precision": "fp32", "threads": 1, **(evaluation or {})}
    config = EvaluationConfig.model_validate(settings)
    task = open_task(config.tasks[0], config)
    assert isinstance(task, MaskTask)
    return task


def cell(labels: str = "all", seed: int = 0) -> Cell:
    return Cell("set", "random", "fine_tune", "last", labels, seed)


def test_mean_iou_of_a_hand_made_table() -> None:
    # truth a: 3 right, 1 called b; truth b: 2 right, 2 called a. IoU a = 3/(4+5-3), b = 2/(4+3-2)
    table = np.array([[3, 1], [2, 2]])

    assert iou_of(table) == pytest.approx([3 / 6, 2 / 5])
    assert mean_iou(table) == pytest.approx((3 / 6 + 2 / 5) / 2)


def test_mean_iou_equals_scikit_learn_and_torchmetrics() -> None:
    rng = np.random.default_rng(0)
    truth, guess = rng.integers(0, 4, 500), rng.integers(0, 4, 500)
    table = np.zeros((4, 4), dtype=np.int64)
    np.add.at(table, (truth, guess), 1)

    assert iou_of(table) == pytest.approx(jaccard_score(truth, guess, average=None))
    found = multiclass_jaccard_index(torch.from_numpy(guess), torch.from_numpy(truth), num_classes=4)
    assert mean_iou(table) == pytest.approx(float(found), abs=1e-6)


def test_a_class_without_truth_is_in_no_mean_whatever_is_predicted() -> None:
    table = np.array([[4, 0, 2], [0, 4, 0], [0, 0, 0]])

    assert np.isnan(iou_of(table)[2])
    assert mean_iou(table) == pytest.approx((4 / 6 + 1) / 2)


@pytest.mark.parametrize(("length", "window"), [(32, 32), (33, 32), (100, 32), (64, 32)])
def test_windows_cover_every_pixel_and_end_with_the_image(length: int, window: int) -> None:
    starts = window_starts(length, window)
    covered = np.zeros(length, dtype=int)
    for first in starts:
        covered[first : first + window] += 1

    assert covered.min() >= 1
    assert starts[-1] + window == length
    assert len(set(starts)) == len(starts)
    assert (window_weight(window) > 0).all()


class Thresholds(nn.Module):
    """Class 1 where the first band is bright; wrong by a lot within ``margin`` pixels of the window's border."""

    def __init__(self, margin: int = 0) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        sure = images[:, :1]
        logits = torch.cat([-sure, sure], dim=1)
        if self.margin:
            wrong = torch.ones_like(logits, dtype=torch.bool)
            wrong[..., self.margin : -self.margin, self.margin : -self.margin] = False
            logits = torch.where(wrong, -0.9 * logits, logits)
        return logits


@pytest.mark.parametrize("size", [(20, 50), (32, 32), (75, 41)])
def test_sliding_windows_give_what_the_whole_image_gives(size: tuple[int, int]) -> None:
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(3, *size)).astype(np.float32))

    assert np.array_equal(predict_mask(Thresholds(), image, 32, CPU), (image[0] > 0).numpy())


def test_what_a_network_gets_wrong_at_window_borders_leaves_no_seams() -> None:
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 128, 128)).astype(np.float32))
    found = predict_mask(Thresholds(margin=2), image, 32, CPU)
    inside = (slice(4, -4), slice(4, -4))  # the image's own border has no other window

    assert np.array_equal(found[inside], (image[0] > 0).numpy()[inside])


def test_predictions_that_are_not_finite_are_refused() -> None:
    image = torch.full((3, 40, 40), torch.nan)
    with pytest.raises(EvaluationError, match="not finite"):
        predict_mask(Thresholds(), image, 32, CPU)


@pytest.mark.parametrize("decoder", ["unet", "fpn", "deeplabv3plus"])
@pytest.mark.parametrize("architecture", ["resnet18", "squeezenet1_1"])
def test_every_decoder_stands_on_every_backbone(decoder: str, architecture: str) -> None:
    section = TaskConfig.model_validate(
        {"name": "x", "kind": "segmentation", "decoder": decoder, "decoder_channels": 32}
    )
    model = MaskNetwork(build(architecture, 4), section, 5, 0).eval()
    with torch.inference_mode():
        assert model(torch.randn(1, 4, 50, 70)).shape == (1, 5, 50, 70)


def test_decoder_follows_the_seed_alone() -> None:
    section = TaskConfig(name="x", kind="segmentation", decoder_channels=32)
    first, second, other = (MaskNetwork(build("squeezenet1_1"), section, 3, seed).head.weight for seed in (0, 0, 1))

    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_crops_keep_image_and_mask_together_and_teach_nothing_beyond_the_image() -> None:
    rng = np.random.default_rng(0)
    mask = np.arange(20 * 20, dtype=np.int64).reshape(20, 20) % 200
    image = np.repeat(mask[..., None], 3, axis=2).astype(np.float32)
    for _ in range(20):
        part, labels = _crop(image, mask.astype(np.uint8), 16, np.zeros(3, np.float32), rng)
        assert np.array_equal(part[..., 0], labels)
    part, labels = _crop(image, mask.astype(np.uint8), 32, np.full(3, 7.0, np.float32), rng)
    assert (labels == IGNORED).sum() == 32 * 32 - 20 * 20
    assert (part[labels == IGNORED] == 7.0).all()


def test_statistics_of_known_pixels() -> None:
    bright, dark = np.full((4, 4, 1), 255, np.uint8), np.zeros((4, 4, 1), np.uint8)
    found = _statistics([bright, dark])

    assert (found.mean.tolist(), found.std.tolist()) == ([0.5], [0.5])


def test_segmentation_learns_and_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    make_mask_set(tmp_path / "set")
    task = opened(tmp_path, steps=30, learning_rates=[2e-3])
    found = task.measure(cell(), start())
    again = opened(tmp_path, steps=30, learning_rates=[2e-3]).measure(cell(), start())
    scores = {score.metric: score for score in found.scores}

    assert scores["miou"].value > 0.6  # chance: a third
    assert scores["miou"].ci_low <= scores["miou"].value <= scores["miou"].ci_high
    assert (found.n, found.label_fraction, len(found.replicates)) == (3, 1.0, 200)
    assert np.array(found.confusion).sum() == 3 * 48 * 56
    assert found == again


def test_cloud_detection_learns_from_any_bands_in_the_order_of_the_bundle(tmp_path: Path) -> None:
    make_mask_set(tmp_path / "set", sky=True)
    task = opened(tmp_path, "cloud_snow", steps=30, learning_rates=[2e-3])
    found = task.measure(cell(), start(bands=("nir", "red")))
    scores = {score.metric: score.value for score in found.scores}

    assert task.bands == ("blue", "green", "red", "nir")
    assert scores["miou"] > 0.25  # chance: 0.11
    assert scores["cloud_recall"] > 0.4
    assert len(found.details["screening"]) == 3  # type: ignore[arg-type]
    assert isinstance(task, CloudSnowDetection)


def test_precision_recall_and_screening_of_a_hand_made_scene() -> None:
    # clear, cloud, thin cloud, shadow, snow. 10 clear right, 4 clear called thin; 6 cloud called thin (still cloud);
    # 2 cloud called snow; 3 snow called cloud; 5 shadow right.
    table = np.zeros((1, 5, 5), dtype=np.int64)
    table[0, 0, 0], table[0, 0, 2], table[0, 1, 2], table[0, 1, 4], table[0, 4, 1], table[0, 3, 3] = 10, 4, 6, 2, 3, 5
    cloud = cloud_tables(table)
    over, under = screening(cloud)

    assert cloud.tolist() == [[[15, 7], [2, 6]]]
    assert cloud_precision(cloud[0]) == pytest.approx(6 / 13)
    assert cloud_recall(cloud[0]) == pytest.approx(6 / 8)
    assert (over[0], under[0]) == (pytest.approx(7 / 30), pytest.approx(2 / 30))
    assert cloud_precision(np.array([[5, 0], [2, 0]])) == 0.0


def test_a_learning_rate_is_chosen_on_training_items_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_mask_set(tmp_path / "set")
    task = opened(tmp_path, steps=12, learning_rates=[1e-6, 3e-3])
    asked: list[int] = []
    predicted = MaskTask.predicted

    def noted(self: MaskTask, model: Any, row: int, *rest: Any) -> np.ndarray:
        asked.append(int(row))
        return predicted(self, model, row, *rest)

    monkeypatch.setattr(MaskTask, "predicted", noted)
    found = task.measure(cell(), start())
    test = set(task.set.rows["test"].tolist())

    assert found.details["learning_rate"] == 3e-3
    assert set(asked[:-3]) <= set(task.set.rows["train"].tolist())
    assert set(asked[-3:]) == test


def test_frozen_batchnorm_stays_and_a_random_one_has_seen_the_task(tmp_path: Path) -> None:
    make_mask_set(tmp_path / "set")
    task = opened(tmp_path, steps=2, batchnorm="frozen")
    model = task.learnt(cell(), start("resnet18"), task.set.rows["train"], 1e-3, CPU)
    other = task.learnt(cell(), start("resnet18"), task.set.rows["train"][:1], 1e-3, CPU)
    layers = [m for m in model.pyramid.modules() if isinstance(m, nn.BatchNorm2d)]
    others = [m for m in other.pyramid.modules() if isinstance(m, nn.BatchNorm2d)]

    assert task.normalisation_of(start("resnet18")).mean.shape == (3,)
    assert all(torch.equal(a.weight, torch.ones_like(a.weight)) for a in layers)
    assert all(torch.equal(a.running_mean, b.running_mean) for a, b in zip(layers, others, strict=True))  # type: ignore[arg-type]
    assert not torch.allclose(layers[0].running_var, torch.ones_like(layers[0].running_var))  # type: ignore[arg-type]


def test_pictures_are_shown_only_where_asked_for(tmp_path: Path) -> None:
    make_mask_set(tmp_path / "set")

    assert opened(tmp_path, steps=1).measure(cell(), start()).gallery == ()
    assert len(opened(tmp_path, steps=1, show_images=True).measure(cell(), start()).gallery) == 3


def test_cells_that_masks_do_not_know_are_refused(tmp_path: Path) -> None:
    make_mask_set(tmp_path / "set")
    with pytest.raises(EvaluationError, match="share of the training images"):
        opened(tmp_path).require(Cell("set", "random", "linear_probe", "last", 5, 0))
