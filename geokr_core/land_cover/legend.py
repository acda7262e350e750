"""Land-cover legends: what a product's codes mean, and the common classes that chips are described in.

A product is data, one small YAML file under ``legends/`` (or a YAML or CSV file of the user's own): codes, names,
colours, which codes are sea or no data, how its tiles are named, which editions there are, who may use it. Every code is
mapped to a common class, excluded on purpose, or named as sea or no data; a code that is not listed at all is an error
where it is met. No raster is opened here: tiles are the business of ``product``, what a cell becomes of ``slots``.
"""

import colorsys
import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from geokr_core.errors import ConfigError
from geokr_core.land_cover.slots import EXCLUDED, MAX_CLASSES, SEA, UNKNOWN, UNLISTED
from geokr_core.step.digests import text_digest
from geokr_core.step.explain import explain
from geokr_core.step.plugins import load_plugin, plugins
from geokr_core.step.section import Section, unknown_name
from geokr_core.step.strict_yaml import parse_yaml

GROUP = "geokr.legends"


FRACTION = "fraction_"
"""What the name of a column begins with that holds the share of a class; the rest is the class."""


def fraction_columns(classes: Iterable[str]) -> list[str]:
    """Names of the columns that hold the shares of classes, in their order."""
    return [f"{FRACTION}{name}" for name in classes]


@dataclass(frozen=True)
class CommonLegend:
    """The classes chips are described in.

    Attributes:
        name: name of the preset, or ``own: <product>`` for a product's own classes.
        classes: class names, in the order of the proportions; each can be part of a column name.
        colours: ``#RRGGBB`` of each class.
        is_own: whether these are the own classes of the one product, not a preset that products are mapped to.
    """

    name: str
    classes: tuple[str, ...]
    colours: tuple[str, ...]
    is_own: bool = False

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

Code = Annotated[int, Field(ge=-(2**31), lt=2**31)]
FIRST_YEAR, LAST_YEAR = 1900, 2100
Year = Annotated[int, Field(ge=FIRST_YEAR, le=LAST_YEAR)]


def _checked_pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    return value


class LegendClass(Section):
    """One class of a product.

    Attributes:
        code: its code.
        also: further codes of the same class.
        name: what the product calls it.
        colour: ``#RRGGBB``; null: a colour is chosen where one is needed.
        common: the common class it belongs to; null leaves it out on purpose.
    """

    code: Code
    also: tuple[Code, ...] = ()
    name: str = Field(min_length=1)
    colour: str | None = Field(None, pattern=r"^#[0-9A-Fa-f]{6}$")
    common: str | None = None

    @property
    def codes(self) -> tuple[int, ...]:
        """All codes of the class."""
        return (self.code, *self.also)

    @property
    def identifier(self) -> str:
        """The name as part of a column name: lower case, letters and digits of any script, ``_`` between."""
        return re.sub(r"\W+", "_", self.name.casefold()).strip("_")

    @field_validator("common")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is not None and value not in _GLOBELAND30:
            raise ValueError(f"no such common class; use one of {', '.join(_GLOBELAND30)}, or leave it out")
        return value


class YearBands(Section):
    """Files whose bands are years.

    Attributes:
        file_name: regular expression that the file's name is searched with; a group ``first_year`` gives the first year.
        first_year: year of the first band, where the name does not give it.
        num_bands: bands that such a file has.
        step_years: years from one band to the next.
    """

    file_name: str = ""
    first_year: Year | None = None
    num_bands: int = Field(ge=2)
    step_years: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _has_first_year(self) -> Self:
        _checked_pattern(self.file_name)
        if ("(?P<first_year>" in self.file_name) == (self.first_year is not None):
            raise ValueError("give the first year either as `first_year` or as a group `first_year` of `file_name`")
        return self

    def years(self, file_name: str) -> tuple[int, ...]:
        """Year of each band of a file; empty if the rule is not about files of this name."""
        found = re.search(self.file_name, file_name)
        if found is None:
            return ()
        text = str(self.first_year if self.first_year is not None else found["first_year"])
        if not text.isdecimal():
            return ()
        return tuple(int(text) + self.step_years * band for band in range(self.num_bands))


class ProductLegend(Section):
    """A land-cover product as data: what its codes mean, and what is known of its tiles.

    Attributes:
        name: the product's name.
        licence: terms of the product, in words.
        source: where the codes are from, which mappings are a judgement, and what is from memory.
        crs: reference system and tiling, in words. Tiles are placed by their own geotransform alone.
        resolution_m: side of a cell in metres.
        editions: years that are known to exist; empty: not stated.
        tile_name: regular expression of a tile's file name; a group ``year`` gives its year (two digits or four), a
            group ``zone`` its UTM zone, which is compared with the file.
        year_bands: files whose bands are years.
        crs_if_datum_unknown: reference system of files in longitude and latitude that do not know their datum.
        nodata: codes without information.
        sea: codes of the open sea.
        classes: every other code, with the common class it belongs to; null excludes it on purpose.
    """

    name: str
    licence: str
    source: str
    crs: str = ""
    resolution_m: float | None = Field(None, gt=0)
    editions: tuple[Year, ...] = ()
    tile_name: str | None = None
    year_bands: tuple[YearBands, ...] = ()
    crs_if_datum_unknown: str | None = None
    nodata: tuple[Code, ...] = ()
    sea: tuple[Code, ...] = ()
    classes: tuple[LegendClass, ...] = Field(min_length=1)

    @field_validator("tile_name")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        return None if value is None else _checked_pattern(value)

    @model_validator(mode="after")
    def _unambiguous(self) -> Self:
        codes = [*self.nodata, *self.sea, *(code for entry in self.classes for code in entry.codes)]
        if twice := sorted({code for code in codes if codes.count(code) > 1}):
            raise ValueError(f"codes listed twice: {twice}; each code has one meaning")
        return self

    @cached_property
    def digest(self) -> str:
        """Digest of all that the file says."""
        return text_digest(self.model_dump(mode="json"))

    @cached_property
    def own(self) -> CommonLegend:
        """The product's own classes as the classes chips are described in; classes of one name are one.

        Raises:
            ConfigError: names that are the same as column names, or more classes than a byte can number.
        """
        names: dict[str, str] = {}
        colours: dict[str, str] = {}
        for entry in self.classes:
            earlier = names.setdefault(entry.identifier, entry.name)
            if not entry.identifier or earlier.casefold() != entry.name.casefold():
                raise ConfigError(
                    f"legend {self.name!r}: the names {earlier!r} and {entry.name!r} cannot be two classes: "
                    "names must differ in letters or digits. Rename one."
                )
            colours.setdefault(entry.identifier, (entry.colour or _distinct_colour(len(colours))).upper())
        if len(names) > MAX_CLASSES:
            raise ConfigError(
                f"legend {self.name!r}: {len(names)} classes found, at most {MAX_CLASSES} are supported. Put rare "
                "ones together under one name, or map them to globeland30."
            )
        return CommonLegend(f"own: {self.name}", tuple(colours), tuple(colours.values()), is_own=True)

    def slots(self, common: CommonLegend) -> Mapping[int, int]:
        """What every listed code stands for.

        Args:
            common: a preset, or this product's own classes.

        Returns:
            From code to index of the class, `UNKNOWN`, `SEA` or `EXCLUDED`.
        """
        slots = {**dict.fromkeys(self.nodata, UNKNOWN), **dict.fromkeys(self.sea, SEA)}
        index = {name: k for k, name in enumerate(common.classes)}
        for entry in self.classes:
            name = entry.identifier if common.is_own else str(entry.common)
            slots |= dict.fromkeys(entry.codes, index.get(name, EXCLUDED))
        return slots

    def meaning(self, code: int) -> str | None:
        """What the legend says of a code, in words; None if it does not list it."""
        if code in self.nodata:
            return "no data"
        if code in self.sea:
            return "sea"
        return next((entry.name for entry in self.classes if code in entry.codes), None)

    def named(self, file_name: str) -> Mapping[str, str]:
        """The parts of a tile's name by their meaning (``year``, ``zone`` …); empty if it is not named as the product's."""
        found = None if self.tile_name is None else re.search(self.tile_name, file_name)
        return {} if found is None else {"name": found[0], **{k: v for k, v in found.groupdict().items() if v}}

    def year_of(self, file_name: str) -> int | None:
        """The year that a tile's name gives; two digits stand for 1980 … 2079. None if it gives none."""
        text = self.named(file_name).get("year", "")
        if not text.isdecimal() or len(text) not in (2, 4):
            return None
        year = int(text) if len(text) == 4 else 1900 + int(text) if int(text) >= 80 else 2000 + int(text)
        return year if FIRST_YEAR <= year <= LAST_YEAR else None

    def years_of_bands(self, file_name: str) -> tuple[int, ...]:
        """Year of each band of a file; empty if the legend has no rule for files of this name."""
        return next((years for rule in self.year_bands if (years := rule.years(file_name))), ())


def _distinct_colour(index: int) -> str:
    # Steps of the golden ratio round the hue circle: neighbours in the list stay far apart, whatever its length.
    rgb = colorsys.hsv_to_rgb(index * 0.618034 % 1.0, 0.65, 0.85)
    return "#" + "".join(f"{round(channel * 255):02X}" for channel in rgb)


def common_legend(choice: str, legends: Sequence[ProductLegend]) -> CommonLegend:
    """The classes chips are described in.

    Args:
        choice: name of a preset, or ``own``.
        legends: legends of the products.

    Raises:
        ConfigError: ``own`` with products of different legends or names that are the same as column names, or a product of which
            no class is in the preset.
    """
    if choice == "own":
        if len({legend.digest for legend in legends}) > 1:
            raise ConfigError(
                f"land_cover.legend: own: the products have different legends ({', '.join(x.name for x in legends)}), "
                "which share no classes. Keep one product (or several of one legend), or choose globeland30 or geokr8."
            )
        return legends[0].own
    common = COMMON_LEGENDS[choice]
    for legend in legends:
        if not any(slot < UNLISTED for slot in legend.slots(common).values()):
            raise ConfigError(
                f"legend {legend.name!r}: none of its classes belongs to a class of {choice!r}: every chip would be "
                "excluded. Fill in `common` for its classes, or describe chips by its own with `land_cover.legend: own`."
            )
    return common


def builtin_legends() -> tuple[str, ...]:
    """Names of the legends that come with the package."""
    folder = resources.files("geokr_core.land_cover") / "legends"
    return tuple(sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")))


def legend_names() -> tuple[str, ...]:
    """Names of all legends: those that come with the package, then those of other installed packages."""
    return tuple(dict.fromkeys((*builtin_legends(), *plugins(GROUP))))


def load_legend(reference: str) -> ProductLegend:
    """A legend by name, or a legend file by path: YAML in the form of the built-in ones, or CSV.

    A name is that of a built-in legend or of an entry point of the group ``geokr.legends``, which names the path of a legend
    file (text, or a resource of its package) or a function that returns it.

    A CSV file has a header and the columns ``code`` and ``name``, and if wanted ``colour`` and ``common``; in ``common``
    the words ``nodata`` and ``sea`` mark such codes, and an empty cell leaves the class out of the presets. Columns are
    separated by commas or semicolons; the encoding is UTF-8.

    Raises:
        ConfigError: no such legend, not of the right form, a code listed twice, or a common class that does not exist.
    """
    if reference in builtin_legends():
        return _builtin_legend(reference)
    if reference in plugins(GROUP):
        return _legend_file(reference, _plugin_file(reference))
    if not Path(reference).is_file():
        raise ConfigError(
            f"{unknown_name('legend', reference, legend_names())}; nor is there such a file. Write a legend file, YAML or "
            "CSV; see docs/land-cover.md."
        )
    return _legend_file(reference, Path(reference))


def _plugin_file(name: str) -> Any:
    """The legend file that an entry point names, as a path or a package resource."""
    named = load_plugin(GROUP, name)
    found = named() if callable(named) else named
    file = Path(found) if isinstance(found, str) else found
    if not (hasattr(file, "read_bytes") and file.is_file()):
        raise ConfigError(
            f"{GROUP}: {name!r} names {found!r}, expected the path of a legend file, or a function that returns it."
        )
    return file


def _legend_file(reference: str, file: Any) -> ProductLegend:
    try:
        # Spreadsheets put a byte-order mark in front.
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"legend {reference}: not UTF-8: {error}. Save the file as UTF-8 text.") from error
    is_csv = file.name.lower().endswith(".csv")
    return _legend(reference, _csv_content(file.name, text) if is_csv else parse_yaml(text, f"legend {reference}"))


@cache
def _builtin_legend(name: str) -> ProductLegend:
    text = (resources.files("geokr_core.land_cover") / "legends" / f"{name}.yaml").read_text(encoding="utf-8")
    return _legend(name, parse_yaml(text, f"legend {name}"))


def _legend(reference: str, content: Any) -> ProductLegend:
    try:
        return ProductLegend.model_validate(content)
    except ValidationError as error:
        raise ConfigError(
            f"legend {reference}: {explain(error, ProductLegend, content)}\nSee docs/land-cover.md for the form."
        ) from error


def _csv_content(reference: str, text: str) -> dict[str, Any]:
    delimiter = ";" if ";" in text.partition("\n")[0] else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    headings = [str(name).strip() for name in reader.fieldnames or ()]
    columns = set(headings)
    if len(columns) < len(headings):
        raise ConfigError(
            f"legend {reference}: a column is named twice in {headings}; of two only the last would be read."
        )
    if not {"code", "name"} <= columns <= {"code", "name", "colour", "common"}:
        raise ConfigError(
            f"legend {reference}: columns {sorted(columns)} found, expected code and name, and if wanted colour and common."
        )
    content: dict[str, Any] = {"nodata": [], "sea": [], "classes": []}
    for row in reader:
        if None in row:
            raise ConfigError(
                f"legend {reference}: line {reader.line_num} has more cells than the header; put names that hold "
                f"{delimiter!r} between double quotes."
            )
        cells = {str(k).strip(): (v or "").strip() for k, v in row.items() if isinstance(v, str)}
        if not any(cells.values()):
            continue
        if cells.get("common") in ("nodata", "sea"):
            content[cells["common"]].append(cells.get("code", ""))
        else:
            content["classes"].append({key: value for key, value in cells.items() if value})
    return {"name": Path(reference).stem, "licence": "not stated", "source": Path(reference).name, **content}
