"""How good are maps of shares on ground that neither network nor head has seen? The first tables of ``docs/land-cover-shares.md``.

python -m geokr_core.bench.maps TRAINED_STORE MAPPED_STORE docs/land-cover-shares.md

The maps are read as ``geokr predict`` wrote them, and judged by the product beside what needs no network: the mean of the training
chips, given to every chip, and a ridge regression on 54 colour numbers of the same training chips.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
import rasterio
from rasterio.windows import Window

from geokr_core.bench.page import written_between
from geokr_core.embeddings.cells import cells_per_side
from geokr_core.embeddings.regression import as_shares, fit, place_folds
from geokr_core.evaluation.protocols.probe import colour_histogram
from geokr_core.evaluation.statistics import bootstrap_rows, percentile_interval
from geokr_core.land_cover_shares.judgement import place_size_deg
from geokr_core.land_cover_shares.maps import NODATA, STEPS
from geokr_core.land_cover_shares.outputs import SHARES
from geokr_core.levir_kr.dataset import LevirKR, open_levir_kr

BEGIN: Final = "<!-- maps: begin -->"
END: Final = "<!-- maps: end -->"

NAMES: Final = {"map": "`geokr predict`", "colours": "54 colour numbers, ridge", "mean": "mean of the training chips"}
"""What is judged, and its words in a table."""

_FOLDS: Final = 5
_LEAST_FRACTION: Final = 0.001
"""Classes with less of the ground are left out of the table."""


@dataclass(frozen=True)
class Judged:
    """Shares of the same chips.

    Attributes:
        classes: K names.
        product: float64 (N, K), what the product gives.
        given: by name, what is judged, float64 (N, K).
        places: int64 (N,), the place of each chip.
    """

    classes: tuple[str, ...]
    product: np.ndarray
    given: Mapping[str, np.ndarray]
    places: np.ndarray

    def residuals(self, name: str) -> np.ndarray:
        """Sum of absolute differences to the product, float64 (N,), 0 to 2."""
        found: np.ndarray = np.abs(self.given[name] - self.product).sum(axis=1)
        return found

    def right(self, name: str) -> np.ndarray:
        """Chips whose largest class is the product's, bool (N,)."""
        found: np.ndarray = self.given[name].argmax(axis=1) == self.product.argmax(axis=1)
        return found


def mapped_shares(maps: Path, catalogue: pd.DataFrame, chip_size_px: int) -> np.ndarray:
    """Mean shares of the cells of each chip, as the maps give them, float64 (N, K); NaN where a map has no data.

    Args:
        maps: folder of ``<scene>.shares.tif``.
        catalogue: ``scene_id``, ``pixel_row``, ``pixel_col`` of chips that begin at a cell.
        chip_size_px: side of the chips.

    Raises:
        OSError: a map is missing.
    """
    cells = cells_per_side(chip_size_px)
    cell_px = chip_size_px // cells
    rows = catalogue.reset_index(drop=True)
    found: dict[int, np.ndarray] = {}
    for scene_id, own in rows.groupby("scene_id", sort=True):
        with rasterio.open(maps / f"{scene_id}{SHARES}") as source:
            for number, row, column in zip(own.index, own["pixel_row"], own["pixel_col"], strict=True):
                stored = source.read(window=Window(column // cell_px, row // cell_px, cells, cells))
                known = stored[0] != NODATA
                found[int(number)] = (
                    stored[:, known].mean(axis=1) / STEPS if known.any() else np.full(len(stored), np.nan)
                )
    return np.stack([found[number] for number in range(len(rows))])


def shares_without_network(trained: LevirKR, images: np.ndarray) -> dict[str, np.ndarray]:
    """What can be said about chips without a network.

    Args:
        trained: whose training chips it is learned from.
        images: uint8 (N, H, W, 3) of other chips, stretched alike.

    Returns:
        ``colours``: by ridge regression on colour numbers; ``mean``: the training chips' own; float64 (N, K).
    """
    rows = trained.rows_of("train")
    labels = trained.proportions[rows].astype(np.float64)
    lonlat = trained.catalogue[["lon", "lat"]].to_numpy()[rows]
    folds = place_folds(lonlat[:, 0], lonlat[:, 1], place_size_deg(trained), _FOLDS)
    colours = fit(colour_histogram(trained.images(rows)), labels, folds)
    return {
        "colours": as_shares(colours(colour_histogram(images))).astype(np.float64),
        "mean": np.tile(labels.mean(axis=0), (len(images), 1)),
    }


def judge_maps(trained: LevirKR, mapped: LevirKR, maps: Path) -> Judged:
    """Bring together the product, the maps, and what needs no network.

    Args:
        trained: what network and head were trained on.
        mapped: chips of other ground.
        maps: folder of the maps of this ground.

    Raises:
        OSError: a map is missing.
    """
    everything = np.arange(len(mapped.catalogue))
    given = {
        "map": mapped_shares(maps, mapped.catalogue, mapped.chip_size_px),
        **shares_without_network(trained, mapped.images(everything)),
    }
    known = np.isfinite(given["map"]).all(axis=1)
    cells = np.floor(mapped.catalogue[["lon", "lat"]].to_numpy() / place_size_deg(mapped)).astype(int)
    places = np.unique(cells, axis=0, return_inverse=True)[1].ravel()
    chosen = {name: values[known] for name, values in given.items()}
    return Judged(trained.classes, mapped.proportions[known].astype(np.float64), chosen, places[known])


def paired_interval(values: np.ndarray, places: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of values, float64 (N,), whole places (N,) drawn with replacement."""
    number = np.bincount(places)
    sums, drawn = np.bincount(places, weights=values), bootstrap_rows(len(number))
    return percentile_interval((sums[drawn].sum(axis=1) / number[drawn].sum(axis=1)).tolist())


def more_than_map(off_by: np.ndarray, off_by_map: np.ndarray, places: np.ndarray) -> str:
    """How much more something is off than the map, in words with its interval; float64 (N,) each, ``places`` as in `paired_interval`."""
    more = off_by - off_by_map
    low, high = paired_interval(more, places)
    return f"{more.mean():+.3f} [{low:+.3f}, {high:+.3f}]"


def table(judged: Judged) -> str:
    """Both tables as Markdown."""
    lines = [
        f"{len(judged.product)} chips in {len(np.unique(judged.places))} places.",
        "",
        "| | off by (0 to 2) | more than the map, 95 % interval | largest class right |",
        "|---|---|---|---|",
    ]
    for name, words in NAMES.items():
        residuals = judged.residuals(name)
        more = "–" if name == "map" else more_than_map(residuals, judged.residuals("map"), judged.places)
        lines.append(f"| {words} | {residuals.mean():.3f} | {more} | {judged.right(name).mean():.1%} |")
    lines += [
        "",
        "| class | share by the product | share by the map | off by, map | colour numbers | mean | largest class found, map | colour numbers |",
        "|---|---|---|---|---|---|---|---|",
    ]
    largest = judged.product.argmax(axis=1)
    for k in np.argsort(-judged.product.mean(axis=0)):
        if judged.product[:, k].mean() < _LEAST_FRACTION:
            continue
        own = largest == k
        off = [f"{np.abs(judged.given[name][:, k] - judged.product[:, k]).mean():.3f}" for name in NAMES]
        found = [
            f"{judged.right(name)[own].mean():.0%} of {own.sum()}" if own.any() else "–" for name in ("map", "colours")
        ]
        shares = [f"{values[:, k].mean():.1%}" for values in (judged.product, judged.given["map"])]
        lines.append(f"| {judged.classes[k].replace('_', ' ')} | {' | '.join([*shares, *off, *found])} |")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Write the tables into a page, between its two marks."""
    trained, mapped, page = Path(arguments[0]), Path(arguments[1]), Path(arguments[2])
    write = written_between(page, BEGIN, END)
    stores = [open_levir_kr(store / "levir_kr") for store in (trained, mapped)]
    write(f"\n{table(judge_maps(stores[0], stores[1], mapped / 'land_cover_shares'))}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
