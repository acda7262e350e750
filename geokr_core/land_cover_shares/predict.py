"""Map the land-cover shares of all scenes. Scenes whose maps are current are skipped."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from geokr_core import __version__
from geokr_core.chips.config import ChipsConfig
from geokr_core.chips.cut import scene_inputs
from geokr_core.chips.stretch import choose_stretch
from geokr_core.embeddings.cells import cells_per_side
from geokr_core.embeddings.config import EmbeddingsConfig
from geokr_core.embeddings.encoder import Encoder, described, open_encoder, usable_workers
from geokr_core.errors import PredictionError, SceneRefusedError
from geokr_core.land_cover_shares.config import LandCoverSharesConfig
from geokr_core.land_cover_shares.head import Head, read_head, require_fitting, write_head
from geokr_core.land_cover_shares.judgement import HeldOut, Judgement, fit_head, held_out, judge
from geokr_core.land_cover_shares.maps import cell_grid, write_maps
from geokr_core.land_cover_shares.outputs import (
    CLASSES,
    HEAD_FILE,
    INTERVALS,
    ITEM,
    PICTURE_FILE,
    SHARES,
    share_outputs,
)
from geokr_core.land_cover_shares.pictures import largest_classes, map_beside_product
from geokr_core.land_cover_shares.stac import map_item, model_href, write_collection
from geokr_core.land_cover_shares.windows import Cells, cells_of_scene
from geokr_core.levir_kr.dataset import LevirKR, open_levir_kr
from geokr_core.scenes.inventory import usable_scenes
from geokr_core.scenes.reader import open_scene
from geokr_core.scenes.refusals import Refusals
from geokr_core.scenes.scene import Scene
from geokr_core.step.digests import text_digest
from geokr_core.step.files import whole_file
from geokr_core.step.reporter import LOG, Reporter
from geokr_core.step.summary import Summary


@dataclass(frozen=True)
class Inputs:
    """What the step reads.

    Attributes:
        source: folder of raw scenes.
        scenes: folder of the inventory.
        levir_kr: the frozen data set.
        backbone: bundle of the chain, used where the configuration names no other.
    """

    source: Path
    scenes: Path
    levir_kr: Path
    backbone: Path


@dataclass(frozen=True)
class _Job:
    config: LandCoverSharesConfig
    chips: ChipsConfig
    inputs: Inputs
    encoder: Encoder
    head: Head
    bundle: Path
    out: Path


def predict_shares(
    config: LandCoverSharesConfig, chips: ChipsConfig, inputs: Inputs, out: Path, reporter: Reporter = LOG
) -> Summary:
    """Map the land-cover shares of every usable scene of an archive, with intervals. A killed run is resumed where it was.

    A head is fitted on the network's vectors of Levir-KR's training places, its intervals are calibrated on half of the held-out
    places, and all is judged on the other half. Then scenes are run over in overlapping windows.

    Args:
        config: network, head and confidence.
        chips: how the chips of the data set were cut and stretched; scenes are stretched alike.
        inputs: folders.
        out: folder that gets ``<scene>.shares.tif``, ``.class.tif``, ``.interval.tif`` and ``.stac.json``, and
            ``land_cover_shares.json``, ``head.safetensors``, ``held_out.png`` and ``collection.json``.
        reporter: hears how good the head is, and of scenes that cannot be mapped.

    Returns:
        Error, baseline and coverage on held-out places, and the map of a scene as picture.

    Raises:
        MissingInputError: an input has not been made.
        BackboneError: the bundle is damaged.
        EmbeddingsError: the chips lack a band that the network needs.
        PredictionError: no place is held out, or the given head is of another network or legend.
        SceneRefusedError: no scene could be mapped; lists the reasons.
        OSError: the file system refused.
    """
    dataset = open_levir_kr(inputs.levir_kr)
    if tuple(chips.bands) != dataset.bands:
        raise PredictionError(
            f"{inputs.levir_kr}: has the bands {', '.join(dataset.bands)}, but `chips.bands` are {', '.join(chips.bands)}. "
            "Run `geokr levir-kr` again."
        )
    bundle, workers = config.bundle or inputs.backbone, usable_workers(config.workers)
    network = EmbeddingsConfig(bundle=bundle, features=config.features, device=config.device)
    encoder = open_encoder(network, None, dataset.bands)
    places = held_out(dataset)
    head, judgement = _head(config, dataset, encoder, places, workers, reporter)
    outputs = share_outputs(out)
    outputs.share(
        {
            "confidence": head.about["confidence"],
            "network": described(encoder),
            "head": head.identity,
            "judgement": judgement.as_json(),
        }
    )
    write_head(head, out / HEAD_FILE)
    with whole_file(out / PICTURE_FILE) as unfinished:
        unfinished.write_bytes(map_beside_product(head, dataset, encoder, places, workers))
    job = _Job(config, chips, inputs, encoder, head, bundle, out)
    scenes, refusals = usable_scenes(inputs.scenes), Refusals(reporter, "is not mapped", listed_by="")
    with reporter.progress("maps", len(scenes)) as advance:
        for scene in scenes.values():
            if reason := _map_scene(job, scene, reporter):
                refusals.refused(scene.scene_id, reason)
            else:
                refusals.usable()
            advance(1)
    outputs.finish(scenes)
    mapped = [scene_id for scene_id in scenes if scene_id not in refusals.reasons]
    if not mapped:
        raise SceneRefusedError(f"None of {len(scenes)} scenes could be mapped:\n{refusals.named()}")
    write_collection(out, mapped, head, bundle)
    return _summary(out, mapped, refusals.reasons, head, judgement)


def _head(
    config: LandCoverSharesConfig,
    dataset: LevirKR,
    encoder: Encoder,
    places: HeldOut,
    workers: int,
    reporter: Reporter,
) -> tuple[Head, Judgement]:
    if config.head is None:
        head, number = fit_head(config, dataset, encoder, places, workers)
    else:
        head, number = read_head(config.head), 0
        require_fitting(head, config.head, dataset, encoder)
    judgement = judge(head, dataset, encoder, places, number, workers)
    measured = (
        "not measured: a single place is held out" if np.isnan(judgement.coverage) else f"{judgement.coverage:.1%}"
    )
    reporter.info(
        f"land-cover shares on {judgement.num_test_chips} held-out chips: residual {judgement.residual:.3f}, the mean of the "
        f"training chips {judgement.baseline_residual:.3f}; coverage of the {head.about['confidence']:.0%} intervals {measured}"
    )
    return head, judgement


def _map_scene(job: _Job, scene: Scene, reporter: Reporter) -> str:
    """Map a scene unless its maps are current; why it cannot be mapped, else nothing."""
    outputs = share_outputs(job.out)
    parts = [scene_inputs(job.chips, scene), job.encoder.identity, job.head.identity, job.config.code_version]
    inputs = text_digest([*parts, __version__])
    with outputs.only_one(scene.scene_id):
        done = outputs.current(scene.scene_id, inputs)
        if done is not None:
            return done.reason
        outputs.report_damage(scene.scene_id, inputs, reporter)
        try:
            _write(job, scene, inputs)
        except SceneRefusedError as error:
            outputs.quarantine(scene.scene_id, inputs, str(error))
            return str(error)
    return ""


def _write(job: _Job, scene: Scene, inputs: str) -> None:
    size = int(job.head.about["chip_size_px"])
    side = cells_per_side(size)
    cells, workers = Cells.of(scene.grid, size, side), job.encoder.workers(usable_workers(job.config.workers))
    share = partial(_shares_of_windows, job, side)
    with (
        job.encoder.steady(),
        open_scene(job.inputs.source, scene, job.chips.bands) as reader,
        share_outputs(job.out).making(scene.scene_id, inputs, (SHARES, CLASSES, INTERVALS, ITEM)) as unfinished,
    ):
        stretch = choose_stretch(job.chips, scene, reader)
        rows = cells_of_scene(reader, scene.grid, stretch, cells, share, workers)
        number = write_maps(unfinished.paths, scene.grid, cells, rows, job.head)
        grid, model = cell_grid(scene.grid, cells), model_href(job.bundle, job.out)
        item = map_item(scene, grid, size, unfinished.paths, job.head, model)
        unfinished.paths[ITEM].write_text(item, encoding="utf-8")
        unfinished.notes = {"num_cells": number}


def _shares_of_windows(job: _Job, side: int, windows: np.ndarray) -> np.ndarray:
    def encode(batch: np.ndarray) -> np.ndarray:
        return job.head.cell_shares(job.encoder.encode_cells(batch, side))

    # Lines of windows are worked on beside each other: one of a small scene is less than a batch.
    return np.concatenate(list(job.encoder.batches(windows, 1, encode)))


def _summary(out: Path, mapped: list[str], refused: Mapping[str, str], head: Head, judgement: Judgement) -> Summary:
    numbers: dict[str, Any] = {"num_scenes": len(mapped), "num_refused": len(refused)}
    for name in ("num_training_chips", "num_test_chips", "residual", "baseline_residual", "mean_width"):
        numbers[name] = getattr(judgement, name)
    warnings = [f"{scene_id}: {reason}" for scene_id, reason in refused.items()]
    if np.isnan(judgement.coverage):
        warnings.append(
            "A single place is held out: it calibrates the intervals, and none is left to test them. Raise "
            "`levir_kr.validation_fraction`, or lower `levir_kr.place_size_deg`."
        )
    else:
        numbers["coverage"] = judgement.coverage
    if judgement.residual >= judgement.baseline_residual:
        warnings.append(
            "On held-out places the maps are no better than the mean of the training chips: do not use them."
        )
    rows: list[dict[str, Any]] = [
        {"class": name, "coverage": value} for name, value in judgement.coverage_by_class.items()
    ]
    return Summary(numbers=numbers, table=rows, picture_png=largest_classes(out, mapped[0], head), warnings=warnings)
