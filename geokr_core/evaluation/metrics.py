"""What a metric is called and which way is better. No torch, no pandas: the parameter file reads this."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Metric:
    """A figure that a task gives.

    Attributes:
        name: in results and criteria.
        words: in tables, charts and sentences.
        higher_is_better: False for shares of errors.
    """

    name: str
    words: str
    higher_is_better: bool = True

    @property
    def sign(self) -> int:
        """1 where more is better, -1 where less is."""
        return 1 if self.higher_is_better else -1


@dataclass(frozen=True)
class TaskMetrics:
    """The metrics of the tasks of one evaluation.

    A metric that is not listed, such as one of a package that is no longer installed, is named by its own name, and more
    of it is taken for better.

    Attributes:
        by_task: task → its metrics, the one that it is judged by first.
        otherwise: metrics of tasks that are not listed.
    """

    by_task: Mapping[str, tuple[Metric, ...]] = field(default_factory=dict)
    otherwise: tuple[Metric, ...] = ()

    def of(self, task: str, name: str) -> Metric:
        """One metric of a task."""
        known = {metric.name: metric for metric in (*self.otherwise, *self.by_task.get(task, ()))}
        return known.get(name) or Metric(name, name.replace("_", " "))

    def headline(self, task: str, there: Collection[str]) -> str:
        """The metric that a task is judged by: the first one listed, or else the first one that is there.

        Args:
            task: its name.
            there: names of the metrics that were measured, at least one.
        """
        listed = (*self.by_task.get(task, ()), *self.otherwise)
        return next((metric.name for metric in listed if metric.name in there), next(iter(there)))
