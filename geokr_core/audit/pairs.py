"""Chips as an audit sees them: a vector that says what the image shows, and the shares that the map gives its ground."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa

from geokr_core.embeddings.read import open_embeddings
from geokr_core.errors import AuditError, MissingInputError
from geokr_core.land_cover.legend import fraction_columns
from geokr_core.scenes.scene_outputs import LEGEND_FILE, chip_outputs, proportion_outputs
from geokr_core.step.files import read_json

_FEWEST_CHIPS: Final = 50
_ONE_CLASS: Final = 0.999


@dataclass(frozen=True)
class Pairs:
    """Chips with known land cover.

    Attributes:
        chips: as `Embeddings.chips`, and ``gap_days``, ``cloud_fraction`` (NaN where unknown).
        features: of each network float32 (N, D), the vectors; those of the chain come first.
        shares: float64 (N, K), the map's, rows sum to 1.
        classes: K names.
        colours: ``#RRGGBB`` of each.
        network: what made the first of the vectors.
        num_left_out: chips without known land cover, or with too little of it.
    """

    chips: pd.DataFrame
    features: tuple[np.ndarray, ...]
    shares: np.ndarray
    classes: tuple[str, ...]
    colours: tuple[str, ...]
    network: dict[str, Any]
    num_left_out: int


def read_pairs(embeddings: Path, chips: Path, proportions: Path, min_known_fraction: float) -> Pairs:
    """Read what is to be audited, in the order of the archive.

    Args:
        embeddings: folder of vectors.
        chips: folder of shards.
        proportions: folder of land cover.
        min_known_fraction: chips with less known ground are left out.

    Raises:
        MissingInputError: an input has not been made.
        EmbeddingsError: vectors of two networks are mixed.
        AuditError: too few chips have known land cover, or the map shows one class only.
    """
    found = open_embeddings(embeddings)
    if not (proportions / LEGEND_FILE).is_file():
        raise MissingInputError(f"{proportions}: no land cover to audit; run `geokr proportions` first.")
    legend = read_json(proportions / LEGEND_FILE)
    classes = tuple(str(name) for name in legend["classes"])
    shares, facts = _tables(found.chips["scene_id"].unique().tolist(), chips, proportions, classes)
    known = shares.reindex(found.chips["chip_id"])
    kept = np.flatnonzero((known["known_fraction"] >= min_known_fraction).to_numpy())
    if len(kept) < _FEWEST_CHIPS:
        raise AuditError(
            f"{len(kept)} of {len(found)} chips have land cover on {min_known_fraction:.0%} of their ground; an audit needs at least "
            f"{_FEWEST_CHIPS}. Scenes without land cover can be embedded and searched, not audited: give a product of their "
            "ground (`land_cover.products`), or lower `map_audit.min_known_fraction`."
        )
    values = known[list(fraction_columns(classes))].to_numpy(dtype=np.float64)[kept]
    values /= np.maximum(values.sum(axis=1, keepdims=True), 1e-12)
    means = values.mean(axis=0)
    if means.max() >= _ONE_CLASS:
        raise AuditError(
            f"The map shows {classes[int(means.argmax())]} on {means.max():.1%} of the ground: with one class only there is nothing "
            "to disagree about. Audit scenes of other ground, too, or a product with finer classes."
        )
    rows = found.chips.iloc[kept].reset_index(drop=True)
    extra = facts.reindex(rows["chip_id"]).reset_index(drop=True)
    return Pairs(
        chips=rows.assign(**{str(name): extra[name] for name in extra}),
        features=(found.vectors[kept],),
        shares=values,
        classes=classes,
        colours=tuple(str(colour) for colour in legend["colours"]),
        network=found.network,
        num_left_out=len(found) - len(kept),
    )


def other_shares(chips: pd.DataFrame, classes: tuple[str, ...], folder: Path) -> np.ndarray:
    """Shares of the same chips by another edition of the map, float64 (N, K); NaN where it does not know them.

    Args:
        chips: ``chip_id`` and ``scene_id`` of N chips.
        classes: K names, as the map has them.
        folder: proportions of the other edition.

    Raises:
        MissingInputError: there are no proportions in the folder.
        AuditError: its classes are others, or it has none of the chips.
    """
    if not (folder / LEGEND_FILE).is_file():
        raise MissingInputError(f"{folder}: no proportions there; `map_audit.other_edition` names such a folder.")
    others = tuple(str(name) for name in read_json(folder / LEGEND_FILE)["classes"])
    if others != classes:
        raise AuditError(
            f"{folder}: describes chips by {', '.join(others)}, the map beside it by {', '.join(classes)}: two editions "
            "are compared by one legend. Count both with the same `land_cover.legend`."
        )
    outputs = proportion_outputs(folder)
    counted = [scene for scene in chips["scene_id"].unique().tolist() if outputs.whole(scene)]
    columns = list(fraction_columns(classes))
    tables = [outputs.table(scene, ["chip_id", *columns]).to_pandas().set_index("chip_id") for scene in counted]
    found = pd.concat(tables) if tables else pd.DataFrame(columns=columns)
    values = found.reindex(chips["chip_id"])[columns].to_numpy(dtype=np.float64)
    if np.isnan(values).all():
        raise AuditError(
            f"{folder}: has none of these {len(values)} chips: count the other edition under the same chips."
        )
    sums = values.sum(axis=1, keepdims=True)
    shares: np.ndarray = np.where(sums > 0, values / np.where(sums > 0, sums, 1.0), np.nan)
    return shares


def _tables(
    scene_ids: list[str], chips: Path, proportions: Path, classes: tuple[str, ...]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Shares and known fraction by chip; and by chip what may explain a disagreement."""
    outputs, shards = proportion_outputs(proportions), chip_outputs(chips)
    counted = [scene_id for scene_id in scene_ids if outputs.whole(scene_id)]
    columns = ["chip_id", "known_fraction", *fraction_columns(classes)]
    if not counted:
        return pd.DataFrame(columns=columns).set_index("chip_id"), pd.DataFrame()
    shares = pa.concat_tables([outputs.table(scene_id, [*columns, "gap_days"]) for scene_id in counted]).to_pandas()
    clouds = pa.concat_tables([shards.table(scene_id, ["chip_id", "cloud_fraction"]) for scene_id in counted])
    facts = shares[["chip_id", "gap_days"]].merge(clouds.to_pandas(), on="chip_id", how="left").set_index("chip_id")
    return shares.drop(columns="gap_days").set_index("chip_id"), facts
