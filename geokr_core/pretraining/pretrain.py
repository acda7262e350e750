"""The pretraining step: one run for each variant and seed, and the folder that holds their results.

What one run does is in ``training``. Finished runs are kept beside the checkpoints, under a name made of all that they
depend on: a killed step is resumed with what is missing, a variant or a seed more trains nothing again, and the output
appears whole.
"""

import io
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from geokr_core.levir_kr.dataset import open_levir_kr
from geokr_core.networks.distributed import joined, world_of_environment
from geokr_core.pretraining.config import PretrainingConfig
from geokr_core.pretraining.results import FINISHED, assemble, finish_run, run_record
from geokr_core.pretraining.runs import runs_of
from geokr_core.pretraining.training.loop import train
from geokr_core.pretraining.training.monitoring import Clock
from geokr_core.pretraining.training.state import Run
from geokr_core.step.digests import file_md5
from geokr_core.step.reporter import LOG, Reporter
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
        checkpoints: folder for half-done and finished runs, outside ``out``. Work of these parameters and data found
            there is gone on with, and finished runs are taken as they are.
        reporter: hears progress and curves.

    Returns:
        The figures of each run; ``mean_images_per_s`` and ``mean_data_wait_fraction`` of what was trained now.

    Raises:
        ConfigError: a method needs land cover within chips, and the data set knows whole chips only.
        MissingInputError: there is no frozen data set.
        DatasetError: a shard is missing.
        BackboneError: ``initial_weights`` do not fit.
        TrainingError: too few chips, no such device, or a loss that is not finite.
    """
    data = open_levir_kr(levir_kr)
    with joined(config.device) as world:
        runs = list(runs_of(config, data, checkpoints, world))
        _mention_strangers(checkpoints, runs, reporter)
        _mention_precision(runs, reporter)
        clocks = []
        for run in runs:
            if world.agree(_is_kept(run, reporter) if world.is_first else None):
                reporter.info(f"{run.name}: finished before, kept")
                continue
            state, clock = train(run, reporter)
            clocks.append(clock)
            if world.is_first:
                finish_run(run, state)
        finished = world.agree([run_record(run) for run in runs] if world.is_first else None)
        if world.is_first:
            assemble(runs, finished, out)
        world.agree(None)  # nobody looks at the output before it is there
    return _summary(
        [record["result"] for record in finished], [record["history"] for record in finished], clocks, reporter
    )


def forget_finished(config: PretrainingConfig, levir_kr: Path, checkpoints: Path) -> None:
    """Drop what is kept of finished runs of these parameters and data, so that `pretrain` trains them again.

    Under ``torchrun`` these are the runs of as many processes; the first one alone may call it.
    """
    for run in runs_of(config, open_levir_kr(levir_kr), checkpoints, world_of_environment()):
        shutil.rmtree(run.folder / FINISHED, ignore_errors=True)


def _is_kept(run: Run, reporter: Reporter) -> bool:
    """Whether a run is finished and lies there as it was written: its files have second names in the output."""
    folder = run.folder / FINISHED
    if not folder.is_dir():
        return False
    written: Mapping[str, str] = run_record(run).get("files", {})  # earlier ones do not say
    changed = [name for name, md5 in written.items() if not (folder / name).is_file() or file_md5(folder / name) != md5]
    if changed:
        reporter.warning(f"{folder}: {', '.join(changed)} changed since it was written; {run.name} is trained again.")
        shutil.rmtree(folder)
    return not changed


def _mention_precision(runs: Sequence[Run], reporter: Reporter) -> None:
    for run in runs:
        if run.config.precision == "bf16" and not run.runtime.bf16:
            reporter.warning(
                f"pretraining.precision: chips of {run.data.chip_size_px} px are too small for bf16 gradients of a ResNet "
                "on the CPU, which come out wrong; computing in fp32."
            )
            return


def _mention_strangers(checkpoints: Path, runs: Sequence[Run], reporter: Reporter) -> None:
    ours = {run.folder for run in runs}
    strangers = sorted(p for p in checkpoints.glob("*") if p.is_dir() and p not in ours)
    for state in ("half-done", "finished"):
        found = [folder for folder in strangers if (folder / FINISHED).is_dir() == (state == "finished")]
        if not found:
            continue
        size = sum(file.stat().st_size for folder in found for file in folder.rglob("*") if file.is_file())
        tell = reporter.warning if state == "half-done" else reporter.info
        tell(
            f"{checkpoints}: {len(found)} {state} run(s) of other parameters or data ({size / 1e6:.0f} MB) are not used. "
            "They wait there for those parameters; delete the folder to free the space."
        )


_NOT_MEANT_TO_PREDICT: Final = frozenset({"shuffled", "majority"})
"""Methods whose KL to the proportions says nothing about whether they learned what they were given."""


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
        if result["method"] not in _NOT_MEANT_TO_PREDICT and kl is not None and kl >= constant:
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
    shown = ("folder", "train_kl", "validation_kl", "constant_kl", "teacher_updates")
    table = [{key: _rounded(result[key]) for key in shown} for result in results]
    return Summary(numbers, table, _curves(results, histories), warnings)


def _rounded(value: Number | None) -> Number:
    if value is None:
        return ""
    return round(value, 4) if isinstance(value, float) else value


def _curves(results: Sequence[Mapping[str, Any]], histories: Sequence[Sequence[Mapping[str, float | None]]]) -> bytes:
    """A picture of the KL curves against the best constant prediction; all seeds of a variant in one colour."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), dpi=100, layout="constrained")
    axes = figure.subplots()
    variants = list(dict.fromkeys(result["variant"] for result in results))
    named: set[str] = set()
    for result, history in zip(results, histories, strict=True):
        variant = result["variant"]
        colour = f"C{variants.index(variant) % 10}"
        steps, train_kl, validation_kl = (
            np.array([point.get(key) for point in history], dtype=np.float64)
            for key in ("step", "train_kl", "validation_kl")
        )
        judged = np.isfinite(validation_kl)
        axes.plot(steps, train_kl, color=colour, label=None if variant in named else variant)
        named.add(variant)
        axes.plot(steps[judged], validation_kl[judged], "o--", color=colour)
    axes.axhline(results[0]["constant_kl"], color="grey", linestyle=":", label="best constant prediction")
    axes.set(xlabel="step", ylabel="KL to the labels (nat)", ylim=(0, None), title="lines: training, dots: validation")
    axes.legend(fontsize="small")
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()
