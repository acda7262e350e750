"""What must hold of raw data, and of what is delivered: bundle, scores, report and promotion.

As ``geokr_core.chain.checks``, which judges the data set and the training: functions that look at files and return a
`Finding`, repair nothing, and raise nothing where data is merely bad.
"""

import re
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from geokr_core.audit.output import RESULT_FILE
from geokr_core.chain.checks import Finding
from geokr_core.errors import (
    BackboneError,
    DamagedOutputError,
    EmbeddingsError,
    MissingInputError,
    RegistryError,
)
from geokr_core.land_cover_shares.outputs import RESULT_FILE as SHARES_RESULT_FILE
from geokr_core.scenes.quarantine import quarantine_of
from geokr_core.scenes.scene_outputs import chip_outputs, scenes_in
from geokr_core.step.files import read_json

_LOADED = re.compile(
    r"<(?:img|script|link|iframe|source)\b[^>]*\b(?:src|href)\s*=\s*[\"']?(?!data:|#)([^\"'\s>]+)", re.I
)
"""What a browser fetches when it opens a page; a link that a reader may click is none of these."""


def raw_data_are_there(world: Path) -> Finding:
    """Whether the generated world has scenes, land cover and labelled sets.

    Args:
        world: its folder.

    Raises:
        MissingInputError: there is no such folder.
    """
    if not world.is_dir():
        raise MissingInputError(f"{world}: not there; run `geokr world` first.")
    counts = {
        folder.name: sum(path.is_file() for path in folder.rglob("*"))
        for folder in sorted(world.iterdir())
        if folder.is_dir()
    }
    empty = [name for name, count in counts.items() if not count]
    passed = bool(counts) and not empty
    message = f"{sum(counts.values())} files: " + ", ".join(f"{count} of {name}" for name, count in counts.items())
    if not passed:
        message = f"Nothing lies in {', '.join(empty) or world}: run `geokr world --force`."
    return Finding(passed, message, {f"num_files_{name}": count for name, count in counts.items()})


def every_product_has_tiles(land_cover: Path) -> Finding:
    """Whether each land-cover product of the index has tiles.

    Args:
        land_cover: folder of the index.

    Raises:
        MissingInputError: there is no index.
    """
    index = land_cover / "products.json"
    if not index.is_file():
        raise MissingInputError(f"{index}: not there; run `geokr land-cover` first.")
    tiles = pd.read_parquet(land_cover / "tiles.parquet", columns=["product"])["product"].value_counts()
    counts = {str(entry["name"]): int(tiles.get(entry["name"], 0)) for entry in read_json(index)["products"]}
    empty = [name for name, count in counts.items() if not count]
    message = ", ".join(f"{count} tile(s) of {name}" for name, count in counts.items())
    if empty:
        message += f". Scenes that use {', '.join(empty)} get no labels: look at `land_cover.products[].files`."
    return Finding(not empty, message, {f"num_tiles_{name}": count for name, count in counts.items()})


def scene_is_usable(scene_id: str, *folders: Path) -> Finding:
    """Whether a scene gave an output; one that is quarantined is named with its reason.

    Args:
        scene_id: the scene.
        folders: of the steps that may have quarantined it.
    """
    reason = quarantine_of(scene_id, *folders)
    if reason is None:
        return Finding(True, "The scene is used.")
    rows = [{"scene": scene_id, "reason": reason}]
    return Finding(False, f"Scene {scene_id} is quarantined and will not enter Levir-KR: {reason}", table=rows)


def bundle_is_whole(backbone: Path) -> Finding:
    """Whether the bundle is what a receiver needs: every file's sha256, strict loading, golden features.

    Args:
        backbone: folder of the bundle.

    Raises:
        MissingInputError: there is no bundle.
    """
    from geokr_core.backbone.bundle import BUNDLE_FILES, verify_bundle

    try:
        verify_bundle(backbone)
    except BackboneError as error:
        return Finding(False, str(error))
    return Finding(True, f"All {len(BUNDLE_FILES)} files are whole, and loading gives the golden features.")


def every_chip_has_a_vector(embeddings: Path, chips: Path) -> Finding:
    """Whether every chip of every scene that was cut has a vector, and all vectors are of one network.

    Args:
        embeddings: folder of the vectors.
        chips: folder of the chips.

    Raises:
        MissingInputError: there are no vectors.
    """
    from geokr_core.embeddings.read import open_embeddings

    try:
        found = open_embeddings(embeddings)
    except (DamagedOutputError, EmbeddingsError) as error:
        return Finding(False, str(error))
    cut = chip_outputs(chips)
    missing = [
        {"scene": scene_id, "num_chips": num_cut, "num_vectors": num_vectors}
        for scene_id in scenes_in(chips)
        if (num_cut := cut.table(scene_id).num_rows)
        != (num_vectors := int((found.chips["scene_id"] == scene_id).sum()))
    ]
    message = (
        f"Vectors and chips differ in {len(missing)} scene(s); run `geokr embed`."
        if missing
        else f"All {len(found)} chips have a vector of {found.network['model']}."
    )
    return Finding(
        not missing, message, {"num_vectors": len(found), "num_scenes_differing": len(missing)}, missing[:20]
    )


_LEAST_LIFT: Final = 2.0
"""Average precision over the share that was planted from which an audit finds more than chance does, beyond doubt."""


def audit_finds_planted_errors(map_audit: Path) -> Finding:
    """Whether the audit found errors that it planted itself: else its ranking of the map's own errors says nothing.

    Args:
        map_audit: folder of the audit.

    Raises:
        MissingInputError: there is no audit.
    """
    path = map_audit / RESULT_FILE
    if not path.is_file():
        raise MissingInputError(f"{path}: not there; run `geokr audit` first.")
    result = read_json(path)
    rows = [{"kind": kind, **row} for kind, row in result["planted"].items()]
    chance = float(result["planted_fraction"])
    missed = [row["kind"] for row in rows if row["average_precision"] < _LEAST_LIFT * chance]
    if not rows:
        message = "No error could be planted into this map: how many the audit misses is not known."
    elif missed:
        message = f"Of planted errors ({', '.join(missed)}) it finds hardly more than chance would ({chance:.0%})."
    else:
        found = (f"{row['kind']} errors with an average precision of {row['average_precision']:.2f}" for row in rows)
        message = f"It finds {', '.join(found)}."
    return Finding(bool(rows) and not missed, message, {"num_chips": int(result["num_chips"])}, rows)


_COVERAGE_TOLERANCE: Final = 0.1
"""By how much coverage may miss what was promised: a few held-out places tell it no better."""


def intervals_cover_what_they_say(land_cover_shares: Path) -> Finding:
    """Whether intervals cover what they promise on held-out places, and the maps are better than the mean.

    Args:
        land_cover_shares: folder of the maps.

    Raises:
        MissingInputError: there are no maps.
    """
    path = land_cover_shares / SHARES_RESULT_FILE
    if not path.is_file():
        raise MissingInputError(f"{path}: not there; run `geokr predict` first.")
    content = read_json(path)
    judged, promised = content["judgement"], float(content["confidence"])
    coverage = judged["coverage"]
    better = judged["residual"] < judged["baseline_residual"]
    holds = coverage is not None and coverage >= promised - _COVERAGE_TOLERANCE
    said = "not measured, as a single place is held out" if coverage is None else f"{coverage:.1%}"
    message = (
        f"Residual on {judged['num_test_chips']} held-out chips {judged['residual']:.3f}, of the mean "
        f"{judged['baseline_residual']:.3f}; coverage of the {promised:.0%} intervals {said}."
    )
    rows = [{"class": name, "coverage": value} for name, value in judged["coverage_by_class"].items()]
    return Finding(better and holds, message, {"num_test_chips": int(judged["num_test_chips"])}, rows)


def scores_are_numbers(evaluation: Path) -> Finding:
    """Whether every score is a finite number and every start was judged on every task.

    Args:
        evaluation: folder of the results.

    Raises:
        MissingInputError: there are no results.
    """
    path = evaluation / "results.parquet"
    if not path.is_file():
        raise MissingInputError(f"{path}: not there; run `geokr evaluate` first.")
    table = pd.read_parquet(path)
    broken = table[~np.isfinite(table["value"])]
    rows = [{"task": str(row["task"]), "metric": str(row["metric"])} for row in broken.head(20).to_dict("records")]
    passed = not len(broken) and len(table) > 0
    message = (
        f"All {len(table)} scores of {table['task'].nunique()} task(s) are numbers."
        if passed
        else f"{len(broken)} of {len(table)} scores are no number: look at that task; nothing is decided on them."
    )
    return Finding(passed, message, {"num_scores": len(table), "num_not_finite": len(broken)}, rows)


def report_stands_alone(report: Path) -> Finding:
    """Whether the report is one file that loads nothing from elsewhere, so that it can be mailed and kept.

    Args:
        report: folder of the report.

    Raises:
        MissingInputError: there is no report.
    """
    path = report / "report.html"
    if not path.is_file():
        raise MissingInputError(f"{path}: not there; run `geokr report` first.")
    loaded = sorted(set(_LOADED.findall(path.read_text(encoding="utf-8"))))
    message = f"The page loads {', '.join(loaded[:5])}." if loaded else "The page loads nothing from elsewhere."
    size = path.stat().st_size
    return Finding(not loaded, message, {"num_bytes": size, "num_loaded": len(loaded)}, [{"loaded": u} for u in loaded])


def promotion_stands(champion: Path) -> Finding:
    """Whether the registry still holds what the promotion recorded: the version, its files, the alias.

    Args:
        champion: folder of the decision.

    Raises:
        MissingInputError: no decision has been made.
    """
    from geokr_core.registry.standing import changed_since

    path = champion / "decision.json"
    if not path.is_file():
        raise MissingInputError(f"{path}: no decision; run `geokr promote` first.")
    try:
        changed = changed_since(read_json(path))
    except RegistryError as error:
        return Finding(False, str(error))
    if changed is not None:
        return Finding(False, f"{changed} Run `geokr promote` again.")
    return Finding(True, "Version, files and alias are in the registry as recorded.")
