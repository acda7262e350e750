"""Any raster: nothing is known of it but what its own header says."""

import re
from pathlib import Path

from geokr_core.scenes.products.product import Description, SceneProduct, Stack

_COLOURS = ("red", "green", "blue")


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

    A description contradicts if it is the name of another colour, or if the band numbers of red, green and blue rise:
    satellites number from short waves to long ones, so B2, B3, B4 are blue, green, red.

    Args:
        bands: names in file order.
        stack: the file's bands.
    """
    described = dict(zip(bands, (text.strip() for text in stack.descriptions), strict=False))
    plain = {name: re.sub(r"[^a-z]", "", described[name].casefold()) for name in described}
    shown = ", ".join(f"{described[name] or '-'} for {name}" for name in described)
    if any(name in _COLOURS and plain[name] in {*_COLOURS, "nir"} - {name} for name in described):
        return f"its bands are described as {shown}"
    numbers = [
        re.fullmatch(r"(?:.*[^0-9a-z])?b(?:and)?[ _]?0*(\d+)", described.get(c, "").casefold()) for c in _COLOURS
    ]
    if all(numbers):
        red, green, blue = (int(number[1]) for number in numbers if number)
        if red < green < blue:
            return f"its bands are described as {shown}, and satellites number from short waves to long ones"
    return ""


PRODUCT = Generic()
