"""Semantic segmentation: a class for every pixel, scored by intersection over union."""

from geokr_core.evaluation.config import EvaluationConfig
from geokr_core.evaluation.learning.mask_task import MaskTask
from geokr_core.evaluation.task_kinds import MaskConfig


class SemanticSegmentation(MaskTask):
    """A segmentation set that scores networks by mean IoU, IoU of every class and pixel accuracy."""

    def __init__(self, task: MaskConfig, evaluation: EvaluationConfig) -> None:
        """Read the set.

        Raises:
            EvaluationError: see ``read_mask_set``.
        """
        super().__init__(task, evaluation, "segmentation")
