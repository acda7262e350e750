"""Which scenes a folder holds, as collections of files that are read alike."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Final, TypeVar

import numpy as np
import shapely

from geokr_core.draft.headers import Box, Header, is_raster, read_header, sample
from geokr_core.draft.names import distinct, identifier
from geokr_core.draft.patterns import MOST_PATTERNS, patterns_of
from geokr_core.errors import ConfigError, MissingInputError, SceneRefusedError
from geokr_core.rasters.checksums import Checksums
from geokr_core.rasters.masks import SIDE_FILES
from geokr_core.scenes.config import SceneCollection, ScenesConfig
from geokr_core.scenes.discovery import discover
from geokr_core.scenes.inspection import inspect
from geokr_core.scenes.products.families import family, family_names, scene_heads
from geokr_core.scenes.products.generic import band_of
from geokr_core.scenes.scene import Scene
from geokr_core.step.found_files import find_files

BAND_NAMES: Final[Mapping[str, Mapping[str, str]]] = {
    r"landsat[_-]?[89]|l[co]0?[89]": {
        "1": "coastal",
        "2": "blue",
        "3": "green",
        "4": "red",
        "5": "nir",
        "6": "swir1",
        "7": "swir2",
        "8": "pan",
        "9": "cirrus",
    },
    r"landsat[_-]?[457]|l[et]0?[457]": {
        "1": "blue",
        "2": "green",
        "3": "red",
        "4": "nir",
        "5": "swir1",
        "7": "swir2",
        "8": "pan",
    },
    r"sentinel[_-]?2|s2[abc]?": {
        "1": "coastal",
        "2": "blue",
        "3": "green",
        "4": "red",
        "5": "rededge1",
        "6": "rededge2",
        "7": "rededge3",
        "8": "nir",
        "8a": "nir08",
        "11": "swir1",
        "12": "swir2",
    },
}
"""Common names of bands by their numbers, for a sensor whose name a path holds (regular expression)."""

T = TypeVar("T")

_MOST_LOOKED_AT: Final = 200
"""Scenes of a collection whose headers are read."""

_MOST_SAMPLED: Final = 24
"""Scenes of a collection whose pixels are sampled for undeclared nodata."""

_EMPTY_FRACTION: Final = 0.01
"""A scene with more pixels that are zero in every band has ground without data."""

_WORDS: Final = ("coastal", "blue", "green", "red", "nir", "swir1", "swir2", "pan")
_UNNAMED: Final = re.compile(r"band\d+")
_BAND_FILE: Final = re.compile(
    rf"(?i)(?P<before>.*(?:^|[_\-. ])(?:band|b)?0*)(?P<token>{'|'.join(_WORDS)}|\d{{1,2}}a?)(?P<after>\.\w+)"
)


@dataclass(frozen=True)
class FoundCollection:
    """Scenes of a folder that are read alike.

    Attributes:
        name: for the parameter file.
        files: pattern below the folder.
        paths: files that the pattern matches.
        num_scenes: scenes that these are.
        product: their family.
        bands: names in file order; None where the family or the files say them.
        band_files: what ``{band}`` of the pattern stands for, or None.
        nodata: value that seems to mean no data where the files do not say so, or None.
        seen_bands: names as the chain will see them; empty where no sample could be opened.
        gsd_m: finest and coarsest of the scenes that were looked at, empty without one.
        acquired: first and last date of these, empty without one.
        boxes: where these lie.
        num_looked_at: scenes whose headers were read and that can be used.
        questions: what could not be decided.
    """

    name: str
    files: str
    paths: tuple[str, ...]
    num_scenes: int
    product: str
    bands: tuple[str, ...] | None = None
    band_files: tuple[str, ...] | None = None
    nodata: int | None = None
    seen_bands: tuple[str, ...] = ()
    gsd_m: tuple[float, ...] = ()
    acquired: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()
    num_looked_at: int = 0
    questions: tuple[str, ...] = ()

    def section(self, land_cover: str) -> SceneCollection:
        """The collection as the parameter file has it."""
        return SceneCollection(
            name=self.name,
            files=self.files,
            bands=self.bands,
            band_files=self.band_files,
            nodata=self.nodata,
            land_cover=land_cover,
        )


def find_collections(folder: Path, maps: Sequence[str] = ()) -> list[FoundCollection]:
    """The collections of a folder.

    Args:
        folder: of scenes, which may hold land cover as well.
        maps: files below it that are known to be land cover.

    Returns:
        By name. Files that cannot be opened are no collection by themselves.
    """
    others = [path for path in find_files(folder, "**").files if not path.casefold().endswith(SIDE_FILES)]
    paths = [path for path in others if path not in set(maps)]
    claimed = [path for path in paths if is_raster(path) or any(family(name).claims(path) for name in family_names())]
    heads: dict[str, list[str]] = {}
    for path, (name, _) in scene_heads(claimed, "auto").items():
        heads.setdefault(name, []).append(path)
    generic = heads.pop("generic", [])
    found = [one for name, alike in heads.items() for one in _collections(name, alike, others, name)]
    found += _generic(folder, generic, others)
    inspected = [_inspected(folder, one) for one in found]
    names = distinct([one.name for one in inspected])
    numbered = [replace(one, name=name) for one, name in zip(inspected, names, strict=True)]
    return sorted(numbered, key=lambda one: one.name)


def _collections(name: str, paths: Sequence[str], others: Sequence[str], product: str) -> list[FoundCollection]:
    """One collection where one pattern matches all, else one a file; of very many files the first."""
    patterns = patterns_of(paths, others)
    if len(patterns) == 1:
        return [FoundCollection(name, patterns[0], tuple(paths), len(paths), product)]
    questions: tuple[str, ...] = ()
    if len(patterns) > MOST_PATTERNS:
        questions = (f"its {len(patterns)} files share no pattern of names; only the first {MOST_PATTERNS} are taken",)
    pairs = list(zip(patterns, paths, strict=True))[:MOST_PATTERNS]
    return [FoundCollection(name, pattern, (path,), 1, product, questions=questions) for pattern, path in pairs]


def _generic(folder: Path, paths: Sequence[str], others: Sequence[str]) -> list[FoundCollection]:
    """Rasters that no family claims: one collection a folder and layout; single bands of one place belong together."""
    headers = [header for path in paths if (header := read_header(folder, path)) is not None]
    single = [header for header in headers if header.num_bands == 1]
    by_band = _band_groups(single)
    used = {header.path for group in by_band for header in group.values()}
    found = [_one_file_a_band(folder, group, others) for group in by_band]
    layouts: dict[tuple[str, int, str, tuple[str, ...]], list[str]] = {}
    for header in headers:
        if header.path not in used:
            key = (header.folder, header.num_bands, header.kind, header.colours)
            layouts.setdefault(key, []).append(header.path)
    for key, alike in layouts.items():
        found += _collections(_name_of(folder, key[0], alike), alike, others, "generic")
    return found


def _band_groups(headers: Sequence[Header]) -> list[dict[str, Header]]:
    """Files of one place whose names differ in the band alone, by that band."""
    groups: dict[tuple[str, str, str, str], dict[str, Header]] = {}
    for header in headers:
        if match := _BAND_FILE.fullmatch(header.name):
            key = (header.folder, match["before"], match["after"], header.place)
            groups.setdefault(key, {})[match["token"]] = header
    return [group for group in groups.values() if len(group) > 1]


def _one_file_a_band(folder: Path, group: Mapping[str, Header], others: Sequence[str]) -> FoundCollection:
    tokens = sorted(group, key=lambda token: (len(token), token))
    first = group[tokens[0]]
    match = _BAND_FILE.fullmatch(first.name)
    before, after = (match["before"], match["after"]) if match else ("", "")
    place = f"{first.folder}/" if first.folder != "." else ""
    known = next(
        (names for sensor, names in BAND_NAMES.items() if re.search(rf"(?i)(?<![a-z0-9])({sensor})", first.path)), {}
    )
    bands = tuple(token.lower() if token.lower() in _WORDS else known.get(token.lower(), "") for token in tokens)
    questions: tuple[str, ...] = ()
    if not all(bands):
        questions = (f"which bands the files {', '.join(tokens)} hold is not known: give their names in `bands`",)
        bands = tuple(name or f"band{token}" for name, token in zip(bands, tokens, strict=True))
    del others
    return FoundCollection(
        _name_of(folder, first.folder, [header.path for header in group.values()]),
        f"{place}{before}{{band}}{after}",
        tuple(header.path for header in group.values()),
        1,
        "generic",
        bands,
        tuple(tokens),
        questions=questions,
    )


def _name_of(folder: Path, below: str, paths: Sequence[str]) -> str:
    """A name: of the folder that the files lie in, or of the file where it is alone there."""
    text = PurePosixPath(paths[0]).stem if len(paths) == 1 and below == "." else PurePosixPath(below).name
    return identifier(text or folder.resolve().name, "scenes")


class _HeadersOnly(Checksums):
    """No file is read as a whole: a scene that is only looked at needs no checksum."""

    def __init__(self) -> None:
        super().__init__(Path("no-memory.json"))

    def md5(self, path: Path) -> str:
        """Nothing."""
        return ""


def _spread(of: Sequence[T], most: int) -> list[T]:
    """At most so many of a sequence, evenly spread, the first and the last among them."""
    return list(of) if len(of) <= most else [of[int(place)] for place in np.linspace(0, len(of) - 1, most)]


def _inspected(folder: Path, found: FoundCollection) -> FoundCollection:
    """A collection with what the chain itself finds in the headers of its scenes."""
    config = ScenesConfig(folder=folder, collections=(found.section("unknown"),))
    try:
        candidates = discover(config).candidates
    except (ConfigError, MissingInputError) as error:
        return replace(found, questions=(*found.questions, str(error)))
    scenes, refused = [], []
    for candidate in _spread(candidates, _MOST_LOOKED_AT):
        try:
            scenes.append(inspect(folder, candidate, _HeadersOnly())[0])
        except SceneRefusedError as error:
            refused.append(str(error))
    questions = list(found.questions)
    if refused:
        questions.append(f"{len(refused)} scene(s) would be quarantined; the first: {refused[0]}")
    if not scenes:
        return replace(found, num_scenes=len(candidates), questions=tuple(questions))
    if found.product == "generic" and found.bands is None and (bands := _described_bands(folder, scenes)):
        found = replace(found, bands=bands)
        scenes = [replace(scene, bands=bands) for scene in scenes]
    nodata, doubt = _undeclared_nodata(folder, scenes)
    dates = sorted({scene.acquired for scene in scenes if scene.acquired})
    sizes = sorted({scene.gsd_m for scene in scenes})
    return replace(
        found,
        num_scenes=len(candidates),
        nodata=nodata,
        seen_bands=scenes[0].bands,
        gsd_m=tuple(dict.fromkeys((sizes[0], sizes[-1]))),
        acquired=tuple(dict.fromkeys((dates[0], dates[-1]))) if dates else (),
        boxes=tuple(_box_of(scene) for scene in scenes),
        num_looked_at=len(scenes),
        questions=(*questions, *_doubts(scenes, asked=bool(found.questions)), *doubt),
    )


def _described_bands(folder: Path, scenes: Sequence[Scene]) -> tuple[str, ...]:
    """Names that the scenes' files describe their bands by; empty where colours name them all, or descriptions do not."""
    if not any(_UNNAMED.fullmatch(name) for scene in scenes for name in scene.bands):
        return ()
    headers = [read_header(folder, scene.files[0]) for scene in scenes]
    told = {tuple(band_of(text) for text in header.descriptions) for header in headers if header is not None}
    names = next(iter(told)) if len(told) == 1 else ()
    return names if all(names) and len(set(names)) == len(names) else ()


def _doubts(scenes: Sequence[Scene], *, asked: bool) -> Iterator[str]:
    """What the scenes of a collection do not say, or say differently."""
    layouts = sorted({scene.bands for scene in scenes})
    if len(layouts) > 1:
        shown = "; ".join(", ".join(bands) for bands in layouts[:3])
        yield f"its scenes have different bands ({shown}): make a collection of each"
    if any(_UNNAMED.fullmatch(name) for name in scenes[0].bands) and not asked:
        yield f"the files do not name all of their bands ({', '.join(scenes[0].bands)}): give `bands`"
    num_undated = sum(not scene.acquired for scene in scenes)
    if num_undated:
        some = (
            "no date is known" if num_undated == len(scenes) else f"{num_undated} of {len(scenes)} scenes have no date"
        )
        yield f"{some}: give `acquired`, by which the edition of the land cover is chosen"


def _box_of(scene: Scene) -> Box:
    west, south, east, north = shapely.bounds(scene.grid.footprint())
    return float(west), float(south), float(east), float(north)


def _undeclared_nodata(folder: Path, scenes: Sequence[Scene]) -> tuple[int | None, list[str]]:
    """Zero, where many pixels of a scene are zero in every band and its file declares no missing ground; and the doubt."""
    empty, declared = [], set()
    for scene in _spread(scenes, _MOST_SAMPLED):
        header = read_header(folder, scene.files[0])
        if header is None or len(scene.files) > 1:
            continue
        if header.nodata is not None or scene.nodata is not None:
            declared.add(header.nodata if header.nodata is not None else scene.nodata)
        elif _is_partly_zero(sample(folder, header)):
            empty.append(scene.files[0])
    if not empty:
        return None, []
    which = f"{empty[0]}{f' and {len(empty) - 1} more' if len(empty) > 1 else ''} of those that were sampled"
    if declared - {0.0}:
        return None, [
            f"many pixels are zero in all bands of {which}, which declare no nodata: give them a collection with `nodata`"
        ]
    return 0, [f"`nodata: 0` is a guess: many pixels are zero in all bands of {which}, and these declare nothing"]


def _is_partly_zero(values: np.ndarray) -> bool:
    zero = (values == 0).all(axis=0)
    return bool(zero.size) and float(np.mean(zero)) > _EMPTY_FRACTION
