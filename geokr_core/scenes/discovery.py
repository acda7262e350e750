"""Which files and folders are scenes, and a digest of each without opening it."""

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from geokr_core.errors import ConfigError, MissingInputError
from geokr_core.scenes.config import SceneCollection, ScenesConfig
from geokr_core.scenes.known_files import Listing
from geokr_core.scenes.products.families import FAMILIES, recognise, scene_heads


@dataclass(frozen=True)
class Candidate:
    """Files that may be a scene.

    ``files`` are rasters, or for products of many files the one path that leads to them. ``roots`` are what the names
    of all its files, side files included, begin with.
    """

    scene_id: str
    collection: SceneCollection
    files: tuple[str, ...]
    roots: tuple[str, ...]
    family: str = "generic"
    missing: tuple[str, ...] = ()


def discover(config: ScenesConfig) -> list[Candidate]:
    """Group the files below the scene folder into candidate scenes.

    Raises:
        MissingInputError: the folder is missing, or a collection's glob matches nothing.
        ConfigError: one file belongs to two collections.
    """
    if not config.folder.is_dir():
        raise MissingInputError(f"{config.folder}: no such scene folder; point `scenes.folder` at your scenes.")
    found: list[Candidate] = []
    owner: dict[str, str] = {}
    for collection in config.collections:
        candidates = _candidates(config.folder, collection)
        if not candidates:
            some = sorted(p.relative_to(config.folder).as_posix() for p in config.folder.rglob("*") if p.is_file())[:3]
            raise MissingInputError(
                f"{config.folder}: no file matches `{collection.files}` of collection {collection.name!r}. "
                f"The folder holds {', '.join(some) + ' …' if some else 'no file at all'}; mend `scenes.collections`."
            )
        for file in (f for candidate in candidates for f in candidate.files):
            if owner.setdefault(file, collection.name) != collection.name:
                raise ConfigError(
                    f"{file}: matched by the collections {owner[file]} and {collection.name}; give each its own files."
                )
        found += candidates
    return sorted(found, key=lambda c: c.scene_id)


def scene_listing(config: ScenesConfig) -> Mapping[str, str]:
    """What lies in the scene folder at present, scene by scene, without opening a file.

    Args:
        config: folder and collections.

    Returns:
        By scene id, a digest of names, sizes and modification times of the scene's files: it changes whenever one of
        them comes, goes or is written to.

    Raises:
        MissingInputError: the folder is missing, or a collection's glob matches nothing.
        ConfigError: one file belongs to two collections.
    """
    listing = Listing(config.folder)
    return {c.scene_id: listing.digest(c.roots) for c in discover(config)}


def _candidates(folder: Path, collection: SceneCollection) -> list[Candidate]:
    if collection.band_files is None:
        paths = (p.relative_to(folder).as_posix() for p in folder.glob(collection.files) if _is_scene_path(p))
        return [
            Candidate(
                _scene_id(root) or _scene_id(folder.resolve().name),
                collection,
                (path,),
                (_root_of(path, family),),
                family,
            )
            for path, (family, root) in scene_heads(paths, collection.product).items()
        ]
    before, after = collection.files.split("{band}")
    tokens = "|".join(re.escape(token) for token in collection.band_files)
    pattern = re.compile(f"(?s:{_glob_regex(before)})(?P<band>{tokens})(?s:{_glob_regex(after)})\\Z")
    scenes: dict[str, dict[str, str]] = {}
    for path in sorted(p.relative_to(folder).as_posix() for p in folder.glob(before + "*" + after) if p.is_file()):
        if match := pattern.match(path):
            key = path[: match.start("band")] + path[match.end("band") :]
            scenes.setdefault(key, {})[match["band"]] = path
    result = []
    for key, by_band in scenes.items():
        missing = tuple(token for token in collection.band_files if token not in by_band)
        files = tuple(by_band[token] for token in collection.band_files if token in by_band)
        family = recognise(files[0], collection.product)
        if family in FAMILIES and FAMILIES[family].one_file_a_band:
            family = "generic"
        roots = tuple(_root_of(file, family) for file in files)
        result.append(Candidate(_scene_id(key), collection, files, roots, family, missing))
    return result


def _is_scene_path(path: Path) -> bool:
    return (path.is_file() and path.suffix.lower() != ".msk") or path.suffix.upper() == ".SAFE"


def _root_of(path: str, family: str) -> str:
    root = FAMILIES[family].root(path) if family in FAMILIES else path
    return re.sub(r"\.(tiff?|jp2|img)$", "", root, flags=re.IGNORECASE)


def _glob_regex(glob: str) -> str:
    return re.sub(r"^\(\?s:(.*)\)\\[Zz]$", r"\1", fnmatch.translate(glob))


def _scene_id(path: str) -> str:
    stem = re.sub(r"\.(tiff?|jp2|img|safe)$", "", path, flags=re.IGNORECASE)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")
