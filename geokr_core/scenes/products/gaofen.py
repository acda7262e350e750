"""Gaofen scenes as delivered: GF-1, GF-1B/C/D, GF-2 and GF-6 names, bands and side files.

``GF1_PMS1_E106.6_N29.7_20180807_L1A0003376167-MSS1.tiff``: satellite, sensor, scene centre, date, level with product
number, part, and whatever users append (``_FUSION``, ``_GEO``). The names are those of real files (3,068 GF-1 WFV names
agree); band order blue, green, red, near infrared is that of the sensor specifications. The order of GF-6 WFV's last
four bands and the suffix ``-MUX`` of GF-1B/C/D are not taken from a specification: see ``docs/scenes.md``.
"""

import re
from datetime import date
from pathlib import Path, PurePosixPath

from geokr_core.errors import SceneRefusedError
from geokr_core.scenes.products.metadata_files import read_xml, text_of
from geokr_core.scenes.products.product import Description, SceneProduct, Stack, iso_date

_NAME = re.compile(
    r"(?P<product>(?P<satellite>GF\d[A-D]?)_(?P<sensor>[A-Z]+\d?)_[EW]\d{1,3}\.\d+_[NS]\d{1,2}\.\d+_(?P<date>\d{8})"
    r"_L(?P<level>\d[A-Z]?)(?P<number>\d*))(?:-(?P<part>MSS[12]?|PAN[12]?|MUX|[123])(?![A-Za-z0-9]))?(?P<suffix>.*)",
    re.IGNORECASE,
)

_MULTISPECTRAL = ("blue", "green", "red", "nir")
_GF6_WFV = (*_MULTISPECTRAL, "rededge1", "rededge2", "coastal", "yellow")
_OPTICAL = re.compile(r"(?:GF1_(?:PMS[12]?|WFV[1-4])|GF1[BCD]_PMS|GF2_PMS[12]?|GF6_(?:PMS|WFV))", re.IGNORECASE)

_CORNERS = ("TopLeft", "TopRight", "BottomRight", "BottomLeft")


def _match(path: str) -> re.Match[str] | None:
    return _NAME.fullmatch(PurePosixPath(path).stem)


def _bands(sensor: str, part: str) -> tuple[str, ...] | None:
    if not _OPTICAL.fullmatch(sensor):
        return None
    if part.startswith("PAN"):
        return ("pan",)
    return _GF6_WFV if sensor == "GF6_WFV" else _MULTISPECTRAL


def _side_file(folder: Path, path: str, match: re.Match[str]) -> str:
    """The scene's XML: of the scene's name, or of the name it had before users appended to it."""
    own = PurePosixPath(path).stem
    delivered = own[: len(own) - len(match["suffix"])] if match["suffix"] else own
    for stem in dict.fromkeys((own, delivered)):
        for ending in (".xml", ".XML"):
            candidate = PurePosixPath(path).with_name(stem + ending)
            if (folder / candidate).is_file():
                return candidate.as_posix()
    return ""


def _read_side_file(path: Path, named: str) -> tuple[str, tuple[tuple[float, float], ...]]:
    root = read_xml(path)
    # The time of imaging; the time of reception may fall on another day.
    stated = next((text for tag in ("CenterTime", "StartTime", "ReceiveTime") if (text := text_of(root, tag))), named)
    acquired = iso_date(stated if stated[:1].isdigit() and len(stated) >= 8 else named, path.name)
    # Local and universal time may differ by a day, scenes of one place by more.
    if abs(_day_number(acquired) - _day_number(named)) > 1:
        raise SceneRefusedError(
            f"{path.name} says {acquired}, the scene's name {named}; the side file belongs to another scene"
        )
    try:
        corners = tuple(
            (float(text_of(root, f"{corner}Longitude")), float(text_of(root, f"{corner}Latitude")))
            for corner in _CORNERS
        )
    except ValueError:
        corners = ()  # not every generation of side files states them
    return acquired, corners


def _day_number(day: str) -> int:
    return date.fromisoformat(day).toordinal()


class Gaofen(SceneProduct):
    """Gaofen scenes, one raster each."""

    def claims(self, path: str) -> bool:
        """Whether the file's name is a Gaofen name."""
        return PurePosixPath(path).suffix.lower() in (".tif", ".tiff", ".img", ".jp2") and _match(path) is not None

    def root(self, path: str) -> str:
        """The path up to the name that was delivered: scene, side files and what users made of it begin with it."""
        match = _match(path)
        if match is None:
            return path
        inside = PurePosixPath(path)
        return inside.with_name(inside.stem[: len(inside.stem) - len(match["suffix"])]).as_posix()

    def describe(self, folder: Path, path: str, wanted: tuple[str, ...] | None) -> Description:
        """Read a Gaofen name and the XML side file where there is one.

        Args:
            folder: scene folder.
            path: the raster, relative to it.
            wanted: the user's band names in file order; they stand above what is known of the sensor.

        Raises:
            SceneRefusedError: it is no Gaofen name, its date does not exist, or the side file is another scene's.
        """
        match = _match(path)
        if match is None:
            raise SceneRefusedError(f"{path}: not a Gaofen name; use `product: generic` and give `bands`")
        sensor = f"{match['satellite']}_{match['sensor']}".upper()
        named = iso_date(match["date"], f"its name {PurePosixPath(path).name}")
        side_file = _side_file(folder, path, match)
        acquired, corners = _read_side_file(folder / side_file, named) if side_file else (named, ())
        return Description(
            files=(path,),
            bands=wanted or _bands(sensor, (match["part"] or "").upper()),
            product_id=match["product"],
            sensor=sensor,
            acquired=acquired,
            metadata=(side_file,) if side_file else (),
            corners=corners,
            in_sensor_geometry=match["level"].upper().startswith("1") and not match["suffix"],
        )

    def band_names(self, description: Description, stack: Stack) -> tuple[str, ...]:
        """The sensor's bands in their order; one tagged as transparency has been edited by someone.

        Raises:
            SceneRefusedError: the file has another number of bands, or one is tagged as transparency.
        """
        bands = super().band_names(description, stack)
        if "alpha" in stack.colours:
            raise SceneRefusedError(
                f"{stack.file}: its last band is tagged as transparency where {description.sensor} has {bands[-1]}; give "
                "`bands` if it is data, or name the colours in their order"
            )
        return bands


PRODUCT = Gaofen()
