"""The step: score every chip, plant errors and count what is found of them, and write the ranked list."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from geokr_core.audit.cell_judge import with_cells
from geokr_core.audit.cell_run import CellAudit
from geokr_core.audit.cells import CellInputs
from geokr_core.audit.config import MapAuditConfig
from geokr_core.audit.disagreement import LEAST_EXPLAINED, ChipJudge, Disagreement, folds_by_place, largest_move
from geokr_core.audit.gallery import gallery
from geokr_core.audit.kinds import Causes, kinds_of
from geokr_core.audit.maps import write_disagreement_maps
from geokr_core.audit.networks import OTHER_NETWORKS, with_other_networks
from geokr_core.audit.output import GALLERY_FILE, MAP_FOLDER, RESULT_FILE, TABLE_FILE
from geokr_core.audit.pairs import Pairs, other_shares, read_pairs
from geokr_core.audit.planting import KINDS, Found, measure
from geokr_core.audit.registration import Ground, Shifted, shifted_places
from geokr_core.step.files import whole_folder, write_json
from geokr_core.step.reporter import LOG, Reporter
from geokr_core.step.summary import Summary

_FIRST: Final = 100
_SHOWN: Final = 20
_CHANGED: Final = 0.5
"""Sum of absolute differences from which two editions show other ground: a quarter of it is another class."""


def audit_map(
    config: MapAuditConfig,
    place_size_deg: float,
    embeddings: Path,
    chips: Path,
    proportions: Path,
    out: Path,
    reporter: Reporter = LOG,
    ground: Ground | None = None,
) -> Summary:
    """Rank the chips by how far the land-cover map is from what their images say.

    What an image says is learned from chips of other places (ridge regression on the embeddings). A large residual alone says
    little, because mixed ground is hard to tell: it is divided by the residual that such a prediction comes with. In each
    run errors are planted, and what is found of them is part of the output.

    Args:
        config: which chips are audited and how the audit tests itself.
        place_size_deg: size of the cells that are held out together, where ``config`` gives none.
        embeddings: folder of vectors.
        chips: folder of shards.
        proportions: folder of land cover.
        out: folder that gets ``audit.parquet``, ``audit.json``, ``gallery.png`` and ``maps/<scene>.disagreement.tif``, with ``cells`` also
            ``cells.parquet`` and ``maps/<scene>.cells.disagreement.tif``; replaced as a whole, the same bytes for the same inputs.
        reporter: hears what was found of planted errors.
        ground: scenes and land cover, for whether the map is shifted; None: not asked.

    Returns:
        What was found of planted errors, the first chips as table and as picture.

    Raises:
        MissingInputError: an input has not been made.
        EmbeddingsError: vectors of two networks are mixed.
        AuditError: too few chips or places have known land cover, the map shows one class only, another edition or vectors of another
            network do not fit, or cells are asked for that were not kept.
        DamagedOutputError: a map of cells is not what was written.
        OSError: the file system refused.
    """
    alone = read_pairs(embeddings, chips, proportions, config.min_known_fraction)
    pairs = with_other_networks(alone, config.other_embeddings or ())
    size = config.place_size_deg or place_size_deg
    folds = folds_by_place(pairs.chips["lon"].to_numpy(), pairs.chips["lat"].to_numpy(), size, config.num_folds)
    judge = ChipJudge.of(pairs.features, folds)
    found = judge(pairs.shares)
    strange = _strange(found.explained)
    for line in strange:
        reporter.warning(line)
    cells = CellAudit.prepared(
        config, pairs, folds, CellInputs(embeddings, chips, proportions, config.min_known_fraction)
    )
    tests, cell_tests = (_tests(config, pairs, judge, reporter), []) if cells is None else cells.found(config, reporter)
    _tell("", tests, reporter)
    _tell("cells of ", cell_tests, reporter)
    shifted = [] if ground is None or not config.registration else _shifted(pairs, chips, ground, size, reporter)
    causes = _causes(config, pairs, found, shifted)
    with whole_folder(out) as folder:
        written = None if cells is None else cells.write(config, causes, folder, reporter)
        found = found if written is None else replace(found, score=with_cells(found.score, written.scores))
        table = _table(config, pairs, found, causes)
        result = _result(config, size, pairs, tests, table) | {"shifted_places": [one.as_json() for one in shifted]}
        result |= {} if written is None else {"cells": written.as_json(_means(cell_tests))}
        picture = gallery(chips, table.head(_SHOWN), pairs)
        table.to_parquet(folder / TABLE_FILE, index=False, compression="zstd", write_covering_bbox=True)
        write_json(folder / RESULT_FILE, result)
        (folder / GALLERY_FILE).write_bytes(picture)
        write_disagreement_maps(folder / MAP_FOLDER, chips, table, pairs.classes)
    summary = _summary(result, table, picture)
    numbers = {**summary.numbers, "explained_fraction": round(found.explained, 4)}
    return replace(summary, numbers=numbers, warnings=[*strange, *summary.warnings])


def _strange(explained: float) -> list[str]:
    """What is wrong with the map as a whole, before single chips are looked at."""
    if explained >= LEAST_EXPLAINED:
        return []
    return [
        f"The images explain {max(explained, 0.0):.0%} of the map's spread: image and map have next to nothing to do with each other, and the ranking "
        "below says little. Does the map show this ground (rows and columns of its files swapped, latitude and longitude, another CRS)? "
        "`geokr alignment` looks at each scene. Or the network tells these classes not at all: embed with another one."
    ]


def _tests(config: MapAuditConfig, pairs: Pairs, judge: ChipJudge, reporter: Reporter) -> list[Found]:
    tests = []
    with reporter.progress("planted errors", len(KINDS) * config.plantings) as advance:
        for kind in KINDS:
            for draw in range(config.plantings):
                rng = np.random.default_rng([config.seed, KINDS.index(kind), draw])
                found = measure(pairs.shares, lambda shares: judge(shares).score, kind, config.planted_fraction, rng)
                tests += [] if found is None else [found]
                advance(1)
    return tests


def _tell(what: str, tests: Sequence[Found], reporter: Reporter) -> None:
    for name, row in _means(tests).items():
        reporter.info(
            f"{what}{name} planted errors ({row['num_planted']:.0f} of {row['num_chips']:.0f}, {row['plantings']:.0f} draws): average "
            f"precision {row['average_precision']:.2f}, {row['precision_at_100']:.0%} of the first hundred"
        )


def _means(tests: Sequence[Found]) -> dict[str, dict[str, float]]:
    """By kind of planted error, the mean over draws of each figure, and the least and greatest average precision."""
    means = {}
    for kind in KINDS:
        mine = [test for test in tests if test.kind == kind]
        if not mine:
            continue
        names = ("num_chips", "num_planted", "average_precision", "precision_at_100", "recall_at_planted")
        row = {name: float(np.mean([getattr(test, name) for test in mine])) for name in names}
        precisions = [test.average_precision for test in mine]
        row |= {"least_average_precision": min(precisions), "greatest_average_precision": max(precisions)}
        means[str(kind)] = {name: round(value, 4) for name, value in row.items()} | {"plantings": float(len(mine))}
    return means


def _shifted(pairs: Pairs, chips: Path, ground: Ground, size: float, reporter: Reporter) -> list[Shifted]:
    found = shifted_places(pairs.chips, chips, ground, size, reporter)
    for one in found:
        told = one.as_json()
        reporter.warning(
            f"scene {one.scene_id}, around chip {told['first_chip']}: the map lies on the image only when it is moved by "
            f"{told['right_px']} px to the right and {told['down_px']} px down ({told['num_chips']} chips)"
        )
    return found


def _causes(config: MapAuditConfig, pairs: Pairs, found: Disagreement, shifted: Sequence[Shifted]) -> Causes:
    moved = {chip_id for one in shifted for chip_id in one.chip_ids}
    is_moved = pairs.chips["chip_id"].isin(moved).to_numpy()
    if config.other_edition is None:
        return Causes(np.zeros(len(pairs.shares), dtype=bool), is_moved)
    other = other_shares(pairs.chips, pairs.classes, config.other_edition)
    changed = np.abs(other - pairs.shares).sum(axis=1) >= _CHANGED
    nearer = np.abs(other - found.predicted).sum(axis=1) < found.residual
    return Causes(changed & nearer, is_moved)


def _table(config: MapAuditConfig, pairs: Pairs, found: Disagreement, causes: Causes) -> gpd.GeoDataFrame:
    surplus, missing = largest_move(pairs.shares, found.predicted, pairs.classes)
    flagged = found.order[:_FIRST]
    columns: dict[str, Any] = {
        "score": found.score.round(4),
        "residual": found.residual.round(4),
        "expected_residual": found.expected.round(4),
        "moved_fraction": (found.residual / 2).round(4),
        "surplus_class": surplus,
        "missing_class": missing,
        "kind": kinds_of(config, pairs.chips, (surplus, missing), flagged, causes),
    }
    for k, name in enumerate(pairs.classes):
        columns[f"map_{name}"] = pairs.shares[:, k].round(4)
        columns[f"image_{name}"] = found.predicted[:, k].round(4)
    chips = pairs.chips
    east = chips["east"].where(chips["east"] >= chips["west"], chips["east"] + 360.0)
    boxes = shapely.box(chips["west"], chips["south"], east, chips["north"])
    own = chips[["chip_id", "scene_id", "row", "acquired", "gap_days", "cloud_fraction"]].assign(**columns)
    ranked = gpd.GeoDataFrame(own, geometry=boxes, crs="OGC:CRS84").iloc[found.order].reset_index(drop=True)
    ranked.insert(0, "rank", np.arange(1, len(ranked) + 1))
    return ranked


def _result(
    config: MapAuditConfig, size: float, pairs: Pairs, tests: Sequence[Found], table: pd.DataFrame
) -> dict[str, Any]:
    first = table.head(_FIRST)
    confusions = Counter(zip(first["surplus_class"], first["missing_class"], strict=True))
    return {
        "num_chips": len(table),
        "num_left_out": pairs.num_left_out,
        "place_size_deg": size,
        "num_folds": config.num_folds,
        "planted_fraction": config.planted_fraction,
        "classes": list(pairs.classes),
        "model": pairs.network["model"],
        "model_version": pairs.network["model_version"],
        **{key: pairs.network[key] for key in (OTHER_NETWORKS,) if key in pairs.network},
        "planted": _means(tests),
        "num_flagged": len(first),
        "kinds": {str(kind): int(count) for kind, count in sorted(Counter(first["kind"]).items())},
        "confusions": [
            {"surplus_class": pair[0], "missing_class": pair[1], "chips": count}
            for pair, count in sorted(confusions.items(), key=lambda item: (-item[1], item[0]))
        ],
        "mean_residual": round(float(table["residual"].mean()), 4),
    }


def _summary(result: Mapping[str, Any], table: pd.DataFrame, picture: bytes) -> Summary:
    numbers: dict[str, Any] = {name: result[name] for name in ("num_chips", "num_left_out", "mean_residual")}
    for kind, row in result["planted"].items():
        numbers[f"{kind}_average_precision"] = row["average_precision"]
        numbers[f"{kind}_precision_at_100"] = row["precision_at_100"]
    for kind, row in result.get("cells", {}).get("planted", {}).items():
        numbers[f"{kind}_cells_average_precision"] = row["average_precision"]
    shown = table.head(_SHOWN)
    names = ("rank", "chip_id", "score", "moved_fraction", "surplus_class", "missing_class", "kind")
    rows = [{name: getattr(row, name) for name in names} for row in shown.itertuples()]
    unplanted = [kind for kind in KINDS if kind not in result["planted"]]
    warnings = [
        f"No {kind} error can be planted into this map: how many the audit misses is not known." for kind in unplanted
    ]
    return Summary(numbers=numbers, table=rows, picture_png=picture, warnings=warnings)
