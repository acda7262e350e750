"""Which chips may be found: by date, sensor, box and land cover."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
import pyarrow as pa

from geokr_core.embeddings.read import Embeddings
from geokr_core.errors import ConfigError, MissingInputError
from geokr_core.land_cover.legend import fraction_columns
from geokr_core.scenes.scene_outputs import LEGEND_FILE, proportion_outputs
from geokr_core.step.files import read_json
from geokr_core.step.section import unknown_name

_CONDITION = re.compile(r"(?P<name>\w+)\s*(?P<sign>>=|<=|>|<)\s*(?P<share>[0-9.]+)")


@dataclass(frozen=True)
class Condition:
    """A share of land cover that is asked for.

    Attributes:
        class_name: of the common legend.
        sign: ``>=``, ``<=``, ``>`` or ``<``.
        share: 0 to 1.
    """

    class_name: str
    sign: str
    share: float

    def holds(self, shares: np.ndarray) -> np.ndarray:
        """Whether it holds, bool (N,); nowhere where the land cover is not known (NaN)."""
        with np.errstate(invalid="ignore"):
            compared = {
                ">=": shares >= self.share,
                "<=": shares <= self.share,
                ">": shares > self.share,
                "<": shares < self.share,
            }
        return compared[self.sign]


@dataclass(frozen=True)
class Filters:
    """What a chip must be to be found; whatever is left out allows all.

    Attributes:
        first_day: of the acquisition.
        last_day: of the acquisition.
        sensors: any of them.
        bbox: west, south, east, north in degrees; west > east crosses the antimeridian.
        land_cover: all of these conditions.
    """

    first_day: date | None = None
    last_day: date | None = None
    sensors: tuple[str, ...] = ()
    bbox: tuple[float, float, float, float] | None = None
    land_cover: tuple[Condition, ...] = ()

    def allowed(self, found: Embeddings, proportions: Path | None) -> np.ndarray:
        """Which chips may be found.

        Args:
            found: the archive.
            proportions: folder of land cover, needed only where conditions on it are made.

        Returns:
            bool (N,).

        Raises:
            ConfigError: there is no such sensor or class.
            MissingInputError: land cover is asked for and there is none.
        """
        chips = found.chips
        allowed = np.ones(len(chips), dtype=bool)
        if self.first_day is not None or self.last_day is not None:
            days = pd.to_datetime(chips["acquired"])
            allowed &= (days >= pd.Timestamp(self.first_day or date.min.replace(year=1700))).to_numpy()
            allowed &= (days <= pd.Timestamp(self.last_day or date(2200, 1, 1))).to_numpy()
        for sensor in self.sensors:
            if sensor not in set(chips["sensor"]):
                raise ConfigError(f"--sensor: {unknown_name('sensor', sensor, sorted(set(chips['sensor'])))}.")
        if self.sensors:
            allowed &= chips["sensor"].isin(self.sensors).to_numpy()
        if self.bbox is not None:
            allowed &= within(chips["lon"].to_numpy(), chips["lat"].to_numpy(), self.bbox)
        if self.land_cover:
            shares = shares_of(found, proportions)
            for condition in self.land_cover:
                if condition.class_name not in shares:
                    raise ConfigError(
                        f"--land-cover: {unknown_name('class', condition.class_name, map(str, shares.columns))}."
                    )
                allowed &= condition.holds(shares[condition.class_name].to_numpy())
        return allowed


def within(lon: np.ndarray, lat: np.ndarray, bbox: tuple[float, float, float, float]) -> np.ndarray:
    """Which points lie in a box, bool (N,); west > east crosses the antimeridian."""
    west, south, east, north = bbox
    between = (lon >= west) & (lon <= east) if west <= east else (lon >= west) | (lon <= east)
    inside: np.ndarray = between & (lat >= south) & (lat <= north)
    return inside


def parse_bbox(text: str) -> tuple[float, float, float, float]:
    """``west,south,east,north`` in degrees.

    Raises:
        ConfigError: it is not that.
    """
    try:
        west, south, east, north = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--bbox {text!r}: expected west,south,east,north in degrees, four numbers.") from error
    if not (-180 <= west <= 180 and -180 <= east <= 180 and -90 <= south < north <= 90):
        raise ConfigError(f"--bbox {text!r}: expected degrees, south below north; west > east crosses 180.")
    return west, south, east, north


def parse_dates(text: str) -> tuple[date, date]:
    """``first/last`` day, or one day.

    Raises:
        ConfigError: it is not that.
    """
    first, _, last = text.partition("/")
    try:
        days = date.fromisoformat(first), date.fromisoformat(last or first)
    except ValueError as error:
        raise ConfigError(f"--dates {text!r}: expected 2021-06-01/2021-08-31 or one day.") from error
    if days[0] > days[1]:
        raise ConfigError(f"--dates {text!r}: the first day is after the last.")
    return days


def parse_land_cover(conditions: Sequence[str]) -> tuple[Condition, ...]:
    """Conditions such as ``forest>0.5``.

    Raises:
        ConfigError: one is not like that.
    """
    parsed = []
    for text in conditions:
        match = _CONDITION.fullmatch(text.strip())
        if match is None or not 0 <= float(match["share"]) <= 1:
            raise ConfigError(f"--land-cover {text!r}: expected a class and a share of 0 to 1, like `forest>0.5`.")
        parsed.append(Condition(match["name"], match["sign"], float(match["share"])))
    return tuple(parsed)


def shares_of(found: Embeddings, proportions: Path | None) -> pd.DataFrame:
    """Land cover below each chip: a column a class, shares of the known ground; NaN where nothing is known.

    Args:
        found: the archive.
        proportions: folder of land cover.

    Raises:
        MissingInputError: there is no land cover at all.
    """
    if proportions is None or not (proportions / LEGEND_FILE).is_file():
        raise MissingInputError(
            f"{proportions}: no land cover of these chips; run `geokr proportions`, or ask without land cover."
        )
    classes = tuple(read_json(proportions / LEGEND_FILE)["classes"])
    outputs = proportion_outputs(proportions)
    columns = ("chip_id", "known_fraction", *fraction_columns(classes))
    tables = [outputs.table(scene, columns) for scene in found.chips["scene_id"].unique() if outputs.whole(scene)]
    if not tables:
        return pd.DataFrame(np.nan, index=found.chips.index, columns=list(classes))
    frame = pa.concat_tables(tables).to_pandas().set_index("chip_id")
    frame.loc[frame["known_fraction"] <= 0, fraction_columns(classes)] = np.nan
    known = frame.reindex(found.chips["chip_id"])[list(fraction_columns(classes))]
    return pd.DataFrame(known.to_numpy(), index=found.chips.index, columns=list(classes))


ANY_CHIP: Final = Filters()
"""Allows every chip."""
