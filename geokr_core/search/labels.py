"""Labels that people gave in the page: read back, checked, and learned from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from geokr_core.embeddings.read import Embeddings
from geokr_core.errors import EmbeddingsError, MissingInputError
from geokr_core.search.index import Index
from geokr_core.step.files import whole_file

COLUMNS: Final = ("chip_id", "target", "label", "who", "when", "model", "model_version", "geometry")
_TEXTS: Final = ("chip_id", "label", "model_version")
LABELS: Final = ("yes", "no", "unsure")

MAX_ROWS: Final = 1_000_000
"""Labels of a file; people gave each."""
MAX_BYTES: Final = 1 << 30
"""Unpacked size of a file of labels."""

_STRENGTH: Final = 10.0
"""Inverse of the L2 penalty of the classifier, on vectors of length 1, as in the page."""


@dataclass(frozen=True)
class Learned:
    """What a classifier that learned from labels says of the archive.

    Attributes:
        probability: float64 (N,), that a chip is what was looked for.
        num_yes: labels it learned from.
        num_no: likewise.
    """

    probability: np.ndarray
    num_yes: int
    num_no: int

    def least_certain(self, allowed: np.ndarray, limit: int) -> np.ndarray:
        """Positions of the chips that a label would tell most about, int64 (M,), the least certain first."""
        candidates = np.flatnonzero(allowed)
        order = np.argsort(np.abs(self.probability[candidates] - 0.5), kind="stable")
        return candidates[order[:limit]]


def read_labels(path: Path, found: Embeddings) -> pd.DataFrame:
    """Read a file of labels that the page wrote.

    Args:
        path: GeoParquet with the columns `COLUMNS`.
        found: the archive that was labelled.

    Returns:
        Its rows; of a chip that was labelled several times the last one.

    Raises:
        MissingInputError: there is no such file.
        EmbeddingsError: it is no file of labels, of another model or another archive, or holds another word.
    """
    try:
        _require_few_rows(path)
        frame: pd.DataFrame = gpd.read_parquet(path)
    except FileNotFoundError as error:
        raise MissingInputError(f"{path}: no such file of labels.") from error
    except (ValueError, OSError, pa.ArrowException) as error:
        raise EmbeddingsError(f"{path}: not a GeoParquet file of labels ({error}).") from error
    if missing := [name for name in COLUMNS if name not in frame]:
        raise EmbeddingsError(f"{path}: no file of labels, column {missing[0]!r} is missing; save it from the page.")
    odd = [name for name in _TEXTS if not frame[name].map(lambda value: isinstance(value, str)).all()]
    if odd or frame["when"].isna().any():
        raise EmbeddingsError(f"{path}: a row has no {(*odd, 'when')[0]!r}; save the labels from the page.")
    if wrong := sorted(set(frame["label"]) - set(LABELS)):
        raise EmbeddingsError(f"{path}: label {wrong[0]!r}; expected one of {', '.join(LABELS)}.")
    versions = set(frame["model_version"]) - {found.network["model_version"]}
    if versions:
        raise EmbeddingsError(
            f"{path}: labelled with vectors of version {versions.pop()}, the archive has {found.network['model_version']}. "
            "The labels hold all the same: write the page anew and label on, or set the column `model_version`."
        )
    unknown = ~frame["chip_id"].isin(found.chips["chip_id"])
    if unknown.any():
        raise EmbeddingsError(
            f"{path}: {int(unknown.sum())} of {len(frame)} labelled chips are not in the archive, such as "
            f"{frame.loc[unknown, 'chip_id'].iloc[0]!r}."
        )
    return frame.sort_values("when", kind="stable").drop_duplicates("chip_id", keep="last").reset_index(drop=True)


def _require_few_rows(path: Path) -> None:
    """Refuse a file that unpacks to far more than labels can be: a megabyte of Parquet may hold a billion equal rows."""
    footer = pq.read_metadata(path)
    unpacked = sum(footer.row_group(number).total_byte_size for number in range(footer.num_row_groups))
    if footer.num_rows > MAX_ROWS or unpacked > MAX_BYTES:
        raise EmbeddingsError(
            f"{path}: {footer.num_rows} rows, {unpacked / 1e6:.0f} MB unpacked; a file of labels has at most {MAX_ROWS} rows and "
            f"{MAX_BYTES >> 20} MiB."
        )


def learn(labels: pd.DataFrame, found: Embeddings, index: Index) -> Learned:
    """Learn yes from no by logistic regression; yes and no weigh the same, however many there are.

    Args:
        labels: as `read_labels` gives them.
        found: the archive.
        index: of its vectors.

    Raises:
        EmbeddingsError: there are no labels of one of the two kinds.
    """
    from sklearn.linear_model import LogisticRegression

    counts = {kind: int((labels["label"] == kind).sum()) for kind in ("yes", "no")}
    if missing := [kind for kind, count in counts.items() if not count]:
        raise EmbeddingsError(
            f"{len(labels)} labels, none of them {missing[0]!r}: a classifier needs both yes and no. Label a few more."
        )
    used = labels[labels["label"] != "unsure"]
    positions = pd.Series(np.arange(len(found)), index=found.chips["chip_id"])[used["chip_id"]].to_numpy()
    classifier = LogisticRegression(C=_STRENGTH, class_weight="balanced", max_iter=1000)
    classifier.fit(index.directions[positions], (used["label"] == "yes").to_numpy())
    return Learned(classifier.predict_proba(index.directions)[:, 1], counts["yes"], counts["no"])


def write_map(found: Embeddings, learned: Learned, path: Path) -> None:
    """Write the probability of every chip as GeoParquet, a box a chip.

    Raises:
        OSError: the file system refused.
    """
    chips = found.chips
    east = chips["east"].where(chips["east"] >= chips["west"], chips["east"] + 360.0)
    boxes = shapely.box(chips["west"], chips["south"], east, chips["north"])
    frame = gpd.GeoDataFrame(
        chips[["chip_id", "scene_id", "acquired"]].assign(probability=learned.probability.round(5)),
        geometry=boxes,
        crs="OGC:CRS84",
    )
    with whole_file(path) as partial:
        frame.to_parquet(partial, index=False, compression="zstd", write_covering_bbox=True)
