"""Metrics of masks, from a confusion matrix."""

import numpy as np


def iou_of(confusion: np.ndarray) -> np.ndarray:
    """Intersection over union of each class, float64 (..., K), from confusion matrices (..., K, K); NaN without truth."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    truth = confusion.sum(axis=-1)
    union = truth + confusion.sum(axis=-2) - hits
    return np.asarray(np.divide(hits, union, out=np.full_like(hits, np.nan), where=truth > 0))


def mean_iou(confusion: np.ndarray) -> np.ndarray:
    """Mean IoU, float64 (...), over the classes that the truth holds.

    torchmetrics' macro average counts a class that is predicted but nowhere true as 0, so that the mean of two
    networks is over different classes; here all are averaged over the same ones.
    """
    values = iou_of(confusion)
    known = ~np.isnan(values)
    total = np.where(known, values, 0.0).sum(axis=-1)
    return np.asarray(total / np.maximum(known.sum(axis=-1), 1))


def pixel_accuracy(confusion: np.ndarray) -> np.ndarray:
    """Share of labelled pixels that are right, float64 (...), from confusion matrices (..., K, K)."""
    hits = np.trace(confusion, axis1=-2, axis2=-1)
    return np.asarray(hits / np.maximum(confusion.sum(axis=(-2, -1)), 1))
