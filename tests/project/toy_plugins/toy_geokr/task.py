"""A kind of task: how far apart the features of two folders of images lie, as one number."""

from geokr_core.evaluation.metrics import Metric
from geokr_core.evaluation.task_kinds import TaskConfig, TaskKind

TOY_TASK = TaskKind(
    opens="toy_geokr.task_set:ToyTask", parameters=TaskConfig, metrics=(Metric("spread", "spread of the features"),)
)
