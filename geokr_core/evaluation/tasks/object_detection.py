"""Object detection: boxes with classes, scored by COCO's mean average precision.

torchvision's Faster R-CNN or RetinaNet on a feature pyramid network over our backbone, built small enough for few labels
and few steps. Reading files is in ``box_layouts``, average precision in ``box_metrics``.

BatchNorm of the backbone is frozen by default (statistics and scales): batches of a few images give no usable statistics.
A random backbone's statistics are first taken from the training images; frozen at the constants it is built with, it
would be judged at a scale that no training ever gave it.
"""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from geokr_core.errors import EvaluationError
from geokr_core.evaluation.cells import RGB, Cell, Measurement, Score, Start, fraction_of_labels
from geokr_core.evaluation.config import EvaluationConfig, TaskConfig
from geokr_core.evaluation.protocols.budget import Budget, budget_of, drawn, held_out, require_fine_tuned
from geokr_core.evaluation.protocols.fine_tuning import HEAD_LEARNING_RATE_FACTOR, choose, learn
from geokr_core.evaluation.sets.box_sets import BoxSet, read_box_set
from geokr_core.evaluation.starts import initial_network, running
from geokr_core.evaluation.statistics import bootstrap_rows, percentile_interval
from geokr_core.evaluation.tasks.box_metrics import Boxes, Matched
from geokr_core.evaluation.tasks.detector import (
    ANCHOR_CELLS,
    ASPECT_RATIOS,
    HIDDEN,
    MIN_SCORE,
    PROPOSALS,
    SAMPLES_AN_IMAGE,
    DetectionBackbone,
    build_detector,
)
from geokr_core.networks.batch_order import batch_rows
from geokr_core.networks.batchnorm import freeze_batchnorm, recalibrate_on
from geokr_core.networks.normalisation import Normalisation, channel_statistics, placed
from geokr_core.networks.pyramid import Pyramid
from geokr_core.networks.runtime import Runtime
from geokr_core.networks.stopwatch import computing
from geokr_core.step.digests import data_version

DEFAULT_SIZE_PX: Final = 512

_RECALIBRATION_BATCHES: Final = 4
_GALLERY_IMAGES: Final = 3
_GALLERY_PX: Final = 240


class ObjectDetection:
    """A detection set that scores networks by COCO mAP and AP at IoU 0.5."""

    def __init__(self, task: TaskConfig, evaluation: EvaluationConfig) -> None:
        """Read the set.

        Raises:
            EvaluationError: see ``read_box_set``; a class without a test box where these are to fail.
        """
        folder: Path = evaluation.folder / task.name
        self.size_px = task.image_size_px or DEFAULT_SIZE_PX
        self.set: BoxSet = read_box_set(folder, task, self.size_px, evaluation.threads)
        self.plan: Budget = budget_of(task, evaluation, frozen_by_default=True)
        self._data_version = data_version(folder)
        self._task = task
        self._evaluation = evaluation
        pixels = np.concatenate([self.set.images[k].reshape(-1, 1, 3) for k in self.set.rows["train"]])
        self._statistics = channel_statistics(pixels)
        self._notes = [*self.set.notes, *self._class_notes()]

    @property
    def name(self) -> str:
        """Name of the set."""
        return self._task.name

    @property
    def data_version(self) -> str:
        """DVC's hash of the set's folder."""
        return self._data_version

    @property
    def bands(self) -> tuple[str, ...]:
        """Red, green, blue."""
        return RGB

    @property
    def notes(self) -> Sequence[str]:
        """The layout, what was left out and why, classes that cannot be scored."""
        return self._notes

    @property
    def budget(self) -> Mapping[str, object]:
        """What every initialisation gets alike."""
        return {
            "model": f"{self._task.detector} on a feature pyramid of {self._task.decoder_channels} channels",
            "image size": f"longer side {self.size_px} px",
            **self.plan.words("images"),
            "augmentation": "flips and quarter turns",
        }

    def settings(self, cell: Cell) -> Mapping[str, object]:
        """Every parameter that the score of ``cell`` depends on, besides the data and the start."""
        task, config = self._task, self._evaluation
        kept = {
            "kind",
            "layout",
            "detector",
            "decoder_channels",
            "bad_items",
            "absent_classes",
            "test_groups",
            "show_images",
        }
        return {
            **task.model_dump(mode="json", include=kept),
            **self.plan.settings(),
            "image_size_px": self.size_px,
            "match_statistics": config.match_statistics,
            "precision": config.precision,
            "device": config.device,
            "threads": config.threads,
            "detector_constants": [
                ANCHOR_CELLS,
                ASPECT_RATIOS,
                SAMPLES_AN_IMAGE,
                PROPOSALS,
                HIDDEN,
                MIN_SCORE,
                "kaiming towers",
            ],
        }

    def require(self, cell: Cell) -> None:
        """Check that ``cell`` is one that this task knows.

        Raises:
            EvaluationError: it asks for labels by number, or for frozen features.
        """
        require_fine_tuned(self.name, cell, "detection is")

    def measure(self, cell: Cell, start: Start) -> Measurement:
        """Learn from the drawn training images and score on all test images.

        Raises:
            EvaluationError: a loss or a prediction is not finite.
            BackboneError: weights and architecture, or bands, do not fit together.
        """
        self.require(cell)
        train, test = self.set.rows["train"], self.set.rows["test"]
        labelled = drawn(train, fraction_of_labels(cell.labels_per_class), cell.seed)
        with running(self._evaluation) as runtime:
            rate = self._learning_rate(cell, start, labelled, runtime)
            detector = self._learnt(cell, start, labelled, rate, runtime)
            found = [self._predicted(detector, k, start, runtime) for k in test]
        matched = Matched([self._truth(k) for k in test], found, len(self.set.classes))
        overall = matched.precision()
        resampled = [matched.precision(rows) for rows in bootstrap_rows(len(test))]
        replicates = tuple(round(each.map, 6) for each in resampled)
        seen = np.unique(np.concatenate([self.set.labels[k] for k in labelled]))
        unseen = [name for k, name in enumerate(self.set.classes, start=1) if k not in seen]
        return Measurement(
            scores=(
                Score("map", overall.map, *percentile_interval(replicates)),
                Score("ap50", overall.ap50, *percentile_interval([each.ap50 for each in resampled])),
            ),
            n=len(test),
            label_fraction=len(labelled) / len(train),
            classes=self.set.classes,
            confusion=(),
            per_class={"ap": _listed(overall.coco), "ap50": _listed(overall.at_50)},
            replicates=replicates,
            details={"learning_rate": rate, "labelled_images": len(labelled), "classes_without_labels": unseen},
            gallery=self._gallery(found),
        )

    def _class_notes(self) -> list[str]:
        def missing(rows: np.ndarray) -> list[str]:
            there = {int(v) for k in rows for v in self.set.labels[k][~self.set.ignored[k]]}
            return [name for place, name in enumerate(self.set.classes, start=1) if place not in there]

        untested, untaught = missing(self.set.rows["test"]), missing(self.set.rows["train"])
        if untested and self._task.absent_classes == "fail":
            raise EvaluationError(
                f"{self.name}: class {untested[0]!r} has no box in the test split (so have {len(untested)}); expected "
                "every class. Choose other split files, or set `absent_classes: leave_out`."
            )
        notes = [f"no test box, left out of the means: {', '.join(untested)}"] if untested else []
        untaught = [name for name in untaught if name not in untested]
        return [*notes, *([f"no training box, cannot be learnt: {', '.join(untaught)}"] if untaught else [])]

    def _truth(self, row: int) -> Boxes:
        return Boxes(self.set.boxes[row], self.set.labels[row], None, self.set.ignored[row])

    def _order(self, start: Start) -> list[int]:
        return [RGB.index(band) for band in start.bands]

    def _normalisation(self, start: Start) -> Normalisation:
        if not self._evaluation.match_statistics:
            return Normalisation(torch.tensor(start.mean), torch.tensor(start.std))
        order = self._order(start)
        return Normalisation(self._statistics.mean[order], self._statistics.std[order])

    def _learning_rate(self, cell: Cell, start: Start, labelled: np.ndarray, runtime: Runtime) -> float:
        fitting, spared = held_out(labelled, self.set.rows["val"], self.plan.validation_fraction, cell.seed)
        candidates = self.plan.learning_rates if len(spared) else self.plan.learning_rates[:1]

        def score(rate: float) -> float:
            detector = self._learnt(cell, start, fitting, rate, runtime)
            found = [self._predicted(detector, k, start, runtime) for k in spared]
            return Matched([self._truth(k) for k in spared], found, len(self.set.classes)).precision().map

        return choose(candidates, score)

    def _learnt(self, cell: Cell, start: Start, rows: np.ndarray, rate: float, runtime: Runtime) -> nn.Module:
        order, normalisation = self._order(start), self._normalisation(start)
        network = initial_network(start, runtime)
        if start.weights is None:
            recalibrate_on(network, self._unlabelled(order, normalisation, runtime), runtime)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(cell.seed)
            levels = DetectionBackbone(Pyramid(network), self._task.decoder_channels, self._task.detector, runtime)
            detector = build_detector(levels, self._task, len(self.set.classes), self.size_px, normalisation)
        detector = detector.to(runtime.device).train()
        if self.plan.frozen_batchnorm:
            freeze_batchnorm(levels.pyramid)

        def loss_at(step: int) -> Tensor:
            rng = np.random.default_rng([cell.seed, step])
            chosen = batch_rows(rows, self.plan.batch_size, cell.seed, step)
            images, targets = self._batch(chosen, rng, order, runtime)
            # Detectors draw the anchors and proposals that they learn from: the same draws for every initialisation.
            with torch.random.fork_rng(devices=[]), computing():
                torch.manual_seed(1_000_003 * cell.seed + step)
                losses = detector(images, targets)
            return torch.stack(list(losses.values())).sum()

        own = {id(p) for p in levels.pyramid.parameters()}
        groups: list[dict[str, Any]] = [
            {"params": [p for p in levels.pyramid.parameters() if p.requires_grad]},
            {"params": [p for p in detector.parameters() if id(p) not in own], "factor": HEAD_LEARNING_RATE_FACTOR},
        ]  # fmt: skip
        learn(groups, loss_at, self.plan.steps, rate)
        return detector.eval()

    def _unlabelled(self, order: list[int], normalisation: Normalisation, runtime: Runtime) -> Iterator[Tensor]:
        on_device = placed(normalisation, runtime.device)
        rng = np.random.default_rng(0)
        for _ in range(_RECALIBRATION_BATCHES):
            chosen = self.set.images[int(rng.choice(self.set.rows["train"]))]
            yield on_device(torch.from_numpy(np.ascontiguousarray(chosen[None][..., order])).to(runtime.device))

    def _batch(
        self, rows: np.ndarray, rng: np.random.Generator, order: list[int], runtime: Runtime
    ) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
        images, targets = [], []
        for row in rows:
            kept = ~self.set.ignored[row]
            pixels, boxes = oriented(
                self.set.images[row], self.set.boxes[row][kept], turns=int(rng.integers(4)), flip=bool(rng.integers(2))
            )
            images.append(_planes(pixels, order).to(runtime.device))
            labels = torch.from_numpy(self.set.labels[row][kept]).to(runtime.device)
            targets.append({"boxes": torch.from_numpy(boxes).to(runtime.device), "labels": labels})
        return images, targets

    def _predicted(self, detector: nn.Module, row: int, start: Start, runtime: Runtime) -> Boxes:
        planes = _planes(self.set.images[row], self._order(start)).to(runtime.device)
        with torch.inference_mode(), computing():
            found = {name: values.cpu().numpy() for name, values in detector([planes])[0].items()}
        if not (np.isfinite(found["boxes"]).all() and np.isfinite(found["scores"]).all()):
            raise EvaluationError(
                "The fine-tuned detector predicts values that are not finite; expected finite boxes and scores. Lower "
                "the learning rate."
            )
        return Boxes(found["boxes"], found["labels"], found["scores"])

    def _gallery(self, found: Sequence[Boxes]) -> tuple[str, ...]:
        """Test images with true boxes in white and found ones in orange; never where the set's terms forbid it."""
        if not (self._task.show_images and self.set.may_be_shown):
            return ()
        pictures = []
        for boxes, row in list(zip(found, self.set.rows["test"], strict=True))[:_GALLERY_IMAGES]:
            picture = Image.fromarray(self.set.images[row])
            factor = _GALLERY_PX / max(picture.size)
            picture = picture.resize((round(picture.width * factor), round(picture.height * factor)))
            draw = ImageDraw.Draw(picture)
            sure = boxes.boxes[(boxes.scores if boxes.scores is not None else np.zeros(0)) >= 0.5]
            for some, colour in ((self.set.boxes[row], (255, 255, 255)), (sure, (255, 127, 14))):
                for box in some:
                    draw.rectangle([float(v) * factor for v in box], outline=colour)
            buffer = io.BytesIO()
            picture.save(buffer, format="PNG")
            pictures.append(base64.b64encode(buffer.getvalue()).decode("ascii"))
        return tuple(pictures)


def oriented(image: np.ndarray, boxes: np.ndarray, *, turns: int, flip: bool) -> tuple[np.ndarray, np.ndarray]:
    """Turn an image by quarter turns against the clock, then mirror it left to right, and its boxes with it.

    Args:
        image: (H, W, C).
        boxes: float32 (N, 4): left, top, right, bottom.
        turns: number of quarter turns.
        flip: mirror it.

    Returns:
        The image and its boxes.
    """
    left, top, right, bottom = boxes.T if len(boxes) else np.zeros((4, 0), dtype=np.float32)
    for _ in range(turns % 4):
        width = np.float32(image.shape[1])
        image = np.rot90(image)
        left, top, right, bottom = top, width - right, bottom, width - left
    if flip:
        width = np.float32(image.shape[1])
        image = image[:, ::-1]
        left, right = width - right, width - left
    return np.ascontiguousarray(image), np.stack([left, top, right, bottom], axis=1).astype(np.float32)


def _planes(image: np.ndarray, order: list[int]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(image[..., order], -1, 0))).float() / 255.0


def _listed(values: np.ndarray) -> tuple[float | None, ...]:
    return tuple(None if np.isnan(value) else round(float(value), 6) for value in values)
