"""The pretraining step: one run for each variant and seed, and the folder that holds their results.

What one run does is in ``training``. Finished runs are kept beside the checkpoints, under a name made of all that they
depend on: a killed step goes on with what is missing, a variant or a seed more trains nothing again, and the output
appears whole.
"""

import csv
import io
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from geokr_core import __version__
from geokr_core.anchor import SPREAD_CHIPS
from geokr_core.backbone import feature_dim, imagenet_weights, save_weights
from geokr_core.config import PretrainingConfig, VariantConfig, as_plain
from geokr_core.distributed import World, joined, world_of_environment
from geokr_core.errors import ConfigError, TrainingError
from geokr_core.files import file_md5, read_json, text_digest, whole_file, whole_folder, write_json
from geokr_core.levir_kr import LevirKR, open_levir_kr
from geokr_core.losses import constant_kl, label_weights
from geokr_core.methods.network import Network
from geokr_core.presets import Recipe, resolve
from geokr_core.reporter import Reporter
from geokr_core.resuming import drop_progress
from geokr_core.run import Run, State
from geokr_core.runtime import Runtime, runtime_of
from geokr_core.signs import Judged
from geokr_core.summary import Number, Summary
from geokr_core.training import delivered, judged, train
from geokr_core.watch import Clock

HISTORY_COLUMNS: Final = (
    "variant", "seed", "step", "loss", "supervised_loss", "consistency_loss", "train_kl", "validation_kl",
    "learning_rate", "teacher_momentum", "gradient_norm", "label_entropy", "teacher_entropy", "student_entropy", "mean_bias", "dense_loss",
    "identity_loss", "aggregation_loss", "contrast_loss", "anchor_loss",
)  # fmt: skip

_NO_MATTER: Final = frozenset(
    {"seeds", "variants", "checkpoint_every", "keep_checkpoints", "examples_every", "initial_weights"}
)
"""Fields that do not change the result of one run: its own seed, variant and weights' hash stand in for the rest."""

_FINISHED: Final = "finished"


def pretrain(config: PretrainingConfig, levir_kr: Path, out: Path, checkpoints: Path, reporter: Reporter) -> Summary:
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
                _finish(run, state)
        finished = world.agree([_record(run) for run in runs] if world.is_first else None)
        if world.is_first:
            _assemble(runs, finished, out)
        world.agree(None)  # nobody looks at the output before it is there
    return _summary(
        [record["result"] for record in finished], [record["history"] for record in finished], clocks, reporter
    )


def forget_finished(config: PretrainingConfig, levir_kr: Path, checkpoints: Path) -> None:
    """Drop what is kept of finished runs of these parameters and data, so that `pretrain` trains them again.

    Under ``torchrun`` these are the runs of as many processes; the first one alone may call it.
    """
    for run in runs_of(config, open_levir_kr(levir_kr), checkpoints, world_of_environment()):
        shutil.rmtree(run.folder / _FINISHED, ignore_errors=True)


def _is_kept(run: Run, reporter: Reporter) -> bool:
    """Whether a run is finished and lies there as it was written: its files have second names in the output."""
    folder = run.folder / _FINISHED
    if not folder.is_dir():
        return False
    written: Mapping[str, str] = _record(run).get("files", {})  # earlier ones do not say
    changed = [name for name, md5 in written.items() if not (folder / name).is_file() or file_md5(folder / name) != md5]
    if changed:
        reporter.warning(f"{folder}: {', '.join(changed)} changed since it was written; {run.name} is trained again.")
        shutil.rmtree(folder)
    return not changed


def _record(run: Run) -> dict[str, Any]:
    record: dict[str, Any] = read_json(run.folder / _FINISHED / "record.json")
    return record


def _mention_precision(runs: Sequence[Run], reporter: Reporter) -> None:
    for run in runs:
        if run.config.precision == "bf16" and not run.runtime.bf16:
            reporter.warning(
                f"pretraining.precision: chips of {run.data.chip_size_px} px are too small for bf16 gradients of a ResNet "
                "on the CPU, which come out wrong; computing in fp32."
            )
            return


def runs_of(config: PretrainingConfig, data: LevirKR, checkpoints: Path, world: World | None = None) -> Iterator[Run]:
    """The runs that a section asks for, variant by variant and seed by seed, with all that each learns from.

    Args:
        config: the section ``pretraining`` of the parameter file.
        data: the frozen data set.
        checkpoints: folder in which each run gets one of its own.
        world: the processes that train together; None: this one alone.

    Raises:
        ConfigError: a variant cannot be trained as it is asked for.
        TrainingError: there are no chips to train on.
    """
    train_rows, validation_rows = data.rows_of("train"), data.rows_of("validation")
    if len(train_rows) < 2:
        raise TrainingError(
            f"{data.folder}: {len(train_rows)} training chip(s); at least two are needed. "
            "Add scenes, or relax `levir_kr` and its validation_fraction."
        )
    world = world or World()
    data_version = data.data_version
    for variant in config.named_variants:
        own = config.of_variant(variant)
        recipe, runtime = resolve(own, variant.method), runtime_of(own, data.chip_size_px, world)
        _require_possible(variant, own, recipe, data, world)
        common = _fingerprinted(own, recipe, runtime, data_version)
        for seed in variant.seeds or config.seeds:
            labels = _labels(data, train_rows, recipe, seed)
            fingerprint = text_digest({**common, "variant": variant.name, "seed": seed, "processes": world.size})
            device = runtime.device
            yield Run(
                config=own,
                recipe=recipe,
                runtime=runtime,
                world=world,
                data=data,
                variant=variant.name,
                method=variant.method,
                seed=seed,
                labels=torch.from_numpy(labels.proportions).to(device),
                weights=None if labels.weights is None else torch.from_numpy(labels.weights).to(device),
                num_cells=torch.from_numpy(labels.num_cells).to(device),
                label_rows=labels.rows,
                train_rows=train_rows,
                validation_rows=validation_rows,
                fingerprint=fingerprint,
                folder=checkpoints / fingerprint,
                is_first=variant.name == config.named_variants[0].name and seed == (variant.seeds or config.seeds)[0],
            )


def _require_possible(
    variant: VariantConfig, config: PretrainingConfig, recipe: Recipe, data: LevirKR, world: World
) -> None:
    if recipe.needs_cells and not data.cells_per_side:
        asks = "dense_weight" if recipe.dense_weight > 0 else "label_follows_crop"
        remedy = (
            "take the method `dense` or the weight out"
            if asks == "dense_weight"
            else "set `pretraining.crop_area_fraction: [1, 1]` (whole chips) or `pretraining.label_follows_crop: false` "
            "(crops keep the land cover of the whole chip)"
        )
        raise ConfigError(
            f"pretraining, variant {variant.name}: `{asks}` needs the land cover within chips, but {data.folder} holds no "
            f"cells.npy (its manifest has no `cells_per_side`). Freeze Levir-KR with sub-cells, or {remedy}."
        )
    if not recipe.teaches:
        raise ConfigError(
            f"pretraining, variant {variant.name}: `land_cover_weight` is 0 and nothing stands beside it, so that nothing would be "
            "learned. Give it a weight, or name one of `dense_weight`, `contrast_weight` and `anchor_weight`."
        )
    if recipe.anchor_zoom > 1 and (recipe.anchor == "weights" or recipe.anchor_weight == 0):
        raise ConfigError(
            f"pretraining, variant {variant.name}: `anchor_zoom` {recipe.anchor_zoom:g} has nothing to enlarge, with the anchor "
            f"`{recipe.anchor}` at weight {recipe.anchor_weight:g}. Choose `anchor: cells` (or `stages`, `features`) with an "
            "`anchor_weight`, or take the zoom out."
        )
    if config.batch_size % world.size:
        raise ConfigError(
            f"pretraining.batch_size: {config.batch_size} chips cannot be shared evenly among {world.size} processes; "
            f"choose a multiple of {world.size}."
        )
    share = config.batch_size // world.size
    if config.accumulation_parts > share:
        raise ConfigError(
            f"pretraining.accumulation_parts: {share} chip(s) of a batch (of {config.batch_size}, {world.size} process(es)) cannot "
            f"be cut into {config.accumulation_parts} parts; choose at most {share}."
        )
    if config.deliver == "best" and (not recipe.predicts_land_cover or len(data.rows_of("validation")) == 0):
        raise ConfigError(
            f"pretraining, variant {variant.name}: `deliver: best` chooses by the KL on held-out chips, and there is none (no "
            "chips are held out, or the method predicts no land cover). Set `deliver: last`."
        )
    if recipe.head_warmup_steps + recipe.warmup_steps > config.steps:
        raise ConfigError(
            f"pretraining, variant {variant.name}: head_warmup_steps {recipe.head_warmup_steps} and warmup_steps "
            f"{recipe.warmup_steps} are more than the {config.steps} steps of the run; shorten them or train longer."
        )


def _fingerprinted(config: PretrainingConfig, recipe: Recipe, runtime: Runtime, data_version: str) -> dict[str, Any]:
    # What is not given, and what a recipe has by itself, says nothing: a field that is added must not disown what was
    # trained before. Whoever changes the meaning of such a default raises the version.
    own = {field.name: field.default for field in fields(recipe)}
    given = {key: value for key, value in as_plain(config).items() if value is not None}
    settings = {key: value for key, value in given.items() if key not in _NO_MATTER}
    # What the code does otherwise than it did once, where it makes a difference.
    if recipe.anchor != "weights" and recipe.anchor_weight > 0:
        settings["anchor"] = ["statistics of the batch", SPREAD_CHIPS]
    if config.shuffle_window_chips is not None:
        settings["windows"] = "filled"
    if recipe.dense_weight > 0:
        settings["dense"] = "mean over all cells"
    return {
        "config": settings,
        "recipe": {key: value for key, value in asdict(recipe).items() if value != own[key]},
        "initial_weights": _weights_md5(config),
        "device": runtime.device.type,
        "data_version": data_version,
        "code": [__version__, torch.__version__],
    }


def _weights_path(config: PretrainingConfig) -> Path | None:
    return imagenet_weights(config.architecture) if config.initial_weights == "imagenet" else config.initial_weights


def _weights_md5(config: PretrainingConfig) -> str | None:
    path = _weights_path(config)
    # A missing file is refused, with words, where it is loaded.
    return file_md5(path) if path is not None and path.is_file() else None


@dataclass(frozen=True)
class _Labels:
    """What each chip of the catalogue is held to in one run.

    Attributes:
        proportions: float32 (N, K).
        weights: float32 (N,), mean 1 over the training chips; None: all alike.
        num_cells: float32 (N,), land-cover cells that voted.
        rows: int64 (N,), the chip that each chip has all this from.
    """

    proportions: np.ndarray
    weights: np.ndarray | None
    num_cells: np.ndarray
    rows: np.ndarray


def _labels(data: LevirKR, train_rows: np.ndarray, recipe: Recipe, seed: int) -> _Labels:
    """Labels of one run.

    ``shuffled`` hands the labels of the training chips, with their weights and the land cover within them, round among
    these chips; everything else of the run is as it is for ``geokr``. Validation chips keep their own.
    """
    rows = np.arange(len(data.catalogue))
    if recipe.labels == "shuffled":
        rows[train_rows] = np.random.default_rng([seed, 1]).permutation(train_rows)
    weights = np.ones(len(rows), dtype=np.float32)
    weights[train_rows] = label_weights(data.catalogue.iloc[train_rows])
    num_cells = data.catalogue["num_cells"].to_numpy(np.float32)
    return _Labels(data.proportions[rows], weights[rows] if recipe.label_weighting else None, num_cells[rows], rows)


def _mention_strangers(checkpoints: Path, runs: Sequence[Run], reporter: Reporter) -> None:
    ours = {run.folder for run in runs}
    strangers = sorted(p for p in checkpoints.glob("*") if p.is_dir() and p not in ours)
    for state in ("half-done", "finished"):
        found = [folder for folder in strangers if (folder / _FINISHED).is_dir() == (state == "finished")]
        if not found:
            continue
        size = sum(file.stat().st_size for folder in found for file in folder.rglob("*") if file.is_file())
        tell = reporter.warning if state == "half-done" else reporter.info
        tell(
            f"{checkpoints}: {len(found)} {state} run(s) of other parameters or data ({size / 1e6:.0f} MB) are not used. "
            "They wait there for those parameters; delete the folder to free the space."
        )


def _finish(run: Run, state: State) -> None:
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
    with whole_folder(run.folder / _FINISHED) as folder:
        save_weights(network.backbone, folder / "backbone.safetensors", run.data.bands)
        save_weights(network.head, folder / "head.safetensors")
        if network.dense_head is not None:
            save_weights(network.dense_head, folder / "dense_head.safetensors")
        if network.correction is not None:
            _write_correction(folder / "correction.json", network.correction.matrix(), run.data.classes)
        if on_validation is not None:
            write_json(folder / "calibration.json", on_validation.calibration(run.data.classes))
        write_json(folder / "run.json", _description(run) | evidence)
        files = {path.name: file_md5(path) for path in sorted(folder.iterdir())}
        write_json(folder / "record.json", {"result": figures | evidence, "history": state.history, "files": files})
    drop_progress(run)


def _write_correction(path: Path, matrix: torch.Tensor, classes: Sequence[str]) -> None:
    """What was learned of the product: of ground that is of the row's class, the share it reports as the column's."""
    rows = [[round(float(value), 6) for value in row] for row in matrix.detach().cpu()]
    write_json(path, {"ground_classes": list(classes), "reported_classes": list(classes), "matrix": rows})


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
    data, weights = run.data, _weights_path(run.config)
    settings = {key: value for key, value in as_plain(run.config).items() if key not in {"seeds", "variants"}}
    start = None if weights is None else {"file": weights.name, "md5": _weights_md5(run.config)}
    return {
        "config": settings | {"initial_weights": start} | asdict(run.recipe),
        "variant": run.variant,
        "method": run.method,
        "seed": run.seed,
        "processes": run.world.size,
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


def _assemble(runs: Sequence[Run], finished: Sequence[Mapping[str, Any]], out: Path) -> None:
    with whole_folder(out) as folder:
        for run in runs:
            hidden = shutil.ignore_patterns("record.json")
            shutil.copytree(run.folder / _FINISHED, folder / run.name, ignore=hidden, copy_function=_linked)
        write_json(folder / "runs.json", [record["result"] for record in finished])
        with whole_file(folder / "history.csv") as partial:
            partial.write_text(_history_csv(runs, finished), encoding="utf-8")


def _linked(source: str, target: str) -> None:
    """A second name for a finished file, so that weights lie on the disk once; a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _history_csv(runs: Sequence[Run], finished: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, HISTORY_COLUMNS, lineterminator="\n")
    table.writeheader()
    for run, record in zip(runs, finished, strict=True):
        for point in record["history"]:
            shown = {key: value if key == "step" else _nine_digits(value) for key, value in point.items()}
            table.writerow({"variant": run.variant, "seed": run.seed, **shown})
    return text.getvalue()


def _nine_digits(value: float | None) -> str:
    """Enough to tell any two float32 apart; blank where nothing was measured."""
    return "" if value is None else f"{value:.9g}"


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
