"""How good are maps of shares on ground that neither network nor head has seen? The first tables of ``docs/land-cover-shares.md``.

python -m geokr_core.bench.maps TRAINED_STORE MAPPED_STORE docs/land-cover-shares.md [OLDER_STORE ...]

The maps are read as ``geokr predict`` wrote them, and judged by the product beside what needs no network: the mean of the training
chips, given to every chip, and a ridge regression on 54 colour numbers of the same training chips. Each OLDER_STORE holds the same chips under
an older or coarser product: what that says of them, and what maps say that learned from it alone, where it holds some.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from geokr_core.bench.mapped import mapped_shares
from geokr_core.bench.older_maps import LEARNED, read_older_map, said_by
from geokr_core.bench.page import written_between
from geokr_core.embeddings.regression import as_shares, fit, place_folds
from geokr_core.evaluation.protocols.probe import colour_histogram
from geokr_core.evaluation.statistics import bootstrap_rows, percentile_interval
from geokr_core.land_cover_shares.judgement import place_size_deg
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
        older: by name, the words of what is given beside `NAMES`: older maps, and maps that learned from them.
    """

    classes: tuple[str, ...]
    product: np.ndarray
    given: Mapping[str, np.ndarray]
    places: np.ndarray
    older: Mapping[str, str] = field(default_factory=dict)

    def residuals(self, name: str) -> np.ndarray:
        """Sum of absolute differences to the product, float64 (N,), 0 to 2."""
        found: np.ndarray = np.abs(self.given[name] - self.product).sum(axis=1)
        return found

    def right(self, name: str) -> np.ndarray:
        """Chips whose largest class is the product's, bool (N,)."""
        found: np.ndarray = self.given[name].argmax(axis=1) == self.product.argmax(axis=1)
        return found


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


def judge_maps(trained: LevirKR, mapped: LevirKR, maps: Path, older_stores: Sequence[Path] = ()) -> Judged:
    """Bring together the product, the maps, what needs no network, and older maps. Chips that one of them does not know are left out.

    Args:
        trained: what network and head were trained on.
        mapped: chips of other ground.
        maps: folder of the maps of this ground.
        older_stores: each holds these chips under an older or coarser product.

    Raises:
        MissingInputError: an older store has no land cover.
        AuditError: it has another legend, or none of the chips.
        OSError: a map is missing.
    """
    everything, chips, size = np.arange(len(mapped.catalogue)), mapped.catalogue, mapped.chip_size_px
    older, words = said_by([read_older_map(store, chips, mapped.classes, size) for store in older_stores])
    given = {
        "map": mapped_shares(maps, chips, size),
        **shares_without_network(trained, mapped.images(everything)),
        **older,
    }
    known = np.isfinite(np.stack(list(given.values()))).all(axis=(0, 2))
    cells = np.floor(mapped.catalogue[["lon", "lat"]].to_numpy() / place_size_deg(mapped)).astype(int)
    places = np.unique(cells, axis=0, return_inverse=True)[1].ravel()
    chosen = {name: values[known] for name, values in given.items()}
    return Judged(trained.classes, mapped.proportions[known].astype(np.float64), chosen, places[known], words)


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
    for name, words in {**NAMES, **judged.older}.items():
        residuals = judged.residuals(name)
        more = "–" if name == "map" else more_than_map(residuals, judged.residuals("map"), judged.places)
        lines.append(f"| {words} | {residuals.mean():.3f} | {more} | {judged.right(name).mean():.1%} |")
    return "\n".join([*lines, *_against_their_own_map(judged), "", *_by_class(judged)])


def _against_their_own_map(judged: Judged) -> list[str]:
    """A line for each map that learned from an older one alone: is it nearer to the product than that?"""
    lines: list[str] = []
    for name, words in judged.older.items():
        if (learned := f"{LEARNED}{name}") in judged.older:
            more = more_than_map(judged.residuals(name), judged.residuals(learned), judged.places)
            lines += [
                "",
                f"{words[0].upper()}{words[1:]}, is off by {more} more than the maps that learned from it alone.",
            ]
    return lines


def _by_class(judged: Judged) -> list[str]:
    first = list(judged.older)[:1]
    columns = ["map", *first, "colours", "mean"]
    short = {"map": "map", "colours": "colour numbers", "mean": "mean"} | {name: f"`{name}`" for name in first}
    head = [f"off by, {short['map']}", *[short[name] for name in columns[1:]]]
    head += [f"largest class found, {short['map']}", *[short[name] for name in columns[1:-1]]]
    lines = [
        f"| class | share by the product | share by the map | {' | '.join(head)} |",
        "|---" * (len(head) + 3) + "|",
    ]
    largest = judged.product.argmax(axis=1)
    for k in np.argsort(-judged.product.mean(axis=0)):
        if judged.product[:, k].mean() < _LEAST_FRACTION:
            continue
        own = largest == k
        off = [f"{np.abs(judged.given[name][:, k] - judged.product[:, k]).mean():.3f}" for name in columns]
        found = [f"{judged.right(name)[own].mean():.0%} of {own.sum()}" if own.any() else "–" for name in columns[:-1]]
        shares = [f"{values[:, k].mean():.1%}" for values in (judged.product, judged.given["map"])]
        lines.append(f"| {judged.classes[k].replace('_', ' ')} | {' | '.join([*shares, *off, *found])} |")
    return lines


def main(arguments: Sequence[str]) -> None:
    """Write the tables into a page, between its two marks."""
    trained, mapped, page, *older = (Path(argument) for argument in arguments)
    write = written_between(page, BEGIN, END)
    stores = [open_levir_kr(store / "levir_kr") for store in (trained, mapped)]
    write(f"\n{table(judge_maps(stores[0], stores[1], mapped / 'land_cover_shares', older))}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
