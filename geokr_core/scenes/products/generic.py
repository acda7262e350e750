"""Any raster: nothing is known of it but what its own header says."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import digits
from typing import Final

from geokr_core.scenes.products.product import Description, SceneProduct, Stack

_COLOURS = ("red", "green", "blue")

_ALSO: Final[Mapping[str, str]] = {"swir16": "swir1", "swir22": "swir2", "nir_narrow": "nir"}
"""Names that mean the same band elsewhere."""

_KNOWN: Final = frozenset(
    [
        "coastal",
        "blue",
        "green",
        "yellow",
        "red",
        "rededge",
        "rededge1",
        "rededge2",
        "rededge3",
        "nir",
        "nir08",
        "nir09",
        "nir_narrow",
        "water_vapour",
        "pan",
        "cirrus",
        "swir1",
        "swir2",
        "swir16",
        "swir22",
        "lwir",
        "lwir11",
        "lwir12",
    ]
)
"""Common names of bands, as the families here and the Electro-Optical extension of STAC have them."""


class Generic(SceneProduct):
    """Rasters that no family claims."""

    def claims(self, path: str) -> bool:
        """Claim nothing: what is left over is generic."""
        del path
        return False

    def describe(self, folder: Path, path: str, wanted: tuple[str, ...] | None) -> Description:
        """Describe a raster by its path."""
        del folder
        return Description((path,), wanted)

    def band_names(self, description: Description, stack: Stack) -> tuple[str, ...]:
        """Bands by the colours that they are tagged as: ``red``, ``green``, ``blue``, else ``band1``, ``band2``, …."""
        del description
        colours = [colour for colour in stack.colours if colour != "alpha"]
        return tuple(colour if colour in _COLOURS else f"band{k}" for k, colour in enumerate(colours, start=1))

    def acquisition(self, product_id: str) -> str:
        """Nothing is known of it."""
        del product_id
        return ""


def contradiction(bands: tuple[str, ...], stack: Stack) -> str:
    """How the bands' descriptions contradict their names; empty where they do not.

    A description contradicts if it is the name of another band, or if the band numbers of red, green and blue rise:
    satellites number from short waves to long ones, so B2, B3, B4 are blue, green, red.

    Args:
        bands: names in file order; ``band1``, ``band2``, … say nothing that could be contradicted.
        stack: the file's bands.
    """
    described = dict(zip(bands, (text.strip() for text in stack.descriptions), strict=False))
    other = [name for name in described if _is_another(described[name], name)]
    if other:
        return f"its bands are described as {_shown(other, described)}"
    numbers = [
        re.fullmatch(r"(?:.*[^0-9a-z])?b(?:and)?[ _]?0*(\d+)", described.get(c, "").casefold()) for c in _COLOURS
    ]
    if all(numbers):
        red, green, blue = (int(number[1]) for number in numbers if number)
        if red < green < blue:
            shown = _shown([name for name in described if name in _COLOURS], described)
            return f"its bands are described as {shown}, and satellites number from short waves to long ones"
    return ""


def _is_another(description: str, name: str) -> bool:
    """Whether a description names another band than ``name``; ``nir`` of ``nir08`` only says less of the same one."""
    if not (found := band_of(description)) or re.fullmatch(r"band\d+", name):
        return False
    found, given = (_ALSO.get(text, text) for text in (found, name.casefold()))
    return found != given and found.rstrip(digits) != given and given.rstrip(digits) != found


def _shown(names: Sequence[str], described: Mapping[str, str]) -> str:
    return ", ".join(f"{described[name]} for {name}" for name in names)


def band_of(description: str) -> str:
    """The common name of the band that a description names, e.g. ``nir`` of ``NIR``; empty where it names none."""
    text = description.strip().casefold()
    spellings = (text, re.sub(r"[^a-z0-9]", "", text), re.sub(r"[^a-z]", "", text))
    return next((name for name in spellings if name in _KNOWN), "")


PRODUCT = Generic()
