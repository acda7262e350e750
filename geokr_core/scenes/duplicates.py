"""Scenes that show the same image twice: copies, and several deliveries of one acquisition."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from geokr_core.scenes.products.families import family

_MOST_OVERLAP_FRACTION = 0.5
"""Scenes of one acquisition are strips or tiles side by side, unless more than this share of the smaller one is common."""

_MOST_NAMED = 20


def taken_twice(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which usable scenes of an inventory are one image, in words.

    Nothing is left out: which of two deliveries is the better one is for the user to say. But ground that is cut twice
    counts twice, and may lie on both sides of a split.

    Args:
        rows: usable rows of the inventory.

    Returns:
        A sentence for each group, at most `_MOST_NAMED` and one that counts the rest.
    """
    sentences = [
        f"{', '.join(str(row['scene_id']) for row in group)}: {what}. Their ground is cut once for each: keep one"
        for what, group in _groups(rows)
    ]
    more = len(sentences) - _MOST_NAMED
    return sentences[:_MOST_NAMED] + ([f"and {more} more groups of scenes that are one image"] if more > 0 else [])


def _groups(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Sequence[Mapping[str, Any]]]]:
    copies = _by(rows, lambda row: row["md5"])
    yield from (("copies of the same bytes", group) for group in copies)
    named = {row["scene_id"] for group in copies for row in group[1:]}
    others = [row for row in rows if row["scene_id"] not in named]
    for group in _by(others, _acquisition):
        if any(_overlap(one, other) for one, other in combinations(group, 2)):
            yield f"one acquisition ({_acquisition(group[0])})", group


def _by(rows: Sequence[Mapping[str, Any]], key: Any) -> list[list[Mapping[str, Any]]]:
    """Groups of rows with one key, of two rows and more; rows without a key are in none."""
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for row in rows:
        if found := key(row):
            groups.setdefault(found, []).append(row)
    return [group for group in groups.values() if len(group) > 1]


def _acquisition(row: Mapping[str, Any]) -> str:
    name = family(row["product"]).acquisition(str(row["product_id"]))
    return f"{row['product']} {name}" if name else ""


def _overlap(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    smaller = min(one["geometry"].area, other["geometry"].area)
    common = one["geometry"].buffer(0).intersection(other["geometry"].buffer(0)).area
    return bool(common > _MOST_OVERLAP_FRACTION * smaller)
