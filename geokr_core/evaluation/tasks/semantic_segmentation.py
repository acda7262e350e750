"""Semantic segmentation: a class for every pixel, scored by intersection over union."""

from geokr_core.evaluation.config import EvaluationConfig, TaskConfig
from geokr_core.evaluation.sets.mask_sets import MASK_LAYOUTS
from geokr_core.evaluation.tasks.mask_task import MaskTask


class SemanticSegmentation(MaskTask):
    """A segmentation set that scores networks by mean IoU, IoU of every class and pixel accuracy."""

    def __init__(self, task: TaskConfig, evaluation: EvaluationConfig) -> None:
        """Read the set.

        Raises:
            EvaluationError: see ``read_mask_set``.
        """
        super().__init__(task, evaluation, MASK_LAYOUTS)
