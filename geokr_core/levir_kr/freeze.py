"""Freezing Levir-KR: chips and proportions become one data set with a manifest."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from geokr_core.errors import DamagedOutputError, DatasetError
from geokr_core.land_cover.legend import FRACTION
from geokr_core.levir_kr.audited import Verdicts, described, read_verdicts
from geokr_core.levir_kr.catalogue import Tally, read_catalogue, write_catalogue
from geokr_core.levir_kr.config import LevirKRConfig
from geokr_core.levir_kr.dataset import CATALOGUE_FILE, CELLS_FILE, LevirKR, open_levir_kr, write_manifest
from geokr_core.scenes.scene_outputs import (
    CELLS,
    CUT_FILE,
    LEGEND_FILE,
    SceneOutputs,
    chip_outputs,
    proportion_outputs,
)
from geokr_core.step.digests import file_md5
from geokr_core.step.files import read_json, whole_folder
from geokr_core.step.reporter import LOG, Reporter
from geokr_core.step.section import as_plain
from geokr_core.step.summary import Summary

_STATISTICS_ROWS = 4096
"""Chips read to measure channel mean and standard deviation: enough for three digits."""


def freeze(config: LevirKRConfig, chips: Path, proportions: Path, out: Path, reporter: Reporter = LOG) -> Summary:
    """Freeze Levir-KR from shards and proportions.

    Args:
        config: which chips enter and how they are split.
        chips: folder of shards.
        proportions: folder of proportions, one file a scene, and ``legend.json``.
        out: folder to write ``manifest.json`` and ``catalogue.parquet`` into; replaced as a whole.
        reporter: hears how many chips were left out, and why.

    Returns:
        Counts, and the class distribution as table.

    Raises:
        MissingInputError: a scene has a shard but no proportions.
        DatasetError: no chip survived the filters, no training chip is left after the split, or an audit that is to be used is not
            one of these chips.
        ConfigError: a file of the audit is another one than was meant.
        DamagedOutputError: a file of a scene is not what was written.
        OSError: the file system refused; an earlier data set is left as it was.
    """
    verdicts = _verdicts(config, proportions)
    with whole_folder(out) as folder:
        tally = write_catalogue(config, chips, proportions, folder / CATALOGUE_FILE, verdicts)
        if not tally.num_kept:
            raise DatasetError(
                f"{proportions}: none of {tally.num_candidates} chips may enter Levir-KR: the least fraction without a class "
                f"of the legend is {1.0 - tally.best_known_fraction:.2f} (allowed: {config.max_unknown_fraction}), the most "
                f"cells of known class {tally.most_cells:.1f} (asked: {config.min_voting_cells}). "
                "Check that scenes and land cover show the same ground, or relax `levir_kr`."
            )
        reporter.info(f"levir_kr: {tally.num_kept} of {tally.num_candidates} chips enter")
        audit = _audit_counts(verdicts, tally, reporter)
        catalogue = read_catalogue(folder / CATALOGUE_FILE)
        _check_split(config, catalogue, reporter)
        for outputs in (chip_outputs(chips), proportion_outputs(proportions)):
            _require_whole(outputs, catalogue["scene_id"].unique())
        _write_cells(catalogue, proportions, folder / CELLS_FILE)
        manifest = _manifest(config, catalogue, chips, proportions, out) | audit
        mean, std = _channel_statistics(LevirKR(out, manifest, catalogue))
        write_manifest(folder, {**manifest, "channel_mean": mean, "channel_std": std})
    return _summary(catalogue, tally.num_candidates, open_levir_kr(out))


def _verdicts(config: LevirKRConfig, proportions: Path) -> Verdicts | None:
    if config.audit is None:
        return None
    return read_verdicts(config.audit, tuple(read_json(proportions / LEGEND_FILE)["classes"]))


def _audit_counts(verdicts: Verdicts | None, tally: Tally, reporter: Reporter) -> dict[str, Any]:
    """What the audit did, for the manifest; empty where none is used."""
    if verdicts is None:
        return {}
    num_usable = tally.num_kept + (tally.num_flagged if verdicts.config.use == "exclude" else 0)
    done = "are left out" if verdicts.config.use == "exclude" else "weigh less"
    reporter.info(
        f"levir_kr: {tally.num_flagged} training chips that an audit flagged {done}; it knows {tally.num_audited} of {num_usable} chips"
    )
    counts = {"num_audited": tally.num_audited, "num_flagged": tally.num_flagged}
    return {"audit": described(verdicts.config, counts)}


def _check_split(config: LevirKRConfig, catalogue: pd.DataFrame, reporter: Reporter) -> None:
    if not (catalogue["split"] == "train").any():
        raise DatasetError(
            f"All {len(catalogue)} chips lie in the places held out for validation: lower `levir_kr.validation_fraction` "
            f"({config.validation_fraction}) or `levir_kr.place_size_deg` ({config.place_size_deg})."
        )
    if config.validation_fraction > 0 and not (catalogue["split"] == "validation").any():
        reporter.warning(
            f"No place was held out for validation: the chips fill too few cells of {config.place_size_deg} degrees. "
            "Lower `levir_kr.place_size_deg` to watch pretraining on ground it has not seen."
        )


def _write_cells(catalogue: pd.DataFrame, proportions: Path, path: Path) -> None:
    """Squares of all chips in catalogue order as one file, where they were counted.

    Written from front to back: a file that is mapped before it has its bytes ends the process when the disk is full.
    """
    side = read_json(proportions / LEGEND_FILE)["config"].get("cells_per_side", 0)
    if not side:
        return
    labels = proportion_outputs(proportions)
    shape = (side, side, sum(column.startswith(FRACTION) for column in catalogue.columns))
    with path.open("wb") as stream:
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(catalogue), *shape)}
        np.lib.format.write_array_header_1_0(stream, header)
        # The catalogue holds scene after scene, in the order of their chips.
        for scene_id, rows in catalogue.groupby("scene_id", sort=False, observed=True)["row"]:
            of_scene = labels.array(str(scene_id), CELLS)
            if of_scene.shape[1:] != shape or rows.max() >= len(of_scene):
                raise DamagedOutputError(
                    f"{labels.path(str(scene_id), CELLS)}: shape {of_scene.shape} found, expected {shape} a chip and "
                    f"{rows.max() + 1} chips or more; run `{labels.command}`."
                )
            stream.write(np.ascontiguousarray(of_scene[rows.to_numpy()]).data)


def _require_whole(outputs: SceneOutputs, scene_ids: Iterable[str]) -> None:
    """Refuse files that are not what their scene's record says; scenes without a record are believed."""
    for scene_id in scene_ids:
        faults = outputs.faults(scene_id) if outputs.record(scene_id) is not None else {}
        for name, fault in faults.items():
            raise DamagedOutputError(
                f"{outputs.folder / name}: {fault}; run `{outputs.command}`, which makes the scene again."
            )


def _shard_md5s(catalogue: pd.DataFrame, chips: Path) -> dict[str, str]:
    """md5 of every shard: the recorded one, after `_require_whole`."""
    outputs, found = chip_outputs(chips), {}
    pairs = catalogue[["shard", "scene_id"]].drop_duplicates().astype(str).sort_values("shard")
    for shard, scene_id in pairs.itertuples(index=False):
        record = outputs.record(scene_id)
        recorded = record.files.get(shard) if record is not None else None
        found[shard] = recorded or file_md5(chips / shard)
    return found


def _manifest(
    config: LevirKRConfig, catalogue: pd.DataFrame, chips: Path, proportions: Path, out: Path
) -> dict[str, Any]:
    legend = read_json(proportions / LEGEND_FILE)
    cut = read_json(chips / CUT_FILE)
    return {
        "num_chips": len(catalogue),
        "num_train": int((catalogue["split"] == "train").sum()),
        "num_validation": int((catalogue["split"] == "validation").sum()),
        "num_scenes": int(catalogue["scene_id"].nunique()),
        "legend": legend["legend"],
        "legend_hash": legend["digest"],
        "classes": legend["classes"],
        "class_colours": legend["colours"],
        "products": legend["products"],
        "generated_world": bool(cut["generated_world"]),
        "bands": cut["bands"],
        "chip_size_px": cut["size_px"],
        "cells_per_side": legend["config"].get("cells_per_side", 0),
        "gsd_m_min": round(float(catalogue["gsd_m"].min()), 3),
        "gsd_m_max": round(float(catalogue["gsd_m"].max()), 3),
        "chips_folder": Path("..", chips.name).as_posix() if chips.parent == out.parent else chips.resolve().as_posix(),
        "shards": _shard_md5s(catalogue, chips),
        # What an audit changed stands under "audit": its content counts, and not where it lies.
        "config": {
            "levir_kr": as_plain(config.model_copy(update={"audit": None})),
            "chips": cut["config"],
            "proportions": legend["config"],
        },
    }


def _channel_statistics(dataset: LevirKR) -> tuple[list[float], list[float]]:
    rows = dataset.rows_of("train")
    chosen = np.sort(np.random.default_rng(0).choice(rows, size=min(len(rows), _STATISTICS_ROWS), replace=False))
    total, squares, count = 0.0, 0.0, 0
    for part in np.array_split(chosen, max(1, len(chosen) // 512)):
        pixels = dataset.images(part).reshape(-1, len(dataset.bands)).astype(np.float64) / 255.0
        total, squares, count = total + pixels.sum(axis=0), squares + (pixels**2).sum(axis=0), count + len(pixels)
    mean = np.asarray(total) / count
    std = np.sqrt(np.maximum(np.asarray(squares) / count - mean**2, 1e-8))
    return [round(float(v), 6) for v in mean], [round(float(v), 6) for v in std]


def _summary(catalogue: pd.DataFrame, num_candidates: int, dataset: LevirKR) -> Summary:
    from geokr_core.levir_kr.footprints import map_of
    from geokr_core.levir_kr.pictures import chips_with_land_cover, class_histogram

    train, validation = dataset.rows_of("train"), dataset.rows_of("validation")
    table = [
        {
            "class": name,
            "train_fraction": round(float(dataset.proportions[train, k].mean()), 4),
            "validation_fraction": round(float(dataset.proportions[validation, k].mean()), 4)
            if len(validation)
            else "",
            "chips_mostly": int((dataset.proportions[:, k] > 0.5).sum()),
        }
        for k, name in enumerate(dataset.classes)
    ]
    mean = dataset.proportions[train].mean(axis=0)
    entropy = float(-(mean[mean > 0] * np.log(mean[mean > 0])).sum())
    return Summary(
        numbers={
            "num_chips": len(catalogue),
            "num_train": len(train),
            "num_validation": len(validation),
            "num_scenes": int(catalogue["scene_id"].nunique()),
            "num_left_out": num_candidates - len(catalogue),
            "label_entropy_nat": round(entropy, 4),
        },
        table=table,
        picture_png=chips_with_land_cover(dataset, num_chips=24),
        pictures={
            "footprints": map_of(dataset),
            "class histogram": class_histogram(
                mean,
                dataset.proportions[validation].mean(axis=0) if len(validation) else None,
                dataset.classes,
                dataset.class_colours,
            ),
        },
    )
