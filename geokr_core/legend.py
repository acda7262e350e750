"""Land-cover legends: what a product's codes mean, and the common classes that chips are described in.

A product's legend is data, one small YAML file under ``legends/`` (or a file of the user's own in the same form).
Every code of a product is mapped to a common class, excluded on purpose, or named as no data; a code that is not
listed at all is an error where it is met. No raster is opened here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from geokr_core.errors import ConfigError
from geokr_core.files import text_digest

NUM_CODES = 256
"""Products store their codes in 8 bits; a raster of another type is refused where it is indexed."""

UNKNOWN = 253
SEA = 254
EXCLUDED = 255
"""Slots of the look-up table beside the class indices 0 … K−1: no data, and classes left out of the legend."""
UNLISTED = 252
"""Slot of codes that the legend does not list."""


@dataclass(frozen=True)
class CommonLegend:
    """The classes chips are described in.

    Attributes:
        name: preset name.
        classes: class names, in the order of the proportions.
        colours: ``#RRGGBB`` of each class.
    """

    name: str
    classes: tuple[str, ...]
    colours: tuple[str, ...]

    @cached_property
    def digest(self) -> str:
        """Digest of names and order: two data sets with the same digest describe chips by the same classes."""
        return text_digest([self.name, self.classes])


# Classes of GlobeLand30 with the colours of its 2020 edition's metadata.
_GLOBELAND30 = {
    "cultivated_land": "#FAA0FF",
    "forest": "#006400",
    "grassland": "#64FF00",
    "shrubland": "#00FF78",
    "wetland": "#0064FF",
    "water": "#0000FF",
    "tundra": "#646432",
    "artificial_surfaces": "#FF0000",
    "bareland": "#BEBEBE",
    "snow_ice": "#C8F0FF",
}
# The paper's training configuration leaves shrubland and tundra out; both are also missing from some products.
_GEOKR8 = {name: colour for name, colour in _GLOBELAND30.items() if name not in ("shrubland", "tundra")}

COMMON_LEGENDS: Mapping[str, CommonLegend] = {
    name: CommonLegend(name, tuple(colours), tuple(colours.values()))
    for name, colours in (("globeland30", _GLOBELAND30), ("geokr8", _GEOKR8))
}


class LegendClass(BaseModel):
    """One code of a product."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    code: int
    name: str
    common: str | None = None


class ProductLegend(BaseModel):
    """What the codes of a land-cover product mean.

    Attributes:
        name: the product's name.
        licence: terms of the product, in words.
        source: where the codes are from, and which mappings are a judgement.
        nodata: codes without information.
        classes: every other code, with the common class it belongs to; null excludes it on purpose.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    licence: str
    source: str
    nodata: tuple[int, ...]
    classes: tuple[LegendClass, ...]

    def lookup(self, common: CommonLegend) -> np.ndarray:
        """Table from code to slot.

        Returns:
            uint8 (256,): index of the common class, or `UNKNOWN`, `EXCLUDED`, `UNLISTED`.
        """
        table = np.full(NUM_CODES, UNLISTED, dtype=np.uint8)
        table[list(self.nodata)] = UNKNOWN
        for entry in self.classes:
            known = entry.common in common.classes
            table[entry.code] = common.classes.index(str(entry.common)) if known else EXCLUDED
        return table

    @cached_property
    def digest(self) -> str:
        """Digest of codes and mapping."""
        return text_digest(self.model_dump(mode="json"))


def builtin_legends() -> tuple[str, ...]:
    """Names of the legends that come with the package."""
    folder = resources.files("geokr_core") / "legends"
    return tuple(sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")))


def load_legend(reference: str) -> ProductLegend:
    """A built-in legend by name, or a legend file by path.

    Raises:
        ConfigError: no such legend, not YAML of the right form, a code outside 0–255 or listed twice, or a common
            class that does not exist.
    """
    if reference in builtin_legends():
        text = (resources.files("geokr_core") / "legends" / f"{reference}.yaml").read_text(encoding="utf-8")
    elif Path(reference).is_file():
        text = Path(reference).read_text(encoding="utf-8")
    else:
        raise ConfigError(
            f"legend {reference!r}: neither a built-in legend ({', '.join(builtin_legends())}) nor a file. "
            "Write a legend file with name, licence, source, nodata and classes; see docs/land-cover.md."
        )
    try:
        legend = ProductLegend.model_validate(yaml.safe_load(text))
    except (yaml.YAMLError, ValidationError) as error:
        raise ConfigError(f"legend {reference}: not a legend: {error}") from error
    _check(reference, legend)
    return legend


def _check(reference: str, legend: ProductLegend) -> None:
    codes = [*legend.nodata, *(entry.code for entry in legend.classes)]
    outside = sorted(code for code in codes if not 0 <= code < NUM_CODES)
    twice = sorted({code for code in codes if codes.count(code) > 1})
    unknown = sorted({str(e.common) for e in legend.classes if e.common is not None and e.common not in _GLOBELAND30})
    if outside or twice or unknown:
        raise ConfigError(
            f"legend {reference}: codes outside 0–255: {outside}; codes listed twice: {twice}; unknown common classes: "
            f"{unknown}. Codes must be unique bytes and `common` one of {', '.join(_GLOBELAND30)} or null."
        )
