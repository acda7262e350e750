"""The one function of a search: what is asked for, what may be found, and the chips found, best first."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from geokr_core.embeddings.config import EmbeddingsConfig
from geokr_core.embeddings.read import Embeddings, open_embeddings
from geokr_core.errors import ConfigError
from geokr_core.search.examples import chip_at, image_vector
from geokr_core.search.filters import ANY_CHIP, Filters, shares_of
from geokr_core.search.index import best, build_index
from geokr_core.search.labels import learn, read_labels, write_map
from geokr_core.search.page import MAX_CHIPS, Opening, spread_out, write_page


@dataclass(frozen=True)
class Archive:
    """Where a search looks.

    Attributes:
        embeddings: folder of vectors.
        chips: folder of shards, for pictures.
        proportions: folder of land cover; None or a missing folder: chips are found without it.
        backbone: bundle of the chain, for images from outside.
        config: the section `embeddings`.
    """

    embeddings: Path
    chips: Path
    proportions: Path | None = None
    backbone: Path | None = None
    config: EmbeddingsConfig = field(default_factory=EmbeddingsConfig)


def search_archive(
    archive: Archive,
    *,
    like: Sequence[str] = (),
    at: tuple[float, float] | None = None,
    image: Path | None = None,
    filters: Filters = ANY_CHIP,
    limit: int = 50,
) -> pd.DataFrame:
    """Find the chips that look most like examples. The chips of the archive that serve as examples are not found.

    Args:
        archive: where to look.
        like: ids of chips.
        at: longitude and latitude of a chip, degrees.
        image: file of an image.
        filters: which chips may be found.
        limit: how many are wanted, at least 1.

    Returns:
        A row a chip, best first: ``rank`` from 1, ``similarity`` (cosine of standardised vectors, -1 to 1), ``chip_id``,
        ``scene_id``, ``row``, ``acquired``, ``sensor``, ``gsd_m``, ``lon``, ``lat``, the box, and ``land_cover``, the
        largest class where land cover is known.

    Raises:
        ConfigError: no example is given, or ``limit`` is below 1.
        MissingInputError: there are no embeddings, no image, or no land cover that is asked for.
        EmbeddingsError: an example is not in the archive or cannot be compared with it.
    """
    if limit < 1:
        raise ConfigError(f"limit: {limit} chips are wanted, expected at least 1.")
    found = open_embeddings(archive.embeddings)
    if not (like or at is not None or image is not None):
        raise ConfigError(
            f"A search needs an example: a chip (--like {found.chips['chip_id'].iloc[0]}), a place (--at LON,LAT) or an image (--image "
            "FILE). `geokr search --page page.html` writes a page to choose one on."
        )
    own, examples = _examples(archive, found, like, at, image)
    similarity = build_index(found).similarity(examples)
    chosen = best(similarity, filters.allowed(found, archive.proportions), limit, without=own)
    return _rows(archive, found, chosen, similarity)


def _examples(
    archive: Archive, found: Embeddings, like: Sequence[str], at: tuple[float, float] | None, image: Path | None
) -> tuple[list[int], np.ndarray]:
    """Positions of the chips among the examples, and the vectors of all of them."""
    own = [found.position_of(chip_id) for chip_id in like]
    if at is not None:
        own.append(chip_at(found, *at))
    examples = [found.vectors[own]]
    if image is not None:
        examples.append(image_vector(image, archive.config, archive.backbone, found))
    return own, np.concatenate(examples)


def _rows(archive: Archive, found: Embeddings, chosen: np.ndarray, similarity: np.ndarray) -> pd.DataFrame:
    rows = found.chips.iloc[chosen].reset_index(drop=True)
    rows.insert(0, "rank", np.arange(1, len(rows) + 1))
    rows.insert(1, "similarity", similarity[chosen].round(6))
    return rows.assign(land_cover=_largest_classes(found, archive.proportions, chosen))


def write_search_page(
    archive: Archive,
    path: Path,
    *,
    like: Sequence[str] = (),
    at: tuple[float, float] | None = None,
    image: Path | None = None,
    filters: Filters = ANY_CHIP,
) -> int:
    """Write the page to search and label in; examples decide what it shows first, and there may be none.

    Args:
        archive: where to look.
        path: the HTML file.
        like: ids of chips.
        at: longitude and latitude of a chip, degrees.
        image: file of an image.
        filters: which chips are on the page; of more than it holds, a part spread over the archive.

    Returns:
        The number of chips on it.

    Raises:
        GeoKRError: as for `search_archive`.
    """
    found = open_embeddings(archive.embeddings)
    index, similarity = build_index(found), np.zeros(len(found), dtype=np.float32)
    if like or at is not None or image is not None:
        similarity = index.similarity(_examples(archive, found, like, at, image)[1])
    positions = spread_out(filters.allowed(found, archive.proportions))
    opening = Opening(positions, similarity[positions])
    classes = _largest_classes(found, archive.proportions, positions)
    return write_page(found, index, archive.chips, opening, path, classes)


def go_on(
    archive: Archive,
    labels: Path,
    filters: Filters,
    limit: int,
    *,
    page: Path | None = None,
    map_file: Path | None = None,
) -> pd.DataFrame:
    """Learn from labels, and find the chips that a label would tell most about.

    Args:
        archive: what was labelled.
        labels: file that a page saved.
        filters: which chips may be asked for.
        limit: how many are wanted.
        page: HTML file that gets the archive with these labels, the least certain chips first.
        map_file: GeoParquet file that gets the probability of every chip.

    Returns:
        A row a chip, the least certain first, as `search_archive` gives them; ``similarity`` is the probability.

    Raises:
        EmbeddingsError: the labels are of another archive or model, or all of one kind.
        MissingInputError: a file is missing.
    """
    found = open_embeddings(archive.embeddings)
    index, given = build_index(found), read_labels(labels, found)
    learned, allowed = learn(given, found, index), filters.allowed(found, archive.proportions)
    labelled = found.chips["chip_id"].isin(given["chip_id"]).to_numpy()
    if map_file is not None:
        write_map(found, learned, map_file)
    if page is not None:
        positions = np.union1d(spread_out(allowed, MAX_CHIPS - int(labelled.sum())), np.flatnonzero(labelled))
        known = list(given[["chip_id", "label", "when"]].itertuples(index=False, name=None))
        scores = learned.probability[positions].astype(np.float32)
        opening = Opening(positions, scores, known, str(given["target"].iloc[-1]), uncertain_first=True)
        write_page(found, index, archive.chips, opening, page, _largest_classes(found, archive.proportions, positions))
    chosen = learned.least_certain(allowed & ~labelled, limit)
    return _rows(archive, found, chosen, learned.probability)


def _largest_classes(found: Embeddings, proportions: Path | None, chosen: np.ndarray) -> list[str]:
    """The class that covers most of each chip; empty where nothing is known."""
    if proportions is None or not proportions.is_dir():
        return [""] * len(chosen)
    few = Embeddings(found.chips.iloc[chosen].reset_index(drop=True), found.vectors[chosen], found.network)
    shares = shares_of(few, proportions)
    known = shares.notna().all(axis=1).to_numpy()
    names = np.full(len(shares), "", dtype=object)
    if known.any():
        names[known] = shares.columns.to_numpy()[shares.to_numpy()[known].argmax(axis=1)]
    return [str(name) for name in names]
