"""Sentinel-2 products in SAFE format, level 1C and 2A, by their ``MTD_MSIL1C.xml`` or ``MTD_MSIL2A.xml``.

A scene has one grid, so its bands have one resolution: the finest at which the product brings every band asked for.
Nothing is resampled to bring bands of 20 m to 10 m. Names and units are those of the product specification document
(reflectance = (stored + offset) / quantification; offsets since processing baseline 04.00; stored 0 is no data).
"""

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

import numpy as np

from geokr_core.errors import SceneRefusedError
from geokr_core.scenes.products.metadata_files import read_xml, text_of
from geokr_core.scenes.products.product import Description, SceneProduct, iso_date
from geokr_core.step.found_files import find_files, is_leftover

_MTD = ("MTD_MSIL1C.XML", "MTD_MSIL2A.XML")
_BAND_FILE = re.compile(r".+_(?P<band>B(?:0[1-9]|1[0-2]|8A)|SCL)(?:_(?P<gsd>10|20|60)m)?\.jp2", re.IGNORECASE)

_BAND_IDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
"""In the order of ``band_id`` 0–12 of the metadata."""

_NAMES = {
    "blue": "B02",
    "green": "B03",
    "red": "B04",
    "nir": "B08",
    "coastal": "B01",
    "rededge1": "B05",
    "rededge2": "B06",
    "rededge3": "B07",
    "nir_narrow": "B8A",
    "water_vapour": "B09",
    "swir1": "B11",
    "swir2": "B12",
}
_NUM_NAME_PARTS = 7

SCL_CLOUD = (3, 8, 9, 10)
"""Classes of the scene classification that count as cloud: cloud shadow, medium and high probability, thin cirrus (level
2A product definition)."""

_DEFAULT = ("blue", "green", "red", "nir")
_NATIVE_GSD_M = dict.fromkeys(_BAND_IDS, 20) | {
    **dict.fromkeys(("B02", "B03", "B04", "B08"), 10),
    **dict.fromkeys(("B01", "B09", "B10"), 60),
}
"""Metres between the pixels as a band is measured, and as level 1C delivers it. Level 2A has coarser copies beside."""


def _band_files(folder: Path, safe: str) -> dict[int, dict[str, str]]:
    """Files by resolution in metres and band, relative to the scene folder."""
    granules = sorted(p for p in (folder / safe).glob("GRANULE/*") if p.is_dir() and not is_leftover(p.name))
    if len(granules) != 1:
        raise SceneRefusedError(f"{safe}: {len(granules)} granules found, expected one; split the product by tile")
    found: dict[int, dict[str, str]] = {}
    images = granules[0] / "IMG_DATA"
    for file in find_files(images, "**/*.jp2").files if images.is_dir() else ():
        path = images / file
        if match := _BAND_FILE.fullmatch(path.name):
            band = match["band"].upper()
            gsd_m = int(match["gsd"] or _NATIVE_GSD_M.get(band, 20))
            found.setdefault(gsd_m, {})[band] = path.relative_to(folder).as_posix()
    return found


def _classification(by_gsd: dict[int, dict[str, str]], gsd_m: int) -> str:
    """The scene classification at the resolution next to the bands'; level 1C brings none."""
    coarser = [g for g in sorted(by_gsd) if g >= gsd_m and "SCL" in by_gsd[g]]
    return by_gsd[coarser[0]]["SCL"] if coarser else ""


def _coarser_than_measured(by_gsd: dict[int, dict[str, str]], bands: list[str], gsd_m: int) -> tuple[str, ...]:
    """What is missing where bands have to be read coarser than they were measured."""
    expected_m = max(_NATIVE_GSD_M[band] for band in bands)
    if gsd_m <= expected_m:
        return ()
    missing = [band for band in bands if band not in by_gsd.get(expected_m, {})]
    return (
        f"read at {gsd_m} m: of its {expected_m} m files {', '.join(missing)} are missing. Fetch the whole SAFE folder if "
        f"{expected_m} m is wanted",
    )


def _reflectance(tree: ElementTree.Element, bands: list[str]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    offsets: dict[str, float] = {}
    try:
        quantification = float(text_of(tree, "BOA_QUANTIFICATION_VALUE") or text_of(tree, "QUANTIFICATION_VALUE"))
        for element in tree.iter():
            if str(element.tag).rpartition("}")[2] in ("BOA_ADD_OFFSET", "RADIO_ADD_OFFSET"):
                offsets[_BAND_IDS[int(element.attrib["band_id"])]] = float(element.text or "")
    except (ValueError, KeyError, IndexError) as error:
        raise SceneRefusedError(f"its metadata state no usable reflectance factors ({error!r})") from error
    if not quantification > 0:
        raise SceneRefusedError(f"its metadata state the quantification value {quantification:g}, expected more than 0")
    if offsets and (missing := [band for band in bands if band not in offsets]):
        raise SceneRefusedError(
            f"its metadata state offsets, but none of {', '.join(missing)}; expected one of each band. Fetch it again"
        )
    return (1.0 / quantification,) * len(bands), tuple(offsets.get(band, 0.0) / quantification for band in bands)


class Sentinel2(SceneProduct):
    """Sentinel-2 products; one SAFE folder leads to a scene of one file a band."""

    one_file_a_band = True

    def claims(self, path: str) -> bool:
        """Whether the path is a SAFE folder of an MSI product or its metadata file."""
        name = PurePosixPath(path).name.upper()
        return name in _MTD or (name.startswith("S2") and name.endswith(".SAFE"))

    def root(self, path: str) -> str:
        """The SAFE folder."""
        inside = PurePosixPath(path)
        return (inside.parent if inside.name.upper() in _MTD else inside).as_posix()

    def roots_of(self, path: str) -> Iterable[str]:
        """The folders that a file lies in: one of them may be a SAFE folder."""
        return (parent.as_posix() for parent in PurePosixPath(path).parents)

    def describe(self, folder: Path, path: str, wanted: tuple[str, ...] | None) -> Description:
        """Read a product's metadata and choose its band files.

        Args:
            folder: scene folder.
            path: SAFE folder or metadata file, relative to it.
            wanted: common names of the bands to offer; None offers the four of 10 m.

        Raises:
            SceneRefusedError: metadata are missing or unreadable, there is not exactly one granule, a band is unknown
                or missing, or no one resolution has all bands.
        """
        safe = self.root(path)
        inside = sorted((folder / safe).iterdir()) if (folder / safe).is_dir() else []
        metadata = next((p for p in inside if p.name.upper() in _MTD), None)
        if metadata is None:
            raise SceneRefusedError(f"{safe}: no MTD_MSIL1C.xml or MTD_MSIL2A.xml in it; deliver the whole SAFE folder")
        tree = read_xml(metadata)
        bands = wanted or _DEFAULT
        if unknown := [name for name in bands if name not in _NAMES]:
            raise SceneRefusedError(f"band(s) {', '.join(unknown)} not of Sentinel-2; known: {', '.join(_NAMES)}")
        by_gsd = _band_files(folder, safe)
        gsd_m = next((g for g in sorted(by_gsd) if all(_NAMES[name] in by_gsd[g] for name in bands)), None)
        if gsd_m is None:
            found = "; ".join(
                f"{g} m: {', '.join(n for n, b in _NAMES.items() if b in by_gsd[g])}" for g in sorted(by_gsd)
            )
            raise SceneRefusedError(
                f"{safe}: no resolution has all of {', '.join(bands)} (found {found or 'no band file'}). Bands are not "
                "resampled: choose `bands` of one resolution"
            )
        scales, offsets = _reflectance(tree, [_NAMES[name] for name in bands])
        spacecraft, level = text_of(tree, "SPACECRAFT_NAME") or "Sentinel-2", metadata.name.upper()[7:10]
        return Description(
            files=tuple(by_gsd[gsd_m][_NAMES[name]] for name in bands),
            bands=bands,
            product_id=(text_of(tree, "PRODUCT_URI") or PurePosixPath(safe).name).removesuffix(".SAFE"),
            sensor=f"{spacecraft}_MSI_{level}",
            acquired=iso_date(
                text_of(tree, "DATATAKE_SENSING_START") or text_of(tree, "PRODUCT_START_TIME"), metadata.name
            ),
            nodata=0.0,
            cloud_mask=_classification(by_gsd, gsd_m),
            scales=scales,
            offsets=offsets,
            metadata=(metadata.relative_to(folder).as_posix(),),
            remarks=_coarser_than_measured(by_gsd, [_NAMES[name] for name in bands], gsd_m),
        )

    def is_cloud(self, values: np.ndarray) -> np.ndarray:
        """Where the scene classification, uint8, is one of `SCL_CLOUD`."""
        return np.isin(values, SCL_CLOUD)

    def acquisition(self, product_id: str) -> str:
        """Satellite, start of sensing, orbit and tile: without level, processing baseline and its date."""
        parts = product_id.split("_")
        return "_".join((parts[0], parts[2], *parts[4:6])) if len(parts) == _NUM_NAME_PARTS else product_id


PRODUCT = Sentinel2()
