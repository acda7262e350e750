"""The pretraining step: one run for each variant and seed, and the folder that holds their results.

Finished runs are kept beside the checkpoints, under a name made of all that they depend on: a killed step is resumed with
what is missing, a variant or a seed more trains nothing again, and the output appears whole.

Not here: what one run does (``pretraining.training``).
"""

import errno
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from geokr_core.errors import DatasetError, TrainingError
from geokr_core.levir_kr.dataset import LevirKR, open_levir_kr
from geokr_core.networks.distributed import joined, processes_of_environment
from geokr_core.pretraining.at_once import require_possible, trained_at_once
from geokr_core.pretraining.config import PretrainingConfig
from geokr_core.pretraining.recipes import method_of
from geokr_core.pretraining.results import FINISHED, assemble, damage_of, finish_run, run_record
from geokr_core.pretraining.runs import runs_of
from geokr_core.pretraining.training.loop import train
from geokr_core.pretraining.training.monitoring import Clock
from geokr_core.pretraining.training.state import Run
from geokr_core.step.files import sweep
from geokr_core.step.reporter import LOG, Part, Reporter, Source
from geokr_core.step.section import as_plain
from geokr_core.step.summary import Number, Summary


def pretrain(
    config: PretrainingConfig, levir_kr: Path, out: Path, checkpoints: Path, reporter: Reporter = LOG
) -> Summary:
    """Pretrain one backbone for each variant and seed.

    Started by ``torchrun``, all its processes train each run together, and the first one writes.

    Args:
        config: how.
        levir_kr: folder of the frozen data set.
        out: folder to write into, replaced as a whole: ``runs.json``, ``history.csv`` and a folder
            ``<variant>-seed<k>`` for each run.
        checkpoints: folder for half-done and finished runs, outside ``out``. Half-done runs of these parameters and
            data are resumed, and finished ones are taken as they are.
        reporter: hears progress and curves.

    Returns:
        The figures of each run; ``mean_images_per_s`` and ``mean_data_wait_fraction`` of what was trained now.

    Raises:
        ConfigError: a method needs land cover within chips, and the data set knows whole chips only; or several trainings at once
            are asked for on a GPU.
        MissingInputError: there is no frozen data set.
        DatasetError: a shard is missing or damaged.
        BackboneError: ``initial_weights`` do not fit.
        TrainingError: too few chips, no such device, a loss that is not finite, or a disk that is full.
        KeyboardInterrupt: Ctrl-C, and SystemExit at SIGTERM: the training is saved first, see `training.interruption`.
    """
    data = open_levir_kr(levir_kr)
    source = Source("levir_kr", data.data_version, str(levir_kr), "training", len(data.rows_of("train")))
    reporter.source(source)
    with _disk_refusals(out, checkpoints), joined(config.device) as processes:
        runs = list(runs_of(config, data, checkpoints, processes))
        require_possible(config, runs[0])
        _mention_other_runs(checkpoints, runs, reporter)
        _mention_precision(runs, reporter)
        kept = [bool(processes.agree(_is_kept(run, reporter) if processes.is_first else None)) for run in runs]
        for run in compress(runs, kept):
            with _opened(run, source, reporter, is_kept=True) as told:
                told.info(f"{run.name}: finished before, kept")
        missing = [run for run, is_kept in zip(runs, kept, strict=True) if not is_kept]
        if missing and processes.is_first:
            _require_undamaged(data)
        clocks = _all_trained(
            config, levir_kr, checkpoints, missing, partial(_opened, source=source, reporter=reporter), reporter
        )
        finished = processes.agree([run_record(run) for run in runs] if processes.is_first else None)
        if processes.is_first:
            assemble(runs, finished, out)
        processes.agree(None)  # no process looks at the output before it is there
    return _summary(
        [record["result"] for record in finished], [record["history"] for record in finished], clocks, reporter
    )


def forget_finished(config: PretrainingConfig, levir_kr: Path, checkpoints: Path) -> None:
    """Drop what is kept of finished runs of these parameters and data, so that `pretrain` trains them again.

    Under ``torchrun`` these are the runs of as many processes; the first one alone may call it.
    """
    for run in runs_of(config, open_levir_kr(levir_kr), checkpoints, processes_of_environment()):
        shutil.rmtree(run.folder / FINISHED, ignore_errors=True)


@contextmanager
def _opened(run: Run, source: Source, reporter: Reporter, *, is_kept: bool = False) -> Iterator[Reporter]:
    """The part of the step that a run speaks to; at its end it hears what came out."""
    with reporter.part(_part(run, is_kept=is_kept)) as told:
        told.source(source)
        yield told
        if run.processes.is_first:
            _tell_figures(run, told)


def _all_trained(
    config: PretrainingConfig,
    levir_kr: Path,
    checkpoints: Path,
    runs: Sequence[Run],
    opened: Callable[[Run], AbstractContextManager[Reporter]],
    reporter: Reporter,
) -> list[Clock]:
    """Train runs to their end and keep what comes out, one after the other or several at once."""
    if min(config.runs_at_once, len(runs)) > 1:
        steps = sum(run.config.steps for run in runs)
        with reporter.progress(f"{len(runs)} trainings, {config.runs_at_once} at once", steps) as advance:
            return trained_at_once(config, levir_kr, checkpoints, runs, opened, advance)
    clocks = []
    with reporter.progress("runs", len(runs)) as advance:
        for run in runs:
            with opened(run) as told:
                state, clock = train(run, told)
                if run.processes.is_first:
                    finish_run(run, state)
            clocks.append(clock)
            advance(1)
    return clocks


def _part(run: Run, *, is_kept: bool) -> Part:
    """A training as listeners know it."""
    config = run.config
    name = f"{run.variant} · {config.architecture} · {config.steps} steps · seed {run.seed}"
    parameters = {"variant": run.variant, "method": run.method, "seed": run.seed, "pretraining": as_plain(config)}
    return Part(name, run.name, run.fingerprint, parameters, _about(run), is_kept)


def _about(run: Run) -> str:
    """What a training is, for someone who finds its run among others."""
    config = run.config
    of = f"Variant `{run.variant}`" + ("" if run.method == run.variant else f" (method `{run.method}`)")
    control = ""
    if run.recipe.labels == "shuffled":
        control = " It is a **control**: each chip was given the land cover of another one."
    elif run.recipe.label_resolution_m is not None:
        control = (
            f" It is a **control**: land cover was averaged over squares of {run.recipe.label_resolution_m:g} m first."
        )
    return (
        f"{of}, seed {run.seed}: {config.architecture}, {config.steps} steps of {config.batch_size} chips.{control}\n\n"
        "`result/validation_kl` below `result/validation_constant_kl`: it predicts land cover on ground that it has not seen "
        "better than one and the same prediction for every chip would. To compare trainings, select their runs and choose *Compare*."
    )


def _tell_figures(run: Run, reporter: Reporter) -> None:
    """What came out of a training, or had come out of it: the same figures for both, so that they can be compared."""
    result = run_record(run)["result"]
    reporter.figures({key: result[key] for key in _FINAL_FIGURES if result.get(key) is not None})


def _is_kept(run: Run, reporter: Reporter) -> bool:
    """Whether a run is finished and lies there as it was written; one that is damaged is dropped."""
    sweep(run.folder)  # a process that was killed as it finished this run
    if not (run.folder / FINISHED).is_dir():
        return False
    damage = damage_of(run)
    if damage:
        reporter.warning(f"{damage} {run.name} is trained again.")
        shutil.rmtree(run.folder / FINISHED)
    return not damage


def _require_undamaged(data: LevirKR) -> None:
    """Refuse shards, cells or a catalogue whose bytes are not those that were frozen, before anything is learned from them."""
    damaged = data.damaged()
    if damaged:
        raise DatasetError(
            f"{data.folder}: {len(damaged)} file(s) are not what was frozen: "
            + "; ".join(f"{path}: {what}" for path, what in list(damaged.items())[:5])
            + ". Run `geokr chips` and `geokr levir-kr`, which make damaged files again, or `dvc pull` where the data set is "
            "versioned elsewhere."
        )


_FINAL_FIGURES: Final = ("train_kl", "validation_kl", "constant_kl", "validation_constant_kl", "teacher_updates")

_DISK: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO})


@contextmanager
def _disk_refusals(out: Path, checkpoints: Path) -> Iterator[None]:
    """Say in one sentence what a full or read-only disk refused, and what is kept."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK and not isinstance(error, shutil.Error):
            raise
        raise TrainingError(
            f"{error.filename or out}: {error.strerror or error}. Checkpoints and finished runs in {checkpoints} are kept, and "
            f"so is what was in {out}. Free some space, or mend the permissions, and run the same command again to resume."
        ) from error


def _mention_precision(runs: Sequence[Run], reporter: Reporter) -> None:
    for run in runs:
        if run.config.precision == "bf16" and not run.runtime.bf16:
            reporter.warning(
                f"pretraining.precision: chips of {run.data.chip_size_px} px are too small for bf16 gradients of a ResNet "
                "on the CPU, which come out wrong; computing in fp32."
            )
            return


def _mention_other_runs(checkpoints: Path, runs: Sequence[Run], reporter: Reporter) -> None:
    ours = {run.folder for run in runs}
    others = sorted(p for p in checkpoints.glob("*") if p.is_dir() and p not in ours)
    for state in ("half-done", "finished"):
        found = [folder for folder in others if (folder / FINISHED).is_dir() == (state == "finished")]
        if not found:
            continue
        size = sum(file.stat().st_size for folder in found for file in folder.rglob("*") if file.is_file())
        tell = reporter.warning if state == "half-done" else reporter.info
        tell(
            f"{checkpoints}: {len(found)} {state} run(s) of other parameters or data ({size / 1e6:.0f} MB) are not used. "
            "They wait there for those parameters; delete the folder to free the space."
        )


def _summary(
    results: Sequence[Mapping[str, Any]],
    histories: Sequence[Sequence[Mapping[str, float | None]]],
    clocks: Sequence[Clock],
    reporter: Reporter,
) -> Summary:
    warnings = []
    stale = [
        result for result in results if result["transfer"] == "teacher" and result["teacher_initial_fraction"] > 0.5
    ]
    if stale:
        warnings.append(
            f"{stale[0]['folder']}: the teacher moved {stale[0]['teacher_updates']} time(s) and is still "
            f"{stale[0]['teacher_initial_fraction']:.2f} its own start, yet it is what is transferred. Train for more steps, "
            "set `teacher_schedule: every_step` or `transfer: student`, or start from `initial_weights`."
        )
    for result in results:
        kl, constant = result["validation_kl"], result["validation_constant_kl"]
        if kl is not None and kl >= constant and method_of(result["method"]).predicts:
            warnings.append(
                f"{result['folder']}: validation KL {kl:.3f} is no better than that of a constant prediction "
                f"({constant:.3f}): nothing was learned that holds elsewhere. "
                "Try more steps or more chips, and check that chips and land cover show the same ground."
            )
    for warning in warnings:
        reporter.warning(warning)
    first = results[0]
    numbers: dict[str, Number] = {"num_runs": len(results), "num_steps": first["num_steps"]}
    for key in ("train_kl", "validation_kl", "constant_kl", "validation_constant_kl"):
        if first[key] is not None:
            numbers[key] = round(first[key], 4)
    numbers["teacher_updates"] = first["teacher_updates"]
    trained_s = sum(clock.trained_s for clock in clocks)
    if trained_s > 0:
        numbers["mean_images_per_s"] = round(sum(clock.num_images for clock in clocks) / trained_s, 1)
        numbers["mean_data_wait_fraction"] = round(sum(clock.waited_s for clock in clocks) / trained_s, 5)
    shown = ("folder", "validation_kl", "validation_constant_kl", "train_kl", "constant_kl", "teacher_updates")
    table = [{key: _rounded(result[key]) for key in shown} for result in results]
    return Summary(numbers, table, _curves(results, histories), warnings)


def _rounded(value: Number | None) -> Number:
    if value is None:
        return ""
    return round(value, 4) if isinstance(value, float) else value


def _curves(results: Sequence[Mapping[str, Any]], histories: Sequence[Sequence[Mapping[str, float | None]]]) -> bytes:
    """The curves of all runs, see `pretraining_chart`."""
    from geokr_core.pretraining.charts import pretraining_chart

    points = [
        {"variant": result["variant"], "seed": result["seed"], **point}
        for result, history in zip(results, histories, strict=True)
        for point in history
    ]
    columns = ["variant", "seed", "step", "train_kl", "validation_kl", "learning_rate"]
    history = pd.DataFrame(points, columns=columns).astype(dict.fromkeys(columns[2:], np.float64))
    return pretraining_chart(history, results[0]["constant_kl"], "png")
