"""What a family of scene products is: one class that carries every fact about it.

A family lives in one module beside this one and stands in the table of ``families``. Nothing else of the project knows it
by name. No raster is opened here.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np

from geokr_core.errors import SceneRefusedError


@dataclass(frozen=True)
class Description:
    """What names and metadata say of one scene. All paths are relative to the scene folder.

    Attributes:
        files: one raster, or one a band in the order of ``bands``.
        bands: common band names in file order; None where they cannot be known without the header.
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
        remarks: what the user should know of a scene that is usable all the same.
    """

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
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stack:
    """Bands of one raster as its header shows them.

    Attributes:
        file: path relative to the scene folder.
        colours: what each band is tagged as: ``red``, ``alpha``, ``gray``, ``undefined`` ….
        descriptions: what each band is described as; empty where it is not.
    """

    file: str
    colours: tuple[str, ...]
    descriptions: tuple[str, ...]

    @property
    def num_bands(self) -> int:
        """Bands of the file, an alpha band included."""
        return len(self.colours)


class SceneProduct(ABC):
    """A family of scene products.

    Derive one class a family and put an instance into the table of ``families``, or name it by an entry point of the group
    ``geokr.scene_products``. It holds no state.

    Attributes:
        one_file_a_band: whether a scene is many files of one band each, which `describe` chooses among by band name.
    """

    one_file_a_band: bool = False

    @abstractmethod
    def claims(self, path: str) -> bool:
        """Whether a path, by its name alone, leads to a scene of this family: its raster, metadata file or folder."""

    def root(self, path: str) -> str:
        """What the names of all files of a scene begin with; its scene id is made from it."""
        return path

    def roots_of(self, path: str) -> Iterable[str]:
        """Roots of the scenes that a file, which leads to none itself, may be a part of."""
        del path
        return ()

    @abstractmethod
    def describe(self, folder: Path, path: str, wanted: tuple[str, ...] | None) -> Description:
        """Read what names and metadata say.

        Args:
            folder: the scene folder.
            path: what `claims` said yes to, or what the user insists on, relative to the folder.
            wanted: band names that the user gave, or None.

        Raises:
            SceneRefusedError: the metadata are missing, unreadable or contradict the name.
        """

    def band_names(self, description: Description, stack: Stack) -> tuple[str, ...]:
        """Names of the bands of a scene of one file, where the user gave none.

        Raises:
            SceneRefusedError: they cannot be known.
        """
        bands = description.bands
        if bands is None or len(bands) != stack.num_bands:
            expected = f"{len(bands)} ({', '.join(bands)})" if bands else "a sensor with a known order"
            raise SceneRefusedError(
                f"{stack.file}: {stack.num_bands} band(s) of {description.sensor} found, expected {expected}; what they are "
                "and in which order cannot be known from outside: give `bands`"
            )
        return bands

    def is_cloud(self, values: np.ndarray) -> np.ndarray:
        """Where the product's own classification says cloud or shadow of cloud.

        Args:
            values: stored values of ``cloud_mask``, any shape.

        Returns:
            bool, same shape.
        """
        raise NotImplementedError(f"{type(self).__name__} brings no cloud mask")

    def acquisition(self, product_id: str) -> str:
        """What deliveries of one acquisition share: ``product_id`` without processing level, version and date."""
        return product_id


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
