"""Which runs a step is made of: one for each variant and seed, named by all that it depends on."""

from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Final

import torch

from geokr_core import __version__
from geokr_core.errors import ConfigError, TrainingError
from geokr_core.levir_kr.dataset import LevirKR
from geokr_core.networks.architectures import spec_of
from geokr_core.networks.distributed import World
from geokr_core.networks.runtime import Runtime, device_of
from geokr_core.networks.weights import imagenet_weights
from geokr_core.pretraining.config import PretrainingConfig, VariantConfig
from geokr_core.pretraining.labels import labels_of_data
from geokr_core.pretraining.recipes import Recipe, resolve
from geokr_core.pretraining.training.anchor import SPREAD_CHIPS
from geokr_core.pretraining.training.state import Run
from geokr_core.step.digests import file_md5, text_digest
from geokr_core.step.section import as_plain

_NO_MATTER: Final = frozenset(
    {"seeds", "variants", "checkpoint_every", "keep_checkpoints", "examples_every", "initial_weights"}
)
"""Fields that do not change the result of one run: its own seed, variant and weights' hash stand in for the rest."""


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
            labels = labels_of_data(data, train_rows, recipe, seed)
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
        "initial_weights": weights_md5(config),
        "device": runtime.device.type,
        "data_version": data_version,
        "code": [__version__, torch.__version__],
    }


def runtime_of(config: PretrainingConfig, chip_size_px: int, world: World | None = None) -> Runtime:
    """The runtime that a configuration asks for.

    Args:
        config: asks for a device, a precision and whether to compile.
        chip_size_px: side of the chips; small ones are computed in float32 on the CPU, see ``ArchitectureSpec.bf16_min_size_px``.
        world: of a distributed run: each process of a machine takes the GPU of its own number.

    Raises:
        TrainingError: a GPU is asked for and there is none.
    """
    device = device_of(config.device, "pretraining.device", TrainingError, world)
    on_cpu = device.type == "cpu"
    small = on_cpu and chip_size_px < spec_of(config.architecture).bf16_min_size_px
    compiled = config.compile == "on" or (config.compile == "auto" and not on_cpu)
    return Runtime(device, config.precision == "bf16" and not small, compiled)


def weights_path(config: PretrainingConfig) -> Path | None:
    """The file of the initial weights; None where training starts from random ones."""
    return imagenet_weights(config.architecture) if config.initial_weights == "imagenet" else config.initial_weights


def weights_md5(config: PretrainingConfig) -> str | None:
    """The md5 of the file of the initial weights; None where there is none."""
    path = weights_path(config)
    # A missing file is refused, with words, where it is loaded.
    return file_md5(path) if path is not None and path.is_file() else None
