"""Which files and folders are scenes, and a digest of each without opening it."""

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from geokr_core.errors import ConfigError, MissingInputError
from geokr_core.rasters.masks import SIDE_FILES
from geokr_core.scenes.config import SceneCollection, ScenesConfig
from geokr_core.scenes.products.families import family, recognise, scene_heads
from geokr_core.step.found_files import FoundFiles, find_files, readable_id


@dataclass(frozen=True)
class Candidate:
    """Files that may be a scene.

    Attributes:
        scene_id: made from the path.
        collection: that its files belong to.
        files: rasters, or for products of many files the one path that leads to them.
        roots: what the names of all its files, side files included, begin with.
        family: of products.
        fault: why it cannot be used, known without opening it; empty otherwise.
    """

    scene_id: str
    collection: SceneCollection
    files: tuple[str, ...]
    roots: tuple[str, ...]
    family: str = "generic"
    fault: str = ""


@dataclass(frozen=True)
class Discovery:
    """What the scene folder holds.

    Attributes:
        candidates: by scene id, ascending.
        leftovers: files and folders of operating systems and archives that were skipped.
        repeated: links to folders that are read elsewhere.
    """

    candidates: tuple[Candidate, ...]
    leftovers: tuple[str, ...]
    repeated: tuple[str, ...]


def discover(config: ScenesConfig) -> Discovery:
    """Group the files below the scene folder into candidate scenes.

    Raises:
        MissingInputError: the folder is missing, or a collection's glob matches nothing.
        ConfigError: one file belongs to two collections.
    """
    if not config.folder.is_dir():
        raise MissingInputError(f"{config.folder}: no such scene folder; point `scenes.folder` at your scenes.")
    candidates: list[Candidate] = []
    leftovers, repeated, refused = set[str](), set[str](), set[str]()
    owner: dict[str, str] = {}
    for collection in config.collections:
        found = find_files(config.folder, collection.files.replace("{band}", "*"))
        leftovers.update(found.leftovers)
        repeated.update(found.repeated)
        unreachable = {path: reason for path, reason in found.unreachable.items() if path not in refused}
        refused.update(unreachable)
        of_collection = _unreachable(collection, unreachable) + _candidates(config.folder, collection, found)
        if not of_collection and not found.unreachable:
            raise MissingInputError(_nothing_matches(config.folder, collection))
        for file in (f for candidate in of_collection for f in candidate.files if not candidate.fault):
            if owner.setdefault(file, collection.name) != collection.name:
                raise ConfigError(
                    f"{file}: matched by the collections {owner[file]} and {collection.name}; give each its own files."
                )
        candidates += of_collection
    # Of two with one id, the one that may be used comes first and keeps it.
    candidates.sort(key=lambda candidate: (candidate.scene_id, bool(candidate.fault)))
    return Discovery(tuple(candidates), tuple(sorted(leftovers)), tuple(sorted(repeated)))


def _nothing_matches(folder: Path, collection: SceneCollection) -> str:
    some = find_files(folder, "**/*").files[:3]
    return (
        f"{folder}: no file matches `{collection.files}` of collection {collection.name!r}. "
        f"The folder holds {', '.join(some) + ' …' if some else 'no file at all'}; mend `scenes.collections`."
    )


def _unreachable(collection: SceneCollection, unreachable: Mapping[str, str]) -> list[Candidate]:
    return [
        Candidate(scene_id_of(path), collection, (path,), (path,), fault=f"{path}: {reason}")
        for path, reason in unreachable.items()
    ]


def _candidates(folder: Path, collection: SceneCollection, found: FoundFiles) -> list[Candidate]:
    if collection.band_files is not None:
        return _by_band(collection, collection.band_files, found)
    paths = [path for path in found.files if not path.casefold().endswith(SIDE_FILES)]
    paths += [path for path in found.folders if path.upper().endswith(".SAFE")]
    return [
        Candidate(
            scene_id_of(root) or scene_id_of(folder.resolve().name), collection, (path,), (_root_of(path, name),), name
        )
        for path, (name, root) in scene_heads(paths, collection.product).items()
    ]


def _by_band(collection: SceneCollection, band_files: tuple[str, ...], found: FoundFiles) -> list[Candidate]:
    before, after = collection.files.split("{band}")
    tokens = "|".join(re.escape(token) for token in band_files)
    pattern = re.compile(f"(?s:{_glob_regex(before)})(?P<band>{tokens})(?s:{_glob_regex(after)})\\Z")
    scenes: dict[str, dict[str, str]] = {}
    for path in found.files:
        if match := pattern.match(path):
            key = path[: match.start("band")] + path[match.end("band") :]
            scenes.setdefault(key, {})[match["band"]] = path
    result = []
    for key, by_band in scenes.items():
        missing = [token for token in band_files if token not in by_band]
        files = tuple(by_band[token] for token in band_files if token in by_band)
        name = recognise(files[0], collection.product)
        if family(name).one_file_a_band:
            name = "generic"
        roots = tuple(_root_of(file, name) for file in files)
        fault = f"band file(s) for {', '.join(missing)} missing beside {files[0]}" if missing else ""
        result.append(Candidate(scene_id_of(key), collection, files, roots, name, fault))
    return result


def _root_of(path: str, name: str) -> str:
    return re.sub(r"\.(tiff?|jp2|img)$", "", family(name).root(path), flags=re.IGNORECASE)


def _glob_regex(glob: str) -> str:
    # `**/` may stand for no folder at all, which fnmatch does not know.
    parts = (re.sub(r"^\(\?s:(.*)\)\\[Zz]$", r"\1", fnmatch.translate(part)) for part in glob.split("**/"))
    return "(?:.*/)?".join(parts)


def scene_id_of(path: str) -> str:
    """The id of a scene by the path of its file, or of what its files have in common, below the scene folder."""
    return readable_id(re.sub(r"\.(tiff?|jp2|img|safe)$", "", path, flags=re.IGNORECASE))
