"""The table of scene products: each family's name, and where its one class lives.

A package of the user adds a family by an entry point of the group ``geokr.scene_products`` that names an instance of
`SceneProduct`. Families are imported when one is first used, so that the parameter file can be read without them.
"""

import importlib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from geokr_core.errors import ConfigError, SceneRefusedError
from geokr_core.step.plugins import load_plugin, plugins

if TYPE_CHECKING:
    from geokr_core.scenes.products.product import Description, SceneProduct

GROUP: Final = "geokr.scene_products"

FAMILIES: Final[Mapping[str, str]] = {
    "sentinel2": "geokr_core.scenes.products.sentinel2",
    "landsat_c2": "geokr_core.scenes.products.landsat",
    "gaofen": "geokr_core.scenes.products.gaofen",
    "naip": "geokr_core.scenes.products.naip",
    "generic": "geokr_core.scenes.products.generic",
}
"""Module of each family, by the name that ``product`` of a collection gives it. The module's ``PRODUCT`` is the family.

``auto`` asks them in this order, then those of other packages.
"""


def family_names() -> tuple[str, ...]:
    """All families that there are, those of other packages last."""
    return tuple(dict.fromkeys((*FAMILIES, *plugins(GROUP))))


@cache
def family(name: str) -> "SceneProduct":
    """A family by name.

    Raises:
        ConfigError: there is none of that name, or a package's entry point names something else.
    """
    from geokr_core.scenes.products.product import SceneProduct

    found = importlib.import_module(FAMILIES[name]).PRODUCT if name in FAMILIES else load_plugin(GROUP, name)
    if not isinstance(found, SceneProduct):
        raise ConfigError(
            f"{GROUP}: {name!r} is a {type(found).__name__}, expected an instance of SceneProduct "
            "(geokr_core.scenes.products.product)."
        )
    return found


def recognise(path: str, product: str) -> str:
    """Family of a file or folder by its name alone.

    Args:
        path: relative to the scene folder.
        product: a family's name, or ``auto``.

    Returns:
        The family; ``generic`` where ``auto`` finds none.
    """
    if product != "auto":
        return product
    return next((name for name in family_names() if family(name).claims(path)), "generic")


def scene_heads(paths: Iterable[str], product: str) -> dict[str, tuple[str, str]]:
    """The scenes among paths: family and root of each, by the path that leads to it.

    Files that belong to a product of many files (bands of a SAFE folder, of a Landsat product) are no separate scenes
    where the product's metadata are among the paths.

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
        found = family(name)
        if not found.one_file_a_band or not found.claims(path):
            rest.append(path)
        elif (root := found.root(path)) not in roots:
            roots.add(root)
            heads[path] = (name, root)
    many_files = [family(name) for name in {name for name, _ in heads.values()}]
    for path in rest:
        if not any(root in roots for found in many_files for root in found.roots_of(path)):
            heads[path] = (recognise(path, product), path)
    return heads


def describe(name: str, folder: Path, path: str, wanted: tuple[str, ...] | None) -> "Description":
    """What names and metadata say of a scene.

    Args:
        name: family.
        folder: scene folder.
        path: file or folder that leads to the scene, relative to it.
        wanted: band names that the user gave, or None.

    Raises:
        SceneRefusedError: the metadata are missing, unreadable or contradict the name.
    """
    found = family(name)
    if found.one_file_a_band and not found.claims(path):
        raise SceneRefusedError(
            f"{path}: not recognised as {name}; let `files` match the product's metadata (MTD_MSI*.xml, *_MTL.*)"
        )
    return found.describe(folder, path, wanted)
