"""What an earlier audit of the map, and people who judged chips of it, say of the labels of training chips.

The audit is a file given by its path and md5, never the one that this chain makes itself: that one is learned from vectors of a
backbone that was learned from this data set. See decision 0048. Not here: making an audit (``geokr_core.audit``).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from geokr_core.errors import ConfigError, DatasetError, MissingInputError
from geokr_core.land_cover.legend import fraction_columns
from geokr_core.levir_kr.config import AuditUseConfig, PinnedFile
from geokr_core.step.digests import file_md5

WEIGHT_COLUMN: Final = "audit_weight"
"""Column of the catalogue: how much a chip's land cover weighs by the audit, 0 to 1."""

_UNSURE: Final = "unsure"
_SAME_MAP: Final = 0.001
"""Largest difference of a class's share between a chip of the audit, whose shares are rounded to 0.0001, and the same chip now."""


def require_pinned(given: PinnedFile, name: str) -> None:
    """Refuse a file that is missing or is not the one that was meant.

    Args:
        given: path and md5.
        name: its key in the parameter file, for the message.

    Raises:
        MissingInputError: there is no such file.
        ConfigError: its content is another one.
    """
    if not given.file.is_file():
        raise MissingInputError(f"{given.file}: no such file; `{name}.file` names it.")
    found = file_md5(given.file)
    if found != given.md5:
        raise ConfigError(
            f"{given.file}: its md5 is {found}, but `{name}.md5` says {given.md5}: it is not the file that was meant. Look at it, and "
            "write the md5 found if it is to be used from now on."
        )


@dataclass(frozen=True)
class Verdict:
    """What an audit says of some chips.

    Attributes:
        is_known: bool (N,), whether the audit knows the chip: its id is there, and the map says now what was audited.
        is_flagged: bool (N,); False where it is not known.
        weight: float32 (N,), 0 to 1, how much its land cover counts; 1 where it is not flagged.
    """

    is_known: np.ndarray
    is_flagged: np.ndarray
    weight: np.ndarray


@dataclass(frozen=True)
class Verdicts:
    """What an audit says of all chips that it knows.

    Attributes:
        config: what is done with flagged chips.
        table: by chip id: ``is_flagged``, ``weight`` (0 to 1) and ``map_<class>`` as it was audited.
        classes: of the map.
    """

    config: AuditUseConfig
    table: pd.DataFrame
    classes: tuple[str, ...]

    def of(self, rows: pd.DataFrame) -> Verdict:
        """What the audit says of chips.

        Args:
            rows: columns ``chip_id`` and ``fraction_<class>``.
        """
        entries = self.table.reindex(rows["chip_id"])
        then = entries[[f"map_{name}" for name in self.classes]].to_numpy(dtype=np.float64)
        now = rows[fraction_columns(self.classes)].to_numpy(dtype=np.float64)
        is_known = np.isfinite(then).all(axis=1)
        is_known[is_known] = np.abs(then[is_known] - now[is_known]).max(axis=1) <= _SAME_MAP
        weight = entries["weight"].to_numpy(dtype=np.float64)
        flagged = is_known & entries["is_flagged"].eq(True).to_numpy()  # missing where the chip is not known
        return Verdict(is_known, flagged, np.where(flagged, weight, 1.0).astype(np.float32))


def read_verdicts(config: AuditUseConfig, classes: tuple[str, ...]) -> Verdicts:
    """Read an audit, and what people judged of it.

    Flagged are the first `AuditUseConfig.flagged_fraction` of the list, without chips whose largest class on the map people confirmed,
    and with all chips that they saw otherwise. A chip that they saw otherwise weighs 0; any other flagged one weighs the score at
    the end of the flagged part over its own.

    Args:
        config: which files, and how many chips count as flagged.
        classes: of the legend.

    Raises:
        MissingInputError: a file is missing.
        ConfigError: a file is another one than was meant.
        DatasetError: a file is no audit or holds no judgements, is of another legend, or names chips that were not audited.
    """
    require_pinned(config.table, "levir_kr.audit.table")
    columns = ["chip_id", "rank", "score", *(f"map_{name}" for name in classes)]
    table = _read(config.table.file, columns, "audit.parquet, as `geokr audit` writes it by the same legend").set_index(
        "chip_id"
    )
    if table.index.has_duplicates or not np.isfinite(table["score"].to_numpy(dtype=np.float64)).all():
        raise DatasetError(f"{config.table.file}: a chip stands there twice, or has no score; run `geokr audit` again.")
    table = table.sort_values("rank", kind="stable")
    num_flagged = max(1, int(len(table) * config.flagged_fraction))
    score = table["score"].to_numpy(dtype=np.float64)
    is_flagged = np.arange(len(table)) < num_flagged
    weight = (score[num_flagged - 1] / np.maximum(score, 1e-12)).clip(0.0, 1.0)
    if config.judgements is not None:
        wrong, right = _judged(config.judgements, table, classes)
        is_flagged, weight = (is_flagged | wrong) & ~right, np.where(wrong, 0.0, weight)
    return Verdicts(config, table.assign(is_flagged=is_flagged, weight=weight), classes)


def _judged(given: PinnedFile, table: pd.DataFrame, classes: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Which chips of the audit people saw otherwise than the map, and which as the map has them; both bool (N,)."""
    require_pinned(given, "levir_kr.audit.judgements")
    frame = _read(given.file, ["chip_id", "label"], "judgements, as the page of `geokr audit sample` saves them")
    if not frame.map(lambda value: isinstance(value, str)).all(axis=None):
        raise DatasetError(f"{given.file}: a chip_id or label is not text; save the judgements from the page.")
    if unknown := sorted(set(frame["label"]) - {*classes, _UNSURE}):
        raise DatasetError(f"{given.file}: label {unknown[0]!r} is no class; the map's are {', '.join(classes)}.")
    strangers = ~frame["chip_id"].isin(table.index)
    if strangers.all():
        raise DatasetError(
            f"{given.file}: none of its {len(frame)} chips is in the audit; give judgements of chips that were audited."
        )
    # Of a chip that was judged several times the last judgement counts.
    label = frame.drop_duplicates("chip_id", keep="last").set_index("chip_id")["label"].reindex(table.index)
    by_map = np.asarray(classes)[table[[f"map_{name}" for name in classes]].to_numpy(dtype=np.float64).argmax(axis=1)]
    said = label.notna().to_numpy() & (label != _UNSURE).to_numpy()
    agrees = (label == by_map).to_numpy()
    return said & ~agrees, said & agrees


def _read(path: Path, columns: list[str], what: str) -> pd.DataFrame:
    try:
        found = pq.read_schema(path).names
        missing = [name for name in columns if name not in found]
        if missing:
            raise DatasetError(f"{path}: column {missing[0]!r} is missing; expected {what}.")
        frame: pd.DataFrame = pq.read_table(path, columns=columns).to_pandas()
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path}: not a readable Parquet file ({error}); expected {what}.") from error
    if frame.empty:
        raise DatasetError(f"{path}: no rows; expected {what}.")
    return frame


def described(config: AuditUseConfig, counts: Mapping[str, int]) -> dict[str, Any]:
    """What the manifest tells of it: content, and no path."""
    judgements = None if config.judgements is None else config.judgements.md5
    settings = {"use": config.use, "flagged_fraction": config.flagged_fraction}
    return {**settings, "table_md5": config.table.md5, "judgements_md5": judgements, **counts}
