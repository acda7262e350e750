"""What a finished run leaves behind: history, weights, description; and the output folder made of all runs."""

import csv
import io
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from geokr_core.errors import TrainingError
from geokr_core.networks.architectures import feature_dim
from geokr_core.networks.weights import save_weights
from geokr_core.pretraining.geographic_types import GeographicTypes
from geokr_core.pretraining.labels import constant_kl
from geokr_core.pretraining.network import Network
from geokr_core.pretraining.recipe import Recipe
from geokr_core.pretraining.runs import weights_md5, weights_path
from geokr_core.pretraining.training.loop import delivered, judged
from geokr_core.pretraining.training.resuming import drop_progress
from geokr_core.pretraining.training.state import Run, State
from geokr_core.pretraining.training.validation import Judged
from geokr_core.step.digests import file_md5, text_digest
from geokr_core.step.files import read_json, whole_file, whole_folder, write_json
from geokr_core.step.section import as_plain

_FIRST_COLUMNS: Final = (
    "variant",
    "seed",
    "step",
    "loss",
    "supervised_loss",
    "consistency_loss",
    "train_kl",
    "validation_kl",
    "learning_rate",
    "teacher_momentum",
    "gradient_norm",
    "label_entropy",
    "teacher_entropy",
    "student_entropy",
    "mean_bias",
    "dense_loss",
    "identity_loss",
    "aggregation_loss",
    "contrast_loss",
    "anchor_loss",
)
"""Columns that every ``history.csv`` has, in this order, whether a method measures them or not."""

FINISHED: Final = "finished"


def run_record(run: Run) -> dict[str, Any]:
    """The record of a finished run.

    Raises:
        OSError: it cannot be read.
        TrainingError: it is damaged.
    """
    path = run.folder / FINISHED / "record.json"
    try:
        record: dict[str, Any] = read_json(path)
        written = record.pop("digest", None)  # the first version wrote none
        result, history, _ = record["result"], record["history"], record.get("files", {})
    except (ValueError, KeyError, AttributeError) as error:
        raise TrainingError(f"{path}: not a record of a finished run ({error}).") from error
    if (written is not None and written != text_digest(record)) or not isinstance(result, dict) or not history:
        raise TrainingError(f"{path}: not what was written.")
    return record


def damage_of(run: Run) -> str:
    """What is damaged of a finished run, whose files have second names in the output; empty where all is as written."""
    folder = run.folder / FINISHED
    try:
        written: Mapping[str, str] = run_record(run).get("files", {})  # the first version recorded none
    except (FileNotFoundError, TrainingError) as error:
        return str(error)
    changed = [name for name, md5 in written.items() if not (folder / name).is_file() or file_md5(folder / name) != md5]
    return f"{folder}: {', '.join(changed)} changed since it was written." if changed else ""


def finish_run(run: Run, state: State) -> None:
    """Judge a trained run, keep its weights and figures, and drop its checkpoints."""
    teacher, student = state.teacher, state.student
    tensors = [*student.state_dict().values(), *teacher.network.state_dict().values()]
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise TrainingError(
            f"{run.name}: a weight is not finite after {state.step} steps; nothing is delivered. "
            "Lower pretraining.learning_rate, lengthen warmup_steps, or try `precision: fp32`."
        )
    difference = teacher.max_difference(student)
    network, step = delivered(run, state)
    evidence = {
        "teacher_shares_storage": teacher.shares_storage_with(student),
        "teacher_differs": difference > 0.0,
        "teacher_max_difference": difference,
        "finite": True,
        "teacher_updates": state.teacher_updates,
        "teacher_initial_fraction": state.teacher_initial_fraction,
        "delivered_step": step,
    }
    figures, on_validation = _figures(run, network)
    with whole_folder(run.folder / FINISHED) as folder:
        save_weights(network.backbone, folder / "backbone.safetensors", run.data.bands)
        save_weights(network.head, folder / "head.safetensors")
        if network.correction is not None:
            _write_correction(folder / "correction.json", network.correction.matrix(), run.data.classes)
        if run.type_centres is not None:
            _write_types(folder / "types.json", run.type_centres, run.data.classes)
        if on_validation is not None:
            write_json(folder / "calibration.json", on_validation.calibration(run.data.classes))
        write_json(folder / "run.json", _description(run) | evidence)
        files = {path.name: file_md5(path) for path in sorted(folder.iterdir())}
        record = {"result": figures | evidence, "history": state.history, "files": files}
        write_json(folder / "record.json", record | {"digest": text_digest(record)})
    drop_progress(run)


def _write_correction(path: Path, matrix: torch.Tensor, classes: Sequence[str]) -> None:
    """The learned confusions: of ground that is of the row's class, the share that the product reports as the column's."""
    rows = [[round(float(value), 6) for value in row] for row in matrix.detach().cpu()]
    write_json(path, {"ground_classes": list(classes), "reported_classes": list(classes), "matrix": rows})


def _write_types(path: Path, types: GeographicTypes, classes: Sequence[str]) -> None:
    """Centres of the types of ground: square roots of shares and unit vectors of place, each times its factor."""
    rows = [[round(float(value), 6) for value in row] for row in types.centres]
    factors = {"land_cover_factor": types.land_cover_factor, "place_factor": types.place_factor}
    write_json(path, {"columns": [*(f"sqrt_{name}" for name in classes), "x", "y", "z"], **factors, "centres": rows})


def _figures(run: Run, network: Network) -> tuple[dict[str, Any], Judged | None]:
    own = run.data.proportions
    train_labels, validation_labels = own[run.train_rows], own[run.validation_rows]
    held_out = len(run.validation_rows) > 0
    predicts = run.recipe.predicts_land_cover
    on_validation = judged(run, network, run.validation_rows) if predicts and held_out else None
    figures = {
        "variant": run.variant,
        "method": run.method,
        "seed": run.seed,
        "folder": run.name,
        "architecture": run.config.architecture,
        "num_steps": run.config.steps,
        "transfer": run.recipe.transfer,
        "train_kl": judged(run, network, run.train_rows).kl if predicts else None,
        "validation_kl": None if on_validation is None else on_validation.kl,
        "constant_kl": constant_kl(train_labels),
        "validation_constant_kl": constant_kl(train_labels, validation_labels) if held_out else None,
    }
    return figures, on_validation


def _description(run: Run) -> dict[str, Any]:
    """What one needs to know to use or repeat a run. No paths: the output must not depend on where it was made."""
    data, weights = run.data, weights_path(run.config)
    recipe = run.recipe.described()
    told_elsewhere = {"seeds", "variants", "runs_at_once", *Recipe.model_fields} - set(recipe)
    settings = {key: value for key, value in as_plain(run.config).items() if key not in told_elsewhere}
    start = None if weights is None else {"file": weights.name, "md5": weights_md5(run.config)}
    return {
        "config": settings | {"initial_weights": start} | recipe,
        "variant": run.variant,
        "method": run.method,
        "seed": run.seed,
        "processes": run.processes.size,
        "precision": "bf16" if run.runtime.bf16 else "fp32",
        "architecture": run.config.architecture,
        "feature_dim": feature_dim(run.config.architecture),
        "num_train": len(run.train_rows),
        "num_validation": len(run.validation_rows),
        "bands": list(data.bands),
        "mean": [round(float(v), 6) for v in data.channel_mean],
        "std": [round(float(v), 6) for v in data.channel_std],
        "chip_size_px": data.chip_size_px,
        "classes": list(data.classes),
        "data_version": data.data_version,
    }


def assemble(runs: Sequence[Run], finished: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Put all finished runs into the output folder, which appears whole; weights are linked, not copied, where that is possible."""
    with whole_folder(out) as folder:
        for run in runs:
            hidden = shutil.ignore_patterns("record.json")
            shutil.copytree(run.folder / FINISHED, folder / run.name, ignore=hidden, copy_function=_linked)
        write_json(folder / "runs.json", [{**record["result"], "files": record["files"]} for record in finished])
        with whole_file(folder / "history.csv") as partial:
            partial.write_text(_history_csv(runs, finished), encoding="utf-8")


def _linked(source: str, target: str) -> None:
    """A second name for a finished file, so that weights lie on the disk once; a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def history_columns(finished: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Columns of ``history.csv``: those that there always are, then every other term that an objective of these runs has."""
    measured = dict.fromkeys(key for record in finished for point in record["history"] for key in point)
    return tuple(dict.fromkeys((*_FIRST_COLUMNS, *measured)))


def _history_csv(runs: Sequence[Run], finished: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, history_columns(finished), lineterminator="\n")
    table.writeheader()
    for run, record in zip(runs, finished, strict=True):
        for point in record["history"]:
            shown = {key: value if key == "step" else _nine_digits(value) for key, value in point.items()}
            table.writerow({"variant": run.variant, "seed": run.seed, **shown})
    return text.getvalue()


def _nine_digits(value: float | None) -> str:
    """Enough to distinguish any two float32; blank where nothing was measured."""
    return "" if value is None else f"{value:.9g}"
