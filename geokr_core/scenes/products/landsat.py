"""Landsat Collection 2 products, level 1 and level 2, by their MTL metadata (text, XML or JSON).

Keys and band numbers are those of the USGS Collection 2 data format control books: FILE_NAME_BAND_n, reflectance
factors a band, QUALITY_L1_PIXEL. Bands 1–4 are other colours on Landsat 8/9 than on Landsat 4–7.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from geokr_core.errors import SceneRefusedError
from geokr_core.scenes.products.metadata_files import read_bytes, read_xml
from geokr_core.scenes.products.product import Description, SceneProduct, iso_date, pick_bands

_MTL = re.compile(
    r"(?P<product>L[A-Z]\d{2}_L\d[A-Z]{2}_\d{6}_\d{8}_\d{8}_02_(?:T1|T2|RT))_MTL\.(?:txt|xml|json)", re.IGNORECASE
)

_OLI = {"coastal": 1, "blue": 2, "green": 3, "red": 4, "nir": 5, "swir1": 6, "swir2": 7}
_TM = {"blue": 1, "green": 2, "red": 3, "nir": 4, "swir1": 5, "swir2": 7}
_BAND_NUMBERS = {"LANDSAT_4": _TM, "LANDSAT_5": _TM, "LANDSAT_7": _TM, "LANDSAT_8": _OLI, "LANDSAT_9": _OLI}

_NUM_NAME_PARTS = 7

QA_PIXEL_CLOUD_BITS = 0b11110
"""Bits of QA_PIXEL that count as cloud: 1 dilated cloud, 2 cirrus (Landsat 8 and 9), 3 cloud, 4 cloud shadow (Collection
2 data format control books)."""

Groups = Mapping[str, Mapping[str, str]]


def _group(groups: Groups, name: str, path: str) -> Mapping[str, str]:
    if name not in groups:
        raise SceneRefusedError(f"{path}: no group {name}; not the MTL of a Collection 2 product")
    return groups[name]


def _file(folder: Path, path: str, contents: Mapping[str, str], key: str) -> str:
    """The file beside the MTL that a key names, relative to the scene folder; empty where it is not there."""
    name = contents.get(key, "")
    if not name:
        return ""
    if PurePosixPath(name).name != name or "\\" in name:
        raise SceneRefusedError(f"{path}: {key} is {name!r}, expected the name of a file beside it")
    file = PurePosixPath(path).with_name(name)
    return file.as_posix() if (folder / file).is_file() else ""


def _factors(group: Mapping[str, str], prefix: str, numbers: list[int], path: str) -> tuple[float, ...]:
    """A factor of each band; none at all where the metadata have no such group."""
    try:
        return tuple(float(group[f"{prefix}{number}"]) for number in numbers) if group else ()
    except (KeyError, ValueError) as error:
        raise SceneRefusedError(
            f"{path}: states no usable reflectance factor of every band ({error!r}); fetch it again"
        ) from error


def _read(path: Path) -> Groups:
    if path.suffix.lower() == ".xml":
        root_element = read_xml(path)
        return {str(g.tag): {str(e.tag): (e.text or "").strip() for e in g} for g in root_element}
    text = read_bytes(path).decode("utf-8", errors="replace")
    return _read_json(path, text) if path.suffix.lower() == ".json" else _read_odl(text)


def _read_json(path: Path, text: str) -> Groups:
    try:
        content: Any = json.loads(text)
        groups = content["LANDSAT_METADATA_FILE"]
        return {group: {key: str(value) for key, value in values.items()} for group, values in groups.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SceneRefusedError(f"{path.name}: not an MTL in JSON: {error!r}") from error


def _read_odl(text: str) -> Groups:
    groups: dict[str, dict[str, str]] = {}
    current: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition("="))
        if key == "GROUP":
            current = groups.setdefault(value, {})
        elif key and value and key != "END_GROUP":
            current[key] = value.strip('"')
    return groups


class Landsat(SceneProduct):
    """Landsat Collection 2 products; one MTL leads to a scene of one file a band."""

    one_file_a_band = True

    def claims(self, path: str) -> bool:
        """Whether the file is the MTL of a Collection 2 product."""
        return _MTL.fullmatch(PurePosixPath(path).name) is not None

    def root(self, path: str) -> str:
        """The path of the product without ``_MTL`` and ending: what the names of all its files begin with."""
        return re.sub(r"_MTL\.\w+\Z", "", path, flags=re.IGNORECASE)

    def roots_of(self, path: str) -> Iterable[str]:
        """The first seven parts of a name, which make the product's: ``LC08_…_02_T1_SR_B4.TIF``."""
        inside = PurePosixPath(path)
        return (inside.with_name("_".join(inside.name.split("_")[:7])).as_posix(),) if "_" in inside.name else ()

    def describe(self, folder: Path, path: str, wanted: tuple[str, ...] | None) -> Description:
        """Read an MTL file.

        Args:
            folder: scene folder.
            path: the MTL, relative to it.
            wanted: common names of the bands to offer; None offers all 30 m reflective bands that are there.

        Raises:
            SceneRefusedError: the MTL cannot be read or is not of Collection 2 of Landsat 4–9 (TM, ETM+, OLI), or a
                band is missing.
        """
        groups = _read(folder / path)
        contents, image = _group(groups, "PRODUCT_CONTENTS", path), _group(groups, "IMAGE_ATTRIBUTES", path)
        spacecraft = image.get("SPACECRAFT_ID", "")
        numbers = _BAND_NUMBERS.get(spacecraft)
        if (
            numbers is None
            or contents.get("COLLECTION_NUMBER", "02") not in ("02", "2")
            or "MSS" in image.get("SENSOR_ID", "")
        ):
            raise SceneRefusedError(
                f"{path}: {spacecraft or 'no spacecraft'} {image.get('SENSOR_ID', '')} of collection "
                f"{contents.get('COLLECTION_NUMBER', '?')} found, expected TM, ETM+ or OLI of Collection 2"
            )
        available = {
            name: file
            for name, number in numbers.items()
            if (file := _file(folder, path, contents, f"FILE_NAME_BAND_{number}"))
        }
        bands = wanted or tuple(name for name in numbers if name in available)
        if not bands:
            raise SceneRefusedError(f"{path}: none of the band files that it names lies beside it")
        files = pick_bands(available, bands, path)
        factors = (
            groups.get("LEVEL2_SURFACE_REFLECTANCE_PARAMETERS") or groups.get("LEVEL1_RADIOMETRIC_RESCALING") or {}
        )
        return Description(
            files=files,
            bands=bands,
            product_id=contents.get("LANDSAT_PRODUCT_ID", PurePosixPath(self.root(path)).name),
            sensor=f"{spacecraft}_{image.get('SENSOR_ID', '')}".strip("_"),
            acquired=iso_date(image.get("DATE_ACQUIRED", ""), path),
            nodata=0.0,
            cloud_mask=_file(folder, path, contents, "FILE_NAME_QUALITY_L1_PIXEL"),
            scales=_factors(factors, "REFLECTANCE_MULT_BAND_", [numbers[name] for name in bands], path),
            offsets=_factors(factors, "REFLECTANCE_ADD_BAND_", [numbers[name] for name in bands], path),
            metadata=(path,),
        )

    def is_cloud(self, values: np.ndarray) -> np.ndarray:
        """Where a bit of QA_PIXEL, uint16, says cloud or shadow of cloud."""
        return np.asarray((values & QA_PIXEL_CLOUD_BITS) != 0)

    def acquisition(self, product_id: str) -> str:
        """Satellite, path and row, and day: without level, day of processing and tier."""
        parts = product_id.split("_")
        return "_".join((parts[0], parts[2], parts[3])) if len(parts) == _NUM_NAME_PARTS else product_id


PRODUCT = Landsat()
