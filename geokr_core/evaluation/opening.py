"""Opening the labelled set of a task, and making sure that its cells can be measured before the first one is."""

from collections.abc import Sequence
from importlib import import_module

from geokr_core.backbone.bundle import Bundle
from geokr_core.errors import EvaluationError, MissingExtraError
from geokr_core.evaluation.cells import Cell, DownstreamTask
from geokr_core.evaluation.config import EvaluationConfig
from geokr_core.evaluation.task_kinds import TaskConfig, kind_of
from geokr_core.step.extras import named_extras
from geokr_core.step.reporter import Reporter


def open_task(task: TaskConfig, evaluation: EvaluationConfig) -> DownstreamTask:
    """Open a labelled set; only now is the code of its kind imported.

    Args:
        task: which set, and of which kind.
        evaluation: where sets lie and how they are judged.

    Raises:
        EvaluationError: the set is missing, damaged or cannot be judged; or the kind's class cannot be imported.
        MissingExtraError: the kind needs more than is installed.
    """
    module, _, name = kind_of(task.kind).opens.partition(":")
    try:
        with named_extras():
            opens = getattr(import_module(module), name)
    except MissingExtraError:
        raise
    except (ImportError, AttributeError) as error:
        raise EvaluationError(
            f"{task.name}: the kind {task.kind!r} is opened by {module}:{name}, which cannot be imported: {error}. "
            "Mend the package that brings it."
        ) from error
    opened: DownstreamTask = opens(task, evaluation)
    return opened


def require_measurable(task: DownstreamTask, bundle: Bundle, plan: Sequence[Cell], reporter: Reporter) -> None:
    """Check that all cells of a task can be measured, and pass its notes on.

    Raises:
        EvaluationError: the set lacks a band that the backbone reads, or a cell cannot be measured.
    """
    lacking = [band for band in bundle.bands if band not in task.bands]
    if lacking:
        raise EvaluationError(
            f"{task.name}: found images of the bands {', '.join(task.bands)}, but the backbone reads "
            f"{', '.join(bundle.bands)}; expected every band of the backbone among those of the set. Pretrain with "
            f"`chips.bands: [{', '.join(task.bands)}]`, or evaluate on sets with the backbone's bands."
        )
    for cell in plan:
        task.require(cell)
    for note in task.notes:
        reporter.info(f"{task.name}: {note}")
