"""Object detection: boxes with classes, scored by COCO's mean average precision.

torchvision's Faster R-CNN or RetinaNet on a feature pyramid network over our backbone, built small enough for few labels
and few steps. Reading files is in ``sets``, average precision in ``learning.box_metrics``.

BatchNorm of the backbone is frozen by default (statistics and scales): batches of a few images give no usable statistics.
A random backbone's statistics are first taken from the training images; frozen at the constants it is built with, it
would be judged at a scale that no training ever gave it.
"""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from geokr_core.errors import EvaluationError
from geokr_core.evaluation.cells import RGB, Cell, Measurement, Score, Start
from geokr_core.evaluation.config import EvaluationConfig
from geokr_core.evaluation.learning.box_metrics import Boxes, Matched
from geokr_core.evaluation.learning.detector import (
    ANCHOR_CELLS,
    ASPECT_RATIOS,
    HIDDEN,
    MIN_SCORE,
    PROPOSALS,
    SAMPLES_AN_IMAGE,
    DetectionBackbone,
    build_detector,
)
from geokr_core.evaluation.learning.fine_tuned_task import FineTunedTask
from geokr_core.evaluation.protocols.fine_tuning import HEAD_LEARNING_RATE_FACTOR, learn
from geokr_core.evaluation.sets.boxes.read import BoxSet, read_box_set
from geokr_core.evaluation.starts import initial_network
from geokr_core.evaluation.statistics import bootstrap_rows, percentile_interval
from geokr_core.evaluation.task_kinds import DetectionConfig
from geokr_core.networks.batch_order import batch_rows
from geokr_core.networks.batchnorm import freeze_batchnorm, recalibrate_on
from geokr_core.networks.normalisation import Normalisation, channel_statistics, placed
from geokr_core.networks.pyramid import Pyramid
from geokr_core.networks.runtime import Runtime
from geokr_core.networks.stopwatch import computing

DEFAULT_SIZE_PX: Final = 512

_RECALIBRATION_BATCHES: Final = 4
_GALLERY_IMAGES: Final = 3
_GALLERY_PX: Final = 240


class ObjectDetection(FineTunedTask):
    """A detection set that scores networks by COCO mAP and AP at IoU 0.5."""

    _task: DetectionConfig

    def __init__(self, task: DetectionConfig, evaluation: EvaluationConfig) -> None:
        """Read the set.

        Raises:
            EvaluationError: see ``read_box_set``; a class without a test box where these are to fail.
        """
        self.size_px = task.image_size_px or DEFAULT_SIZE_PX
        self.set: BoxSet = read_box_set(evaluation.folder / task.name, task, self.size_px, evaluation.threads)
        super().__init__(task, evaluation, frozen_by_default=True)
        self.bands, self.rows = RGB, self.set.rows
        pixels = np.concatenate([self.set.images[k].reshape(-1, 1, 3) for k in self.rows["train"]])
        self.statistics = channel_statistics(pixels)
        self.notes = [*self.set.notes, *self._class_notes()]

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
        constants = [ANCHOR_CELLS, ASPECT_RATIOS, SAMPLES_AN_IMAGE, PROPOSALS, HIDDEN, MIN_SCORE, "kaiming towers"]
        return {**super().settings(cell), "image_size_px": self.size_px, "detector_constants": constants}

    def worth(self, found: Sequence[Boxes], rows: np.ndarray) -> float:
        """COCO mAP."""
        return Matched([self._truth(k) for k in rows], found, len(self.set.classes)).precision().map

    def scored(self, found: Sequence[Boxes], labelled: np.ndarray, details: Mapping[str, object]) -> Measurement:
        """COCO mAP and AP at IoU 0.5 over all test images."""
        test = self.rows["test"]
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
            label_fraction=len(labelled) / len(self.rows["train"]),
            classes=self.set.classes,
            confusion=(),
            per_class={"ap": _listed(overall.coco), "ap50": _listed(overall.at_50)},
            replicates=replicates,
            details={**details, "classes_without_labels": unseen},
            gallery=self._gallery(found),
        )

    def _class_notes(self) -> list[str]:
        def missing(rows: np.ndarray) -> list[str]:
            there = {int(v) for k in rows for v in self.set.labels[k][~self.set.ignored[k]]}
            return [name for place, name in enumerate(self.set.classes, start=1) if place not in there]

        return self.absences(missing(self.rows["test"]), missing(self.rows["train"]), "box")

    def _truth(self, row: int) -> Boxes:
        return Boxes(self.set.boxes[row], self.set.labels[row], None, self.set.ignored[row])

    def learnt(self, cell: Cell, start: Start, rows: np.ndarray, rate: float, runtime: Runtime) -> nn.Module:
        """A detector that learned from the images ``rows``."""
        order, normalisation = self.order_of(start), self.normalisation_of(start)
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
        ]
        learn(groups, loss_at, self.plan.steps, rate)
        return detector.eval()

    def _unlabelled(self, order: list[int], normalisation: Normalisation, runtime: Runtime) -> Iterator[Tensor]:
        on_device = placed(normalisation, runtime.device)
        rng = np.random.default_rng(0)
        for _ in range(_RECALIBRATION_BATCHES):
            chosen = self.set.images[int(rng.choice(self.rows["train"]))]
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

    def predicted(self, detector: nn.Module, row: int, start: Start, runtime: Runtime) -> Boxes:
        """Boxes found in one image, with scores."""
        planes = _planes(self.set.images[row], self.order_of(start)).to(runtime.device)
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
        for boxes, row in list(zip(found, self.rows["test"], strict=True))[:_GALLERY_IMAGES]:
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
