"""Products that are recognised by their names and metadata, one module a family. No raster is opened here."""

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from geokr_core.errors import SceneRefusedError
from geokr_core.scenes.products import gaofen, landsat, naip, sentinel2
from geokr_core.scenes.products.product import Family, Product

FAMILIES: Mapping[str, Family] = {
    "sentinel2": sentinel2.FAMILY,
    "landsat_c2": landsat.FAMILY,
    "gaofen": gaofen.FAMILY,
    "naip": naip.FAMILY,
}
"""By the name that ``product`` of a collection gives them."""


def recognise(path: str, product: str) -> str:
    """Family of a file or folder by its name alone.

    Args:
        path: relative to the scene folder.
        product: a family's name, ``auto`` or ``generic``.

    Returns:
        The family; ``generic`` where ``auto`` finds none.
    """
    if product != "auto":
        return product
    return next((name for name, family in FAMILIES.items() if family.claims(path)), "generic")


def scene_heads(paths: Iterable[str], product: str) -> dict[str, tuple[str, str]]:
    """The scenes among paths: family and root of each, by the path that leads to it.

    Files that belong to a product of many files (bands of a SAFE folder, of a Landsat product) are no scenes of their
    own where the product's metadata are among the paths.

    Args:
        paths: relative to the scene folder.
        product: as for `recognise`.

    Returns:
        ``{path: (family, root)}``; one path a root.
    """
    heads: dict[str, tuple[str, str]] = {}
    rest: list[str] = []
    roots: set[str] = set()
    for path in sorted(paths):
        name = recognise(path, product)
        family = FAMILIES.get(name)
        if family is None or not family.one_file_a_band or not family.claims(path):
            rest.append(path)
        elif (root := family.root(path)) not in roots:
            roots.add(root)
            heads[path] = (name, root)
    for path in rest:
        if not _belongs(path, roots):
            heads[path] = (recognise(path, product), path)
    return heads


def _belongs(path: str, roots: set[str]) -> bool:
    inside = PurePosixPath(path)
    if any(parent.as_posix() in roots for parent in inside.parents):
        return True
    # LC08_…_02_T1_SR_B4.TIF: seven parts make the product's name.
    return inside.with_name("_".join(inside.name.split("_")[:7])).as_posix() in roots if "_" in inside.name else False


def describe(name: str, folder: Path, path: str, wanted: tuple[str, ...] | None) -> Product:
    """What names and metadata say of a scene.

    Args:
        name: family, or ``generic``.
        folder: scene folder.
        path: file or folder that leads to the scene, relative to it.
        wanted: band names that the user gave, or None.

    Raises:
        SceneRefusedError: the metadata are missing, unreadable or contradict the name.
    """
    family = FAMILIES.get(name)
    if family is None:
        return Product("generic", (path,), wanted)
    if family.one_file_a_band and not family.claims(path):
        raise SceneRefusedError(
            f"{path}: not recognised as {name}; let `files` match the product's metadata (MTD_MSI*.xml, *_MTL.*)"
        )
    return family.describe(folder, path, wanted)
