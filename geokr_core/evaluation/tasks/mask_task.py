"""Tasks whose label is a mask: learning from crops, scoring whole images.

Not here: the network (``mask_network``), the metrics (``mask_metrics``) and reading files (``evaluation.sets``).
"""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_confusion_matrix

from geokr_core.errors import EvaluationError
from geokr_core.evaluation.cells import Cell, Measurement, Score, Start, fraction_of_labels
from geokr_core.evaluation.config import EvaluationConfig, TaskConfig
from geokr_core.evaluation.protocols.budget import Budget, budget_of, drawn, held_out, require_fine_tuned
from geokr_core.evaluation.protocols.fine_tuning import HEAD_LEARNING_RATE_FACTOR, choose, learn
from geokr_core.evaluation.sets.mask_sets import IGNORED, MaskSet, Recogniser, read_mask_set
from geokr_core.evaluation.starts import initial_network, running
from geokr_core.evaluation.statistics import bootstrap_rows, percentile_interval
from geokr_core.evaluation.tasks.mask_metrics import iou_of, mean_iou, pixel_accuracy
from geokr_core.evaluation.tasks.mask_network import MaskNetwork, predict_mask
from geokr_core.networks.batch_order import batch_rows
from geokr_core.networks.batchnorm import freeze_batchnorm, recalibrate_on
from geokr_core.networks.normalisation import Normalisation, placed
from geokr_core.networks.runtime import Runtime
from geokr_core.networks.stopwatch import computing
from geokr_core.step.digests import data_version

_RECALIBRATION_BATCHES: Final = 4
_GALLERY_IMAGES: Final = 3
_GALLERY_PX: Final = 160

CLASS_COLOURS: Final = np.array(
    [
        (31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189), (140, 86, 75), (227, 119, 194),
        (127, 127, 127), (188, 189, 34), (23, 190, 207), (174, 199, 232), (255, 187, 120), (152, 223, 138),
        (255, 152, 150), (197, 176, 213), (196, 156, 148),
    ],
    dtype=np.uint8,
)  # fmt: skip


class MaskTask:
    """A set of images with masks that scores networks. What the scores are is up to the kind of task."""

    def __init__(self, task: TaskConfig, evaluation: EvaluationConfig, layouts: Mapping[str, Recogniser]) -> None:
        """Read the set.

        Raises:
            EvaluationError: see ``read_mask_set``; a class without a test item where these are to fail.
        """
        folder: Path = evaluation.folder / task.name
        self.set: MaskSet = read_mask_set(folder, task, layouts, evaluation.threads)
        self.plan: Budget = budget_of(task, evaluation, frozen_by_default=False)
        self._data_version = data_version(folder)
        self._task = task
        self._evaluation = evaluation
        self._mean, self._std = _statistics([self.set.images[k] for k in self.set.rows["train"]])
        self._notes = [*self.set.notes, *self._class_notes(), *self._small_notes()]

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
        """Common names of the bands its images have."""
        return self.set.bands

    @property
    def notes(self) -> Sequence[str]:
        """The layout, what was left out and why, classes that cannot be scored."""
        return self._notes

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

    def settings(self, cell: Cell) -> Mapping[str, object]:
        """Every parameter that the score of ``cell`` depends on, besides the data and the start."""
        task, config = self._task, self._evaluation
        dump = task.model_dump(
            mode="json", exclude={"name", "seeds", "steps", "batch_size", "learning_rates", "batchnorm"}
        )
        return {
            **dump,
            **self.plan.settings(),
            "match_statistics": config.match_statistics,
            "precision": config.precision,
            "device": config.device,
            "threads": config.threads,
        }

    def require(self, cell: Cell) -> None:
        """Check that ``cell`` is one that this task knows.

        Raises:
            EvaluationError: it asks for labels by number, or for frozen features.
        """
        require_fine_tuned(self.name, cell, "masks are")

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
            model, normalisation = self._learnt(cell, start, labelled, rate, runtime)
            masks = [self._predicted(model, normalisation, k, start, runtime) for k in test]
        confusions = np.stack([self._confusion(mask, k) for mask, k in zip(masks, test, strict=True)])
        total = confusions.sum(axis=0)
        weights = np.stack([np.bincount(rows, minlength=len(test)) for rows in bootstrap_rows(len(test))])
        resampled = np.tensordot(weights, confusions, axes=1)
        replicates = tuple(mean_iou(resampled).round(6).tolist())
        iou = [None if np.isnan(value) else round(float(value), 6) for value in iou_of(total)]
        extra, details = self.further(confusions, [self.set.names[k] for k in test])
        return Measurement(
            scores=(
                Score("miou", float(mean_iou(total)), *percentile_interval(replicates)),
                Score(
                    "pixel_accuracy",
                    float(pixel_accuracy(total)),
                    *percentile_interval(pixel_accuracy(resampled).tolist()),
                ),
                *extra,
            ),
            n=len(test),
            label_fraction=len(labelled) / len(train),
            classes=self.set.classes,
            confusion=tuple(tuple(int(v) for v in row) for row in total),
            per_class={"iou": tuple(iou)},
            replicates=replicates,
            details={"learning_rate": rate, "labelled_images": len(labelled), **details},
            gallery=self._gallery(masks),
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
        untaught = [name for k, name in enumerate(self.set.classes) if not counted["train"][k] and counted["test"][k]]
        if untested and self._task.absent_classes == "fail":
            raise EvaluationError(
                f"{self.name}: class {untested[0]!r} has no pixel in the test split (so have {len(untested)}); expected "
                "every class. Choose other `test_groups` or split files, or set `absent_classes: leave_out`."
            )
        notes = [f"no test pixel, left out of the means: {', '.join(untested)}"] if untested else []
        return [*notes, *([f"no training pixel, cannot be learnt: {', '.join(untaught)}"] if untaught else [])]

    def _small_notes(self) -> list[str]:
        size = self._task.crop_size_px
        small = [name for name, mask in zip(self.set.names, self.set.masks, strict=True) if min(mask.shape) < size]
        if small and self._task.bad_items == "fail":
            raise EvaluationError(
                f"{self.name}: {small[0]} and {len(small) - 1} more image(s) are smaller than a crop of {size} px; "
                "lower `crop_size_px` or `downscale`, or set `bad_items: skip` to have them padded."
            )
        return [f"images smaller than a crop, padded: {len(small)} ({', '.join(small[:3])})"] if small else []

    def _order(self, start: Start) -> list[int]:
        return [self.set.bands.index(band) for band in start.bands]

    def _normalisation(self, start: Start, runtime: Runtime) -> Normalisation:
        mean, std = torch.tensor(start.mean), torch.tensor(start.std)
        if self._evaluation.match_statistics:
            order = self._order(start)
            mean, std = torch.from_numpy(self._mean[order]), torch.from_numpy(self._std[order])
        return placed(Normalisation(mean.float(), std.float()), runtime.device)

    def _batch(self, rows: np.ndarray, rng: np.random.Generator, order: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Random crops, turned and flipped: float32 (B, C, S, S) in 0-1, and masks uint8 (B, S, S)."""
        crops = [_crop(self.set.images[k], self.set.masks[k], self._task.crop_size_px, self._mean, rng) for k in rows]
        images = np.stack([np.moveaxis(image[..., order], -1, 0) for image, _ in crops])
        return images, np.stack([mask for _, mask in crops])

    def _learning_rate(self, cell: Cell, start: Start, labelled: np.ndarray, runtime: Runtime) -> float:
        fitting, spared = held_out(labelled, self.set.rows["val"], self.plan.validation_fraction, cell.seed)
        candidates = self.plan.learning_rates if len(spared) else self.plan.learning_rates[:1]

        def score(rate: float) -> float:
            model, normalisation = self._learnt(cell, start, fitting, rate, runtime)
            masks = [self._predicted(model, normalisation, k, start, runtime) for k in spared]
            found = sum(self._confusion(mask, k) for mask, k in zip(masks, spared, strict=True))
            return float(mean_iou(np.asarray(found)))

        return choose(candidates, score)

    def _learnt(
        self, cell: Cell, start: Start, rows: np.ndarray, rate: float, runtime: Runtime
    ) -> tuple[MaskNetwork, Normalisation]:
        order, normalisation = self._order(start), self._normalisation(start, runtime)
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
        return model.eval(), normalisation

    def _unlabelled(self, order: list[int], normalisation: Normalisation, runtime: Runtime) -> Iterator[Tensor]:
        rng = np.random.default_rng(0)
        for _ in range(_RECALIBRATION_BATCHES):
            chosen = rng.choice(self.set.rows["train"], size=max(8, self.plan.batch_size))
            images, _ = self._batch(chosen, rng, order)
            yield normalisation.of_planes(torch.from_numpy(images).to(runtime.device))

    def _predicted(
        self, model: MaskNetwork, normalisation: Normalisation, row: int, start: Start, runtime: Runtime
    ) -> np.ndarray:
        order = self._order(start)
        image = np.ascontiguousarray(np.moveaxis(_scaled(self.set.images[row][..., order]), -1, 0))
        planes = normalisation.of_planes(torch.from_numpy(image)[None].to(runtime.device))
        return predict_mask(model, planes[0], self._task.crop_size_px, runtime)

    def _confusion(self, mask: np.ndarray, row: int) -> np.ndarray:
        table = multiclass_confusion_matrix(
            torch.from_numpy(mask.astype(np.int64)),
            torch.from_numpy(self.set.masks[row].astype(np.int64)),
            num_classes=len(self.set.classes),
            ignore_index=IGNORED,
        )
        return np.asarray(table.numpy(), dtype=np.int64)

    def _gallery(self, masks: Sequence[np.ndarray]) -> tuple[str, ...]:
        """Image, truth and prediction side by side, for the first test images."""
        visible = [self.set.bands.index(band) for band in ("red", "green", "blue") if band in self.set.bands]
        if not (self._task.show_images and self.set.may_be_shown) or len(visible) != 3:
            return ()
        pictures = []
        for mask, row in list(zip(masks, self.set.rows["test"], strict=True))[:_GALLERY_IMAGES]:
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


def _statistics(images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Channel means and deviations over all pixels, float32 (C,) each."""
    count, total, squares = 0, 0.0, 0.0
    for image in images:
        pixels = _scaled(image).reshape(-1, image.shape[-1]).astype(np.float64)
        count += len(pixels)
        total, squares = total + pixels.sum(axis=0), squares + (pixels**2).sum(axis=0)
    mean = np.asarray(total) / count
    deviation = np.sqrt(np.maximum(np.asarray(squares) / count - mean**2, 0.0))
    floor = np.where(deviation > 0, deviation, 1.0)  # a constant band stays constant
    return mean.astype(np.float32), floor.astype(np.float32)


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
