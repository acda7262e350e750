"""Which runs the step is made of: one for each variant and seed, named by all that its result depends on."""

from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch

from geokr_core import __version__
from geokr_core.errors import ConfigError, TrainingError
from geokr_core.levir_kr.dataset import LevirKR
from geokr_core.networks import batch_order
from geokr_core.networks.architectures import spec_of
from geokr_core.networks.distributed import ProcessGroup
from geokr_core.networks.runtime import Runtime, device_of, precision_of
from geokr_core.networks.weights import imagenet_weights
from geokr_core.pretraining.config import PretrainingConfig, VariantConfig
from geokr_core.pretraining.labels import labels_of_data
from geokr_core.pretraining.recipe import Recipe, objective_class
from geokr_core.pretraining.training import regularisation
from geokr_core.pretraining.training.state import Run
from geokr_core.step.digests import file_md5, text_digest
from geokr_core.step.section import as_plain


def runs_of(
    config: PretrainingConfig,
    data: LevirKR,
    checkpoints: Path,
    processes: ProcessGroup | None = None,
    fingerprints: Container[str] | None = None,
) -> Iterator[Run]:
    """The runs that a section asks for, variant by variant and seed by seed, with all that each learns from.

    Args:
        config: the section ``pretraining`` of the parameter file.
        data: the frozen data set.
        checkpoints: folder in which each run gets its folder.
        processes: the processes that train together; None: this one alone.
        fingerprints: those that are wanted; None: all.

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
    processes = processes or ProcessGroup()
    data_version = data.data_version
    for variant in config.named_variants:
        own = config.of_variant(variant)
        recipe, runtime = own.recipe(variant.method), runtime_of(own, data.chip_size_px, processes)
        _require_data(variant, own, recipe, data, processes)
        inputs = result_inputs(own, recipe, runtime.device.type, data_version)
        for seed in variant.seeds or config.seeds:
            name = fingerprint(inputs, variant.name, seed, processes.size)
            if fingerprints is not None and name not in fingerprints:
                continue
            labels = labels_of_data(data, train_rows, recipe, seed)
            device = runtime.device
            yield Run(
                config=own,
                recipe=recipe,
                runtime=runtime,
                processes=processes,
                data=data,
                variant=variant.name,
                method=variant.method,
                seed=seed,
                labels=torch.from_numpy(labels.proportions).to(device),
                weights=None if labels.weights is None else torch.from_numpy(labels.weights).to(device),
                audit_weights=None
                if labels.audit_weights is None
                else torch.from_numpy(labels.audit_weights).to(device),
                num_cells=torch.from_numpy(labels.num_cells).to(device),
                label_rows=labels.rows,
                label_cells=labels.cells,
                types=None if labels.types is None else torch.from_numpy(labels.types[0]).to(device),
                type_centres=None if labels.types is None else labels.types[1],
                train_rows=train_rows,
                validation_rows=validation_rows,
                fingerprint=name,
                folder=checkpoints / name,
                is_first=variant.name == config.named_variants[0].name and seed == (variant.seeds or config.seeds)[0],
            )


def _require_data(
    variant: VariantConfig, config: PretrainingConfig, recipe: Recipe, data: LevirKR, processes: ProcessGroup
) -> None:
    """Refuse what this data set, or this number of processes, cannot give; the section itself refuses the rest."""
    if recipe.needs_cells and not data.cells_per_side:
        asks, remedy = _for_want_of_cells(recipe)
        raise ConfigError(
            f"pretraining, variant {variant.name}: `{asks}` needs the land cover within chips, but {data.folder} holds no "
            f"cells.npy (its manifest has no `cells_per_side`). Freeze Levir-KR with sub-cells, or {remedy}."
        )
    num_chips = len(data.rows_of("train"))
    if recipe.types_weight > 0 and recipe.num_types > num_chips:
        raise ConfigError(
            f"pretraining, variant {variant.name}: {recipe.num_types} types of ground of {num_chips} training chips would leave types "
            f"empty; set `num_types` to {num_chips // 2} or fewer."
        )
    if recipe.balance == "sensor" and "sensor" not in data.catalogue:
        raise ConfigError(
            f"pretraining, variant {variant.name}: `balance: sensor` needs to know the sensor of each chip, but the catalogue of "
            f"{data.folder} has no such column. Freeze Levir-KR again, or balance by `class` or `resolution`."
        )
    if config.deliver == "best" and len(data.rows_of("validation")) == 0:
        raise ConfigError(
            f"pretraining, variant {variant.name}: `deliver: best` chooses by the KL on held-out chips, and {data.folder} holds "
            "none out (`levir_kr.validation_fraction`). Set `deliver: last`."
        )
    if config.batch_size % processes.size:
        raise ConfigError(
            f"pretraining.batch_size: {config.batch_size} chips cannot be shared evenly among {processes.size} processes; "
            f"choose a multiple of {processes.size}."
        )
    share = config.batch_size // processes.size
    if config.accumulation_parts > share:
        raise ConfigError(
            f"pretraining.accumulation_parts: {share} chip(s) of a batch (of {config.batch_size}, {processes.size} process(es)) cannot "
            f"be cut into {config.accumulation_parts} parts; choose at most {share}."
        )


def _for_want_of_cells(recipe: Recipe) -> tuple[str, str]:
    """What asks for land cover within chips, and how to do without."""
    if recipe.dense_weight > 0:
        methods = "`simclr`; `proportions` with `pretraining.label_follows_crop: false`"
        return "dense_weight", f"take a method that asks for no cells ({methods})"
    if recipe.cell_mean:
        return "cell_mean", "take the method `proportions`"
    if recipe.label_resolution_m is not None:
        return "label_resolution_m", "leave that setting out"
    return "label_follows_crop", (
        "set `pretraining.crop_area_fraction: [1, 1]` (whole chips) or `pretraining.label_follows_crop: false` "
        "(crops keep the land cover of the whole chip)"
    )


_STOOD_FOR: Final = frozenset({"seeds", "variants", "initial_weights"})
"""Fields of which a run's fingerprint holds something else: its own seed, its variant and the md5 of the weights."""

_FIRST_NAMES: Final = {"averaged_teacher": "geokr"}
"""Presets by the name under which runs were first kept; the recipe tells apart what is called so today."""


def result_inputs(config: PretrainingConfig, recipe: Recipe, device: str, data_version: str) -> dict[str, Any]:
    """Everything that the result of a run depends on, its variant's name, its seed and the number of processes excepted.

    A field that is not given says nothing, nor does a recipe's field at its default: a field that is added must not disown
    what was trained before. Whoever changes the meaning of such a default adds to the ``code`` of what uses it.

    Args:
        config: the section as the run's variant has it.
        recipe: what it comes to.
        device: kind of device, ``cpu`` or ``cuda``.
        data_version: of Levir-KR.

    Returns:
        Values that JSON can hold.
    """
    ignored = PretrainingConfig.without_effect | _STOOD_FOR
    settings = {key: value for key, value in as_plain(config).items() if value is not None and key not in ignored}
    settings["precision"] = precision_of(config.precision, device)
    settings["preset"] = _FIRST_NAMES.get(config.preset, config.preset)
    settings |= objective_class(recipe.objective).code(recipe) | regularisation.code(recipe)
    if config.shuffle_window_chips is not None:
        settings |= batch_order.CODE
    own = {name: field.default for name, field in Recipe.model_fields.items()}
    return {
        "config": settings,
        "recipe": {key: value for key, value in recipe.model_dump().items() if value != own[key]},
        "initial_weights": weights_md5(config),
        "device": device,
        "data_version": data_version,
        "code": [__version__, torch.__version__, *config.code_mark()],
    }


def fingerprint(inputs: Mapping[str, Any], variant: str, seed: int, processes: int) -> str:
    """The name under which a run is kept: a digest of all that its result depends on.

    Args:
        inputs: what `result_inputs` gave.
        variant: name of its variant.
        seed: its own.
        processes: how many train it together.
    """
    return text_digest({**inputs, "variant": variant, "seed": seed, "processes": processes})


def runtime_of(config: PretrainingConfig, chip_size_px: int, processes: ProcessGroup | None = None) -> Runtime:
    """The runtime that a configuration asks for.

    Args:
        config: asks for a device, a precision and whether to compile.
        chip_size_px: side of the chips; small ones are computed in float32 on the CPU, see ``ArchitectureSpec.bf16_min_size_px``.
        processes: of a distributed run: each process of a machine takes the GPU of the same number.

    Raises:
        TrainingError: a GPU is asked for and there is none.
    """
    device = device_of(config.device, "pretraining.device", TrainingError, processes)
    on_cpu = device.type == "cpu"
    small = on_cpu and chip_size_px < spec_of(config.architecture).bf16_min_size_px
    compiled = config.compile == "on" or (config.compile == "auto" and not on_cpu)
    return Runtime(device, precision_of(config.precision, device.type) == "bf16" and not small, compiled)


def weights_path(config: PretrainingConfig) -> Path | None:
    """The file of the initial weights; None where training starts from random ones."""
    return imagenet_weights(config.architecture) if config.initial_weights == "imagenet" else config.initial_weights


def weights_md5(config: PretrainingConfig) -> str | None:
    """The md5 of the file of the initial weights; None where there is none."""
    path = weights_path(config)
    # A missing file is refused, with words, where it is loaded.
    return file_md5(path) if path is not None and path.is_file() else None
