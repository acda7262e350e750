"""Semantic segmentation: a class for every pixel, scored by intersection over union."""

from geokr_core.config import EvaluationConfig, TaskConfig
from geokr_core.tasks.mask_layouts import MASK_LAYOUTS
from geokr_core.tasks.mask_learning import MaskTask


class SemanticSegmentation(MaskTask):
    """A segmentation set that scores networks by mean IoU, IoU of every class and pixel accuracy."""

    def __init__(self, task: TaskConfig, evaluation: EvaluationConfig) -> None:
        """Read the set.

        Raises:
            EvaluationError: see ``read_mask_set``.
        """
        super().__init__(task, evaluation, MASK_LAYOUTS)
