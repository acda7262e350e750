"""Average precision of detected boxes, by pycocotools; resampled images reuse the matching, which is the costly part."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO  # type: ignore[import-untyped]
from pycocotools.cocoeval import COCOeval  # type: ignore[import-untyped]


@dataclass(frozen=True)
class Boxes:
    """Boxes of an image.

    Attributes:
        boxes: float (N, 4): left, top, right, bottom.
        labels: int (N,), 1 is the first class.
        scores: float (N,), of predictions; None for truth.
        ignored: bool (N,), of truth: matched by anything at no cost; None where none is.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None = None
    ignored: np.ndarray | None = None


@dataclass(frozen=True)
class AveragePrecision:
    """AP of each class, float (K,), NaN for classes without truth.

    Attributes:
        coco: mean over IoU thresholds 0.50, 0.55 … 0.95.
        at_50: at IoU 0.5.
    """

    coco: np.ndarray
    at_50: np.ndarray

    @property
    def map(self) -> float:
        """COCO mAP; 0 if there is no truth at all."""
        return _mean(self.coco)

    @property
    def ap50(self) -> float:
        """Mean over classes of AP at IoU 0.5; 0 if there is no truth at all."""
        return _mean(self.at_50)


class Matched:
    """Predictions matched with truth, image by image."""

    def __init__(self, truth: Sequence[Boxes], predicted: Sequence[Boxes], num_classes: int) -> None:
        """Match once.

        Args:
            truth: one entry an image.
            predicted: one entry an image, with scores; the 100 most confident of an image and class count.
            num_classes: K.
        """
        gold = COCO()
        gold.dataset = _as_coco(truth, num_classes)
        with contextlib.redirect_stdout(io.StringIO()):
            gold.createIndex()
            rows = _prediction_rows(predicted)
            found = gold.loadRes(rows) if len(rows) else COCO()
            if not len(rows):
                found.dataset = {**gold.dataset, "annotations": []}
                found.createIndex()
            self._eval = COCOeval(gold, found, "bbox")
            params = self._eval.params
            params.areaRng, params.areaRngLbl, params.maxDets = params.areaRng[:1], params.areaRngLbl[:1], [100]
            self._eval.evaluate()
        self._matches: list[Any] = list(self._eval.evalImgs)
        self._num_images, self._num_classes = len(truth), num_classes

    def precision(self, images: Sequence[int] | np.ndarray | None = None) -> AveragePrecision:
        """Average precision over all images, or over resampled ones.

        Args:
            images: places of images, some perhaps more than once; None: each once.
        """
        chosen = list(range(self._num_images)) if images is None else [int(k) for k in images]
        self._eval.evalImgs = [
            self._matches[category * self._num_images + k] for category in range(self._num_classes) for k in chosen
        ]
        numbered = list(range(len(chosen)))
        self._eval.params.imgIds = self._eval._paramsEval.imgIds = numbered
        with contextlib.redirect_stdout(io.StringIO()):
            self._eval.accumulate()
        table = self._eval.eval["precision"][:, :, :, 0, 0]  # thresholds, recalls, classes
        known = table.min(axis=(0, 1)) > -1
        coco, at_50 = table.mean(axis=(0, 1)), table[0].mean(axis=0)
        return AveragePrecision(np.where(known, coco, np.nan), np.where(known, at_50, np.nan))


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else 0.0


def _as_coco(truth: Sequence[Boxes], num_classes: int) -> dict[str, Any]:
    annotations: list[dict[str, Any]] = []
    for image, of_image in enumerate(truth):
        crowds = of_image.ignored if of_image.ignored is not None else np.zeros(len(of_image.boxes), dtype=bool)
        for (left, top, right, bottom), label, crowd in zip(
            of_image.boxes.tolist(), of_image.labels, crowds, strict=True
        ):
            width, height = right - left, bottom - top
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(label),
                    "iscrowd": int(crowd),
                    "bbox": [left, top, width, height],
                    "area": width * height,
                }
            )
    return {
        "info": {},
        "images": [{"id": image} for image in range(len(truth))],
        "annotations": annotations,
        "categories": [{"id": k + 1, "name": str(k + 1)} for k in range(num_classes)],
    }


def _prediction_rows(predicted: Sequence[Boxes]) -> np.ndarray:
    """float64 (N, 7) as pycocotools reads it: image, left, top, width, height, score, class."""
    parts = []
    for image, of_image in enumerate(predicted):
        boxes = of_image.boxes.astype(np.float64)
        scores = of_image.scores if of_image.scores is not None else np.ones(len(boxes))
        parts.append(
            np.column_stack(
                [np.full(len(boxes), image), boxes[:, :2], boxes[:, 2:] - boxes[:, :2], scores, of_image.labels]
            )
        )
    return np.concatenate(parts) if parts else np.zeros((0, 7))
