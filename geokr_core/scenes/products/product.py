"""What a product's names and metadata say of a scene, the same for every family of products."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from geokr_core.errors import SceneRefusedError


@dataclass(frozen=True)
class Product:
    """A recognised scene. All paths are relative to the scene folder.

    Attributes:
        name: family, as in ``product`` of a collection.
        files: one raster, or one a band in the order of ``bands``.
        bands: common band names in file order; None where nobody can know them without the header.
        product_id: the provider's name of the product.
        sensor: satellite and sensor.
        acquired: ISO date, or empty.
        nodata: value that the format's specification reserves for no data, or None.
        cloud_mask: file with the product's own classification, or empty.
        scales: physical value of one stored step, one a band, or empty.
        offsets: physical value of a stored zero, one a band, or empty.
        metadata: side files that were read.
        corners: longitude and latitude of the corners as the metadata state them, or empty.
        in_sensor_geometry: delivered before orthorectification, so that RPCs win over any geotransform.
    """

    name: str
    files: tuple[str, ...]
    bands: tuple[str, ...] | None = None
    product_id: str = ""
    sensor: str = ""
    acquired: str = ""
    nodata: float | None = None
    cloud_mask: str = ""
    scales: tuple[float, ...] = ()
    offsets: tuple[float, ...] = ()
    metadata: tuple[str, ...] = ()
    corners: tuple[tuple[float, float], ...] = ()
    in_sensor_geometry: bool = False


@dataclass(frozen=True)
class Family:
    """How one family of products is recognised and read.

    Attributes:
        claims: whether a path, by its name alone, is a scene of this family.
        root: what a scene's files have in common; its scene id is made from it.
        describe: reads the metadata: (scene folder, path, band names wanted or None).
        one_file_a_band: whether ``describe`` chooses among band files by the names wanted.
    """

    claims: Callable[[str], bool]
    root: Callable[[str], str]
    describe: Callable[[Path, str, tuple[str, ...] | None], Product]
    one_file_a_band: bool


def iso_date(text: str, place: str) -> str:
    """The ISO date at the beginning of ``text``, written with or without separators.

    Raises:
        SceneRefusedError: no such day exists; ``place`` says where it was found.
    """
    if match := re.match(r"\s*(\d{4})[-/]?(\d{2})[-/]?(\d{2})", text):
        try:
            return date(*(int(part) for part in match.groups())).isoformat()
        except ValueError:
            pass
    raise SceneRefusedError(
        f"{place} carries the date {text.strip()[:20]}, which does not exist; give `acquired` for its collection"
    )


def pick_bands(available: dict[str, str], wanted: tuple[str, ...], place: str) -> tuple[str, ...]:
    """Files of the bands wanted, in the order wanted.

    Raises:
        SceneRefusedError: one is not there.
    """
    if missing := [name for name in wanted if name not in available]:
        raise SceneRefusedError(
            f"{place}: no file of band(s) {', '.join(missing)}; found {', '.join(available) or 'none'}"
        )
    return tuple(available[name] for name in wanted)
