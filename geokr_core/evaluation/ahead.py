"""Measuring the cells of a task in several processes, ahead of the step that then finds them kept.

A process has one thread. Threads within a layer wait for each other at its end: on two cores they are slower than two
processes, and many times slower where something else keeps a core busy.

Not here: how a cell is measured, and under which name it is kept (``measuring``).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

from geokr_core.errors import EvaluationError
from geokr_core.evaluation.cells import Cell, DownstreamTask, Start
from geokr_core.evaluation.config import EvaluationConfig
from geokr_core.evaluation.measuring import cell_path, kept_or_measured
from geokr_core.evaluation.opening import open_task
from geokr_core.evaluation.task_kinds import TaskConfig
from geokr_core.networks.runtime import device_of
from geokr_core.step.processes import in_processes
from geokr_core.step.reporter import RecordingReporter, Reporter

Work = Sequence[tuple[Cell, Start]]
"""Cells with what each starts from."""


@dataclass(frozen=True)
class _Said:
    infos: Sequence[str]
    warnings: Sequence[str]


def measured_ahead(
    config: EvaluationConfig, section: TaskConfig, task: DownstreamTask, work: Work, cells: Path, reporter: Reporter
) -> Iterator[Sequence[Cell]]:
    """Measure those cells of a task that are not kept yet, on as many cores as ``config.threads`` says.

    Nothing is done on a GPU, with one thread, or where all cells share one network: the features of a network serve all
    its cells, so that these stay together.

    Args:
        config: which evaluation it is a part of.
        section: of the task; each process opens it once.
        task: the same, open.
        work: all cells of the task.
        cells: folder that keeps finished cells.
        reporter: hears what the processes say, network by network.

    Yields:
        Cells that were measured and kept.

    Raises:
        EvaluationError: a cell cannot be measured.
        OSError: weights cannot be read, or a cell cannot be kept.
    """
    missing = [(cell, start) for cell, start in work if not cell_path(task, cell, start, cells).is_file()]
    groups = [tuple(group) for _, group in groupby(missing, lambda pair: (pair[0].initialisation, pair[0].seed))]
    groups.sort(key=len, reverse=True)  # so that no long one is left to one core at the end
    processes = min(config.threads, len(groups))
    if processes < 2 or device_of(config.device, "evaluation.device", EvaluationError).type != "cpu":
        return
    measure = partial(_measure, config, section, cells)
    for group, said in zip(groups, in_processes(measure, groups, processes, kept=True), strict=True):
        for line in said.infos:
            reporter.info(line)
        for line in said.warnings:
            reporter.warning(line)
        yield [cell for cell, _ in group]


_open: dict[str, DownstreamTask] = {}
"""The task that this process measured last: it has many networks to be judged on it."""


def _measure(config: EvaluationConfig, section: TaskConfig, cells: Path, group: Work) -> _Said:
    reporter = RecordingReporter()
    asked = f"{config.model_dump_json()} {section.model_dump_json()}"
    if asked not in _open:
        _open.clear()
        _open[asked] = open_task(section, config)
    for cell, start in group:
        kept_or_measured(_open[asked], cell, start, cells, reporter)
    return _Said(reporter.infos, reporter.warnings)
