"""NAIP quarter quads: ``m_3907833_nw_17_1_20130712.tif``.

Quad and quarter, UTM zone, ground sampling (1 is 1 m, 060 is 0.6 m, h is half a metre), day of the flight, often a
processing date after it. ``m`` stands for multispectral: red, green, blue, near infrared in this order.
"""

import re
from pathlib import Path, PurePosixPath

from geokr_core.scenes.products.product import Description, SceneProduct, iso_date

_NAME = re.compile(
    r"(?P<flight>m_\d{7}_(?:ne|nw|se|sw)_\d{1,2}_(?:\d{1,3}|h)_(?P<date>\d{8}))(?:_\d{8})?", re.IGNORECASE
)

BANDS = ("red", "green", "blue", "nir")


class Naip(SceneProduct):
    """NAIP quarter quads. Many are tagged as transparent in their fourth band, which is near infrared all the same."""

    def claims(self, path: str) -> bool:
        """Whether the file's name is that of a NAIP quarter quad."""
        name = PurePosixPath(path)
        return name.suffix.lower() in (".tif", ".tiff", ".jp2") and _NAME.fullmatch(name.stem) is not None

    def describe(self, folder: Path, path: str, wanted: tuple[str, ...] | None) -> Description:
        """Read a NAIP name. A file that is not named so has no date: its collection's ``acquired`` gives it.

        Raises:
            SceneRefusedError: the date in the name does not exist.
        """
        del folder
        stem = PurePosixPath(path).stem
        match = _NAME.fullmatch(stem)
        acquired = iso_date(match["date"], f"its name {PurePosixPath(path).name}") if match else ""
        return Description((path,), wanted or BANDS, product_id=stem, sensor="NAIP", acquired=acquired)

    def acquisition(self, product_id: str) -> str:
        """The name without the date of processing."""
        match = _NAME.fullmatch(product_id)
        return match["flight"].lower() if match else product_id


PRODUCT = Naip()
