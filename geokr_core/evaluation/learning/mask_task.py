"""Tasks whose label is a mask: learning from crops, scoring whole images.

Not here: the network (``mask_network``), the metrics (``mask_metrics``) and reading files (``evaluation.sets``).
"""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_confusion_matrix

from geokr_core.errors import EvaluationError
from geokr_core.evaluation.cells import Cell, Measurement, Score, Start
from geokr_core.evaluation.config import EvaluationConfig
from geokr_core.evaluation.learning.fine_tuned_task import FineTunedTask
from geokr_core.evaluation.learning.mask_metrics import iou_of, mean_iou, pixel_accuracy
from geokr_core.evaluation.learning.mask_network import MaskNetwork, predict_mask
from geokr_core.evaluation.protocols.fine_tuning import HEAD_LEARNING_RATE_FACTOR, learn
from geokr_core.evaluation.sets.masks.layout import IGNORED
from geokr_core.evaluation.sets.masks.read import MaskSet, read_mask_set
from geokr_core.evaluation.starts import initial_network
from geokr_core.evaluation.statistics import bootstrap_rows, percentile_interval
from geokr_core.evaluation.task_kinds import MaskConfig
from geokr_core.networks.batch_order import batch_rows
from geokr_core.networks.batchnorm import freeze_batchnorm, recalibrate_on
from geokr_core.networks.normalisation import Normalisation, placed
from geokr_core.networks.runtime import Runtime
from geokr_core.networks.stopwatch import computing

_RECALIBRATION_BATCHES: Final = 4
_GALLERY_IMAGES: Final = 3
_GALLERY_PX: Final = 160

CLASS_COLOURS: Final = np.array(
    [
        (31, 119, 180),
        (255, 127, 14),
        (44, 160, 44),
        (214, 39, 40),
        (148, 103, 189),
        (140, 86, 75),
        (227, 119, 194),
        (127, 127, 127),
        (188, 189, 34),
        (23, 190, 207),
        (174, 199, 232),
        (255, 187, 120),
        (152, 223, 138),
        (255, 152, 150),
        (197, 176, 213),
        (196, 156, 148),
    ],
    dtype=np.uint8,
)


class MaskTask(FineTunedTask):
    """A set of images with masks that scores networks. Further scores are up to the kind of task."""

    _task: MaskConfig

    def __init__(self, task: MaskConfig, evaluation: EvaluationConfig, layouts: str) -> None:
        """Read the set.

        Args:
            task: which set, and how it is learnt.
            evaluation: where sets lie and how they are judged.
            layouts: kind of task whose layouts are tried.

        Raises:
            EvaluationError: see ``read_mask_set``; a class without a test item where these are to fail.
        """
        self.set: MaskSet = read_mask_set(evaluation.folder / task.name, task, layouts, evaluation.threads)
        super().__init__(task, evaluation, frozen_by_default=False)
        self.bands, self.rows = self.set.bands, self.set.rows
        self.statistics = _statistics([self.set.images[k] for k in self.rows["train"]])
        self.notes = [*self.set.notes, *self._class_notes(), *self._small_notes()]

    @property
    def budget(self) -> Mapping[str, object]:
        """What every initialisation gets alike."""
        task = self._task
        return {
            "model": f"{task.decoder} of segmentation-models-pytorch, {task.decoder_channels} channels",
            "crops": f"{task.crop_size_px} px, images shrunk by {task.downscale}",
            **self.plan.words("crops"),
            "augmentation": "random crops, flips and quarter turns",
            "prediction": f"sliding windows of {task.crop_size_px} px, overlapping by a quarter and blended",
        }

    def worth(self, found: Sequence[np.ndarray], rows: np.ndarray) -> float:
        """Mean IoU over all pixels."""
        return float(mean_iou(self._confusions(found, rows).sum(axis=0)))

    def scored(self, found: Sequence[np.ndarray], labelled: np.ndarray, details: Mapping[str, object]) -> Measurement:
        """Mean IoU and pixel accuracy over all test pixels, and what the kind of task adds."""
        test = self.rows["test"]
        confusions = self._confusions(found, test)
        total = confusions.sum(axis=0)
        weights = np.stack([np.bincount(rows, minlength=len(test)) for rows in bootstrap_rows(len(test))])
        resampled = np.tensordot(weights, confusions, axes=1)
        replicates = tuple(mean_iou(resampled).round(6).tolist())
        accuracies = pixel_accuracy(resampled).tolist()
        extra, more = self.further(confusions, [self.set.names[k] for k in test])
        return Measurement(
            scores=(
                Score("miou", float(mean_iou(total)), *percentile_interval(replicates)),
                Score("pixel_accuracy", float(pixel_accuracy(total)), *percentile_interval(accuracies)),
                *extra,
            ),
            n=len(test),
            label_fraction=len(labelled) / len(self.rows["train"]),
            classes=self.set.classes,
            confusion=tuple(tuple(int(v) for v in row) for row in total),
            per_class={"iou": tuple(None if np.isnan(v) else round(float(v), 6) for v in iou_of(total))},
            replicates=replicates,
            details={**details, **more},
            gallery=self._gallery(found),
        )

    def further(self, confusions: np.ndarray, names: Sequence[str]) -> tuple[tuple[Score, ...], Mapping[str, object]]:
        """More scores of a kind of task, and details.

        Args:
            confusions: int64 (N, K, K), of each test image.
            names: of the test images.
        """
        return (), {}

    def _class_notes(self) -> list[str]:
        counted = {
            split: sum((np.bincount(self.set.masks[k].ravel(), minlength=256) for k in rows), np.zeros(256, np.int64))
            for split, rows in self.set.rows.items()
        }
        untested = [name for k, name in enumerate(self.set.classes) if not counted["test"][k]]
        untaught = [name for k, name in enumerate(self.set.classes) if not counted["train"][k]]
        return self.absences(untested, untaught, "pixel")

    def _small_notes(self) -> list[str]:
        size = self._task.crop_size_px
        small = [name for name, mask in zip(self.set.names, self.set.masks, strict=True) if min(mask.shape) < size]
        if small and self._task.bad_items == "fail":
            raise EvaluationError(
                f"{self.name}: {small[0]} and {len(small) - 1} more image(s) are smaller than a crop of {size} px; "
                "lower `crop_size_px` or `downscale`, or set `bad_items: skip` to have them padded."
            )
        return [f"images smaller than a crop, padded: {len(small)} ({', '.join(small[:3])})"] if small else []

    def _batch(self, rows: np.ndarray, rng: np.random.Generator, order: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Random crops, turned and flipped: float32 (B, C, S, S) in 0-1, and masks uint8 (B, S, S)."""
        size, fill = self._task.crop_size_px, self.statistics.mean.numpy()
        crops = [_crop(self.set.images[k], self.set.masks[k], size, fill, rng) for k in rows]
        images = np.stack([np.moveaxis(image[..., order], -1, 0) for image, _ in crops])
        return images, np.stack([mask for _, mask in crops])

    def learnt(self, cell: Cell, start: Start, rows: np.ndarray, rate: float, runtime: Runtime) -> MaskNetwork:
        """A network and decoder that learned from random crops of the images ``rows``."""
        order, normalisation = self.order_of(start), placed(self.normalisation_of(start), runtime.device)
        network = initial_network(start, runtime)
        if start.weights is None:
            recalibrate_on(network, self._unlabelled(order, normalisation, runtime), runtime)
        model = MaskNetwork(network, self._task, len(self.set.classes), cell.seed)
        model = model.to(runtime.device).to(memory_format=torch.channels_last).train()
        if self.plan.frozen_batchnorm:
            freeze_batchnorm(model.pyramid)

        def loss_at(step: int) -> Tensor:
            rng = np.random.default_rng([cell.seed, step])
            chosen = batch_rows(rows, self.plan.batch_size, cell.seed, step)
            images, masks = self._batch(chosen, rng, order)
            batch = normalisation.of_planes(torch.from_numpy(images).to(runtime.device))
            targets = torch.from_numpy(masks.astype(np.int64)).to(runtime.device)
            with computing():
                with runtime.autocast():
                    logits = model(batch)
                total = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
                return total / max(1, int((masks != IGNORED).sum()))

        new = [*model.decoder.parameters(), *model.head.parameters()]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in model.pyramid.parameters() if p.requires_grad]},
            {"params": new, "factor": HEAD_LEARNING_RATE_FACTOR},
        ]
        learn(groups, loss_at, self.plan.steps, rate)
        return model.eval()

    def _unlabelled(self, order: list[int], normalisation: Normalisation, runtime: Runtime) -> Iterator[Tensor]:
        rng = np.random.default_rng(0)
        for _ in range(_RECALIBRATION_BATCHES):
            chosen = rng.choice(self.rows["train"], size=max(8, self.plan.batch_size))
            images, _ = self._batch(chosen, rng, order)
            yield normalisation.of_planes(torch.from_numpy(images).to(runtime.device))

    def predicted(self, model: MaskNetwork, row: int, start: Start, runtime: Runtime) -> np.ndarray:
        """Classes uint8 (H, W) of one image."""
        image = np.ascontiguousarray(np.moveaxis(_scaled(self.set.images[row][..., self.order_of(start)]), -1, 0))
        normalisation = placed(self.normalisation_of(start), runtime.device)
        planes = normalisation.of_planes(torch.from_numpy(image)[None].to(runtime.device))
        return predict_mask(model, planes[0], self._task.crop_size_px, runtime)

    def _confusions(self, masks: Sequence[np.ndarray], rows: np.ndarray) -> np.ndarray:
        """Confusion matrices int64 (N, K, K) of predicted masks, one an image."""
        tables = [
            multiclass_confusion_matrix(
                torch.from_numpy(mask.astype(np.int64)),
                torch.from_numpy(self.set.masks[row].astype(np.int64)),
                num_classes=len(self.set.classes),
                ignore_index=IGNORED,
            ).numpy()
            for mask, row in zip(masks, rows, strict=True)
        ]
        return np.stack(tables).astype(np.int64)

    def _gallery(self, masks: Sequence[np.ndarray]) -> tuple[str, ...]:
        """Image, truth and prediction side by side, for the first test images."""
        visible = [self.set.bands.index(band) for band in ("red", "green", "blue") if band in self.set.bands]
        if not (self._task.show_images and self.set.may_be_shown) or len(visible) != 3:
            return ()
        pictures = []
        for mask, row in list(zip(masks, self.rows["test"], strict=True))[:_GALLERY_IMAGES]:
            rgb = _scaled(self.set.images[row][..., visible])
            low, high = np.quantile(rgb, (0.02, 0.98), axis=(0, 1))
            shown = ((rgb - low) / np.maximum(high - low, 1e-6) * 255).clip(0, 255).astype(np.uint8)
            truth = self.set.masks[row]
            painted = [
                np.where((m == IGNORED)[..., None], 0, CLASS_COLOURS[m % len(CLASS_COLOURS)]) for m in (truth, mask)
            ]
            pictures.append(_side_by_side([shown, *(p.astype(np.uint8) for p in painted)]))
        return tuple(pictures)


def _scaled(image: np.ndarray) -> np.ndarray:
    """Pixels as float32 in the units of the statistics: 8-bit pictures in 0-1, anything else as it is."""
    return image.astype(np.float32) / np.float32(255.0) if image.dtype == np.uint8 else image.astype(np.float32)


def _statistics(images: Sequence[np.ndarray]) -> Normalisation:
    """Channel means and deviations over all pixels, 8-bit pictures in 0-1."""
    count, total, squares = 0, 0.0, 0.0
    for image in images:
        pixels = _scaled(image).reshape(-1, image.shape[-1]).astype(np.float64)
        count += len(pixels)
        total, squares = total + pixels.sum(axis=0), squares + (pixels**2).sum(axis=0)
    mean = np.asarray(total) / count
    deviation = np.sqrt(np.maximum(np.asarray(squares) / count - mean**2, 0.0))
    floor = np.where(deviation > 0, deviation, 1.0)  # a constant band stays constant
    return Normalisation(torch.from_numpy(mean.astype(np.float32)), torch.from_numpy(floor.astype(np.float32)))


def _crop(
    image: np.ndarray, mask: np.ndarray, size: int, fill: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A random square, float32 (S, S, C) and uint8 (S, S); ground beyond the image is average and not learnt from."""
    height, width = mask.shape
    top, left = (int(rng.integers(0, max(1, length - size + 1))) for length in (height, width))
    part, labels = _scaled(image[top : top + size, left : left + size]), mask[top : top + size, left : left + size]
    if part.shape[:2] != (size, size):
        whole = np.broadcast_to(fill, (size, size, part.shape[-1])).astype(np.float32)
        whole[: part.shape[0], : part.shape[1]] = part
        known = np.full((size, size), IGNORED, dtype=np.uint8)
        known[: part.shape[0], : part.shape[1]] = labels
        part, labels = whole, known
    turns, flip = int(rng.integers(4)), bool(rng.integers(2))
    part, labels = np.rot90(part, turns), np.rot90(labels, turns)
    return (part[:, ::-1], labels[:, ::-1]) if flip else (part, labels)


def _side_by_side(pictures: Sequence[np.ndarray]) -> str:
    """A row of equally large pictures as a PNG in base64."""
    height, width = pictures[0].shape[:2]
    factor = _GALLERY_PX / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    parts = [
        np.asarray(Image.fromarray(p).resize(size, Image.Resampling.BOX if k == 0 else Image.Resampling.NEAREST))
        for k, p in enumerate(pictures)
    ]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(parts, axis=1)).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")
