"""Cloud and snow detection: masks of {clear, cloud, thin cloud, shadow, snow}, and how far a cloud mask can be trusted.

Thick and thin cloud count as cloud in precision, recall and screening. A scene is over-screened by the
share of its pixels that are called cloud and are none, and under-screened by the share of cloud that was missed.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from geokr_core.errors import EvaluationError
from geokr_core.evaluation.cells import Score
from geokr_core.evaluation.config import EvaluationConfig
from geokr_core.evaluation.learning.mask_task import MaskTask
from geokr_core.evaluation.statistics import bootstrap_rows, percentile_interval
from geokr_core.evaluation.task_kinds import MaskConfig

SKY_CLASSES: Final = ("clear", "cloud", "thin_cloud", "shadow", "snow")
_CLOUDY: Final = [SKY_CLASSES.index(name) for name in ("cloud", "thin_cloud")]


class CloudSnowDetection(MaskTask):
    """A cloud and snow set that scores networks by mean IoU, precision and recall of cloud, and screening by scene."""

    def __init__(self, task: MaskConfig, evaluation: EvaluationConfig) -> None:
        """Read the set.

        Raises:
            EvaluationError: see ``read_mask_set``; its classes are not those of a sky.
        """
        super().__init__(task, evaluation, "cloud_snow")
        if self.set.classes != SKY_CLASSES:
            raise EvaluationError(
                f"{task.name}: its layout names the classes {', '.join(self.set.classes)}; expected {', '.join(SKY_CLASSES)}, "
                "in this order, so that cloud and snow can be screened."
            )

    def further(self, confusions: np.ndarray, names: Sequence[str]) -> tuple[tuple[Score, ...], Mapping[str, object]]:
        """Precision and recall of cloud over all pixels, and over- and under-screening averaged over scenes."""
        cloud = cloud_tables(confusions)
        over, under = screening(cloud)
        draws = bootstrap_rows(len(names))
        resampled = cloud[draws].sum(axis=1)
        scores = [
            Score(metric, float(of(cloud.sum(axis=0))), *percentile_interval(of(resampled).tolist()))
            for metric, of in (("cloud_precision", cloud_precision), ("cloud_recall", cloud_recall))
        ]
        scores += [
            Score(metric, float(values.mean()), *percentile_interval(values[draws].mean(axis=1).tolist()))
            for metric, values in (("over_screening", over), ("under_screening", under))
        ]
        scenes = [
            {"scene": name, "over_screened": round(float(o), 6), "under_screened": round(float(u), 6)}
            for name, o, u in zip(names, over, under, strict=True)
        ]
        return tuple(scores), {"screening": scenes}


def cloud_tables(confusions: np.ndarray) -> np.ndarray:
    """Confusions int64 (N, 2, 2) of not cloud and cloud, from those of the sky classes (N, 5, 5)."""
    cloudy = np.isin(np.arange(confusions.shape[-1]), _CLOUDY)
    parts = [
        [confusions[:, rows][:, :, columns].sum(axis=(1, 2)) for columns in (~cloudy, cloudy)]
        for rows in (~cloudy, cloudy)
    ]
    return np.moveaxis(np.array(parts), 2, 0)


def cloud_precision(cloud: np.ndarray) -> np.ndarray:
    """Share of what is called cloud that is cloud, from tables (..., 2, 2); 0 where nothing is called cloud."""
    called = cloud[..., :, 1].sum(axis=-1)
    return np.asarray(cloud[..., 1, 1] / np.maximum(called, 1))


def cloud_recall(cloud: np.ndarray) -> np.ndarray:
    """Share of cloud that is called cloud, from tables (..., 2, 2); 0 where there is no cloud."""
    there = cloud[..., 1, :].sum(axis=-1)
    return np.asarray(cloud[..., 1, 1] / np.maximum(there, 1))


def screening(cloud: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Over- and under-screened share of the labelled pixels of each scene, from tables (N, 2, 2)."""
    pixels = np.maximum(cloud.sum(axis=(-2, -1)), 1)
    return np.asarray(cloud[..., 0, 1] / pixels), np.asarray(cloud[..., 1, 0] / pixels)
