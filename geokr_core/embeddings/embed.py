"""Embed the chips of all scenes: one table and one STAC item a scene. Scenes that are current are skipped."""

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from geokr_core import __version__
from geokr_core.chips.read import shard_ids
from geokr_core.embeddings.cells import CHIP_PLACES, cells_per_side, write_cell_map
from geokr_core.embeddings.config import EmbeddingsConfig
from geokr_core.embeddings.encoder import BATCH_SIZE, Encoder, described, open_encoder, usable_workers
from geokr_core.embeddings.outputs import CELL_MAP, ITEM, NETWORK_FILE, embedding_outputs
from geokr_core.embeddings.quantisation import Quantised, quantise
from geokr_core.embeddings.stac import relative, scene_item, write_collection
from geokr_core.embeddings.table import CHIP_COLUMNS, write_table
from geokr_core.errors import EmbeddingsError
from geokr_core.scenes.scene_outputs import CUT_FILE, PIXELS, TABLE, chip_outputs
from geokr_core.step.digests import file_md5, text_digest
from geokr_core.step.files import read_json
from geokr_core.step.reporter import LOG, Reporter
from geokr_core.step.summary import Summary
from geokr_core.step.threads import in_order

_SCENES_AT_ONCE: Final = 2
"""One in the network, one whose files are written meanwhile."""


def embed_scenes(
    config: EmbeddingsConfig, backbone: Path | None, chips: Path, out: Path, reporter: Reporter = LOG
) -> Summary:
    """Embed every chip of an archive. Scenes that are current are skipped; a killed run is resumed where it was.

    Args:
        config: which network, and what of it is kept.
        backbone: bundle of the chain, used where the configuration names no other network.
        chips: folder of shards.
        out: folder that gets ``<scene>.parquet`` and ``<scene>.stac.json`` a scene, ``embeddings.json``,
            ``collection.json`` and ``DATA_CARD.md``.
        reporter: hears of progress and of what speaks against the network.

    Returns:
        Counts, speed, the loss of quantisation, and a picture.

    Raises:
        MissingInputError: there are no chips or there is no bundle.
        BackboneError: bundle or weights are damaged, or the chips are too small for the network.
        EmbeddingsError: the chips lack a band, or a vector is not finite.
        DamagedOutputError: a table of chips is not what was written.
        OSError: the file system refused.
    """
    scene_ids = shard_ids(chips)
    cut = read_json(chips / CUT_FILE)
    encoder = open_encoder(config, backbone, cut["bands"])
    outputs, network = embedding_outputs(out), described(encoder)
    job = _Job(config, encoder, network, chips, out)
    outputs.share({**network, "chip_size_px": cut["size_px"], "config": {"features": config.features}})
    done = [_Embedded(0, 0.0, 0.0)]
    work = in_order(partial(_embed_scene, job, reporter), scene_ids, _SCENES_AT_ONCE)
    with reporter.progress("embeddings", len(scene_ids)) as advance, closing(work):
        for embedded in work:
            done.append(embedded)
            advance(1)
    outputs.finish(scene_ids)
    num_chips = write_collection(out, scene_ids, network, chips, _bundle_of(config, backbone))
    warnings = _warnings(encoder, outputs, scene_ids)
    return Summary(numbers=_numbers(encoder, done, len(scene_ids), num_chips), warnings=warnings)


def _bundle_of(config: EmbeddingsConfig, backbone: Path | None) -> Path | None:
    return None if config.architecture is not None else config.bundle or backbone


def version_of_vectors(out: Path) -> str:
    """Version of the network that embedded a folder; empty where it is not known."""
    try:
        return str(read_json(out / NETWORK_FILE)["model_version"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


@dataclass(frozen=True)
class _Job:
    """What embedding a scene needs.

    Attributes:
        config: which network, and what of it is kept.
        encoder: the network, opened.
        network: what readers are told about it.
        chips: folder of shards.
        out: folder of vectors.
        one_in_network: held by the scene that is in the network, which has all workers.
    """

    config: EmbeddingsConfig
    encoder: Encoder
    network: Mapping[str, Any]
    chips: Path
    out: Path
    one_in_network: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class _Embedded:
    """What embedding a scene was: chips, seconds in the network, and the largest angle lost to the integers (1 - cosine)."""

    num_chips: int
    seconds: float
    lost: float


def _embed_scene(job: _Job, reporter: Reporter, scene_id: str) -> _Embedded:
    outputs = embedding_outputs(job.out)
    data_version = chips_version(job.chips, scene_id)
    # What was embedded before there were maps of cells keeps its digest.
    more = ["cells"] if job.config.cells else []
    inputs = text_digest([data_version, job.encoder.identity, job.config.code_version, __version__, *more])
    if outputs.current(scene_id, inputs) is not None:
        return _Embedded(0, 0.0, 0.0)
    with outputs.only_one(scene_id):
        # The last holder of the lock may have embedded it.
        if outputs.current(scene_id, inputs) is not None:
            return _Embedded(0, 0.0, 0.0)
        outputs.report_damage(scene_id, inputs, reporter)
        rows = chip_outputs(job.chips).table(scene_id, CHIP_COLUMNS).to_pandas()
        images = chip_outputs(job.chips).array(scene_id, PIXELS)
        with job.one_in_network:
            started = time.monotonic()
            vectors = _vectors(job, scene_id, images)
            seconds = time.monotonic() - started
        quantised = quantise(vectors)
        endings = (TABLE, ITEM, CELL_MAP) if job.config.cells else (TABLE, ITEM)
        with outputs.making(scene_id, inputs, endings) as unfinished:
            write_table(unfinished.paths[TABLE], rows, quantised, job.network, data_version)
            if job.config.cells:
                _write_cells(job, scene_id, images, unfinished.paths[CELL_MAP])
            item = scene_item(scene_id, rows, quantised, job.network, unfinished.paths, relative(job.chips, job.out))
            unfinished.paths[ITEM].write_text(item, encoding="utf-8")
            unfinished.notes = {"num_chips": len(rows), "gsd_m": float(rows["gsd_m"].median())}
    return _Embedded(len(rows), seconds, _lost(vectors, quantised))


def _write_cells(job: _Job, scene_id: str, images: np.ndarray, path: Path) -> None:
    places = chip_outputs(job.chips).table(scene_id, CHIP_PLACES).to_pandas()
    side = cells_per_side(int(places["size_px"].iloc[0]))

    def encode(batch: np.ndarray) -> np.ndarray:
        return job.encoder.encode_cells(batch, side)

    with job.one_in_network:
        batches = job.encoder.batches(images, usable_workers(job.config.workers), encode)
        write_cell_map(path, places, batches, job.encoder.num_dimensions)


def chips_version(chips: Path, scene_id: str) -> str:
    """Data version of a scene's chips: what is recorded of their bytes, or these bytes themselves."""
    outputs = chip_outputs(chips)
    if outputs.record(scene_id) is not None:
        return outputs.version(scene_id)
    return text_digest([file_md5(outputs.path(scene_id, ending)) for ending in (PIXELS, TABLE)])


def _vectors(job: _Job, scene_id: str, images: np.ndarray) -> np.ndarray:
    vectors = np.empty((len(images), job.encoder.num_dimensions), dtype=np.float32)
    first = 0
    for batch in job.encoder.batches(images, usable_workers(job.config.workers)):
        vectors[first : first + len(batch)] = batch
        first += len(batch)
    num_bad = int((~np.isfinite(vectors)).any(axis=1).sum())
    if num_bad:
        raise EmbeddingsError(
            f"{job.encoder.model} gives vectors that are not finite for {num_bad} of {len(images)} chips of scene "
            f"{scene_id}; its weights are damaged or its training diverged. Look at the curves and pretrain again."
        )
    return vectors


def _lost(vectors: np.ndarray, quantised: Quantised) -> float:
    """Largest 1 - cosine between vectors and what their integers give back, over at most a batch of chips."""
    some = np.linspace(0, len(vectors) - 1, min(len(vectors), BATCH_SIZE)).astype(int)
    before, after = vectors[some].astype(np.float64), quantised.restored()[some].astype(np.float64)
    lengths = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    return float(np.max(1.0 - (before * after).sum(axis=1) / np.maximum(lengths, 1e-30)))


def _numbers(encoder: Encoder, done: Sequence[_Embedded], num_scenes: int, num_chips: int) -> dict[str, Any]:
    embedded, seconds = sum(part.num_chips for part in done), sum(part.seconds for part in done)
    return {
        "num_chips": num_chips,
        "num_scenes": num_scenes,
        "num_scenes_embedded": sum(part.num_chips > 0 for part in done),
        "num_dimensions": encoder.num_dimensions,
        "model": encoder.model,
        "model_version": encoder.version,
        "chips_per_second": round(embedded / seconds, 1) if seconds > 0 else 0.0,
        "largest_cosine_distance_of_int8": round(max(part.lost for part in done), 6),
    }


def _warnings(encoder: Encoder, outputs: Any, scene_ids: Sequence[str]) -> list[str]:
    """Scenes that are much finer or coarser than what the network has seen."""
    if not encoder.gsd_m:
        return []
    finest, coarsest = encoder.gsd_m
    records = [(scene_id, outputs.record(scene_id)) for scene_id in scene_ids]
    far = [
        scene_id
        for scene_id, record in records
        if record is not None and not finest / 2 <= record.notes.get("gsd_m", finest) <= coarsest * 2
    ]
    if not far:
        return []
    return [
        f"{len(far)} scene(s), such as {far[0]}, are more than twice as fine or coarse as what {encoder.model} was trained "
        f"on ({finest:g}-{coarsest:g} m): their vectors may say little."
    ]
