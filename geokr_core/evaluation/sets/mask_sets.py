"""Sets of images with masks: how their files lie, and reading them into memory.

A layout is a function that recognises a folder and lists its items; `LAYOUTS` names them all. What is learned from a
set is written in ``mask_learning``. Layouts of sets that this project could not try on their real archives are marked so.
"""

import csv
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from rasterio.errors import NotGeoreferencedWarning

from geokr_core.errors import EvaluationError
from geokr_core.evaluation.cells import RGB
from geokr_core.evaluation.config import TaskConfig
from geokr_core.evaluation.sets.labelled_files import (
    Findings,
    Split,
    halves,
    listing,
    read_mask,
    read_pixels,
    read_split,
    rows_by_split,
)

IGNORED: Final = 255
"""Mask value of pixels that are neither learnt from nor scored."""
_UNKNOWN: Final = 254

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Item:
    """An image and its mask.

    Attributes:
        image: file of the image.
        mask: file of the mask.
        group: what must not be torn apart between training and test, e.g. the tile it was cut from.
        split: where the set itself puts it, or None.
    """

    image: Path
    mask: Path
    group: str
    split: Split | None = None


@dataclass(frozen=True)
class Layout:
    """A recognised set.

    Attributes:
        name: of the layout.
        classes: class names; a mask value is the place in it.
        codes: what masks hold → class, or `IGNORED`; colours for masks in colour, numbers for the others.
        items: of the whole set.
        bands: common names in file order, or None where they depend on the number of bands.
        may_be_shown: whether its terms let its images appear in a report.
    """

    name: str
    classes: tuple[str, ...]
    codes: Mapping[Colour | int, int]
    items: Sequence[Item]
    bands: tuple[str, ...] | None = None
    may_be_shown: bool = True


@dataclass(frozen=True)
class MaskSet:
    """A set of images with masks, in memory.

    Attributes:
        layout: name of its layout.
        classes: class names.
        bands: common names of the images' bands.
        images: (H, W, C) each, uint8 or float32.
        masks: uint8 (H, W) each, class or `IGNORED`.
        names: of the images.
        rows: items of each split; ``val`` may be empty.
        may_be_shown: whether a report may show its images.
        notes: what a person should know.
    """

    layout: str
    classes: tuple[str, ...]
    bands: tuple[str, ...]
    images: Sequence[np.ndarray]
    masks: Sequence[np.ndarray]
    names: tuple[str, ...]
    rows: Mapping[Split, np.ndarray]
    may_be_shown: bool
    notes: tuple[str, ...] = field(default=())


ISPRS: Final[Mapping[Colour | int, str]] = {
    (255, 255, 255): "impervious", (0, 0, 255): "building", (0, 255, 255): "low_vegetation", (0, 255, 0): "tree",
    (255, 255, 0): "car", (255, 0, 0): "clutter",
}  # fmt: skip
_POTSDAM_TEST = frozenset(
    f"{row}_{column}"
    for row, columns in {2: (13, 14), 3: (13, 14), 4: (13, 14, 15), 5: (13, 14, 15), 6: (13, 14, 15), 7: (13,)}.items()
    for column in columns
)
"""The official test tiles and areas; masks of all of them were released after the benchmark closed."""
_VAIHINGEN_TEST = frozenset(f"area{k}" for k in (2, 4, 6, 8, 10, 12, 14, 16, 20, 22, 24, 27, 29, 31, 33, 35, 38))
_DUBAI: Final[Mapping[Colour | int, str]] = {
    (60, 16, 152): "building", (132, 41, 246): "land", (110, 193, 228): "road", (254, 221, 58): "vegetation",
    (226, 169, 41): "water",
}  # fmt: skip
_GID: Final[Mapping[Colour | int, str]] = {
    (255, 0, 0): "built_up", (0, 255, 0): "farmland", (0, 255, 255): "forest", (255, 255, 0): "meadow",
    (0, 0, 255): "water",
}  # fmt: skip
_LOVEDA: Final[Mapping[Colour | int, str]] = {
    1: "background", 2: "building", 3: "road", 4: "water", 5: "barren", 6: "forest", 7: "agriculture",
}  # fmt: skip

SKY_CLASSES: Final = ("clear", "cloud", "thin_cloud", "shadow", "snow")
_BIOME: Final[Mapping[Colour | int, str]] = {128: "clear", 255: "cloud", 192: "thin_cloud", 64: "shadow"}
_LEVIR_CS: Final[Mapping[Colour | int, str]] = {0: "clear", 127: "cloud", 128: "cloud", 255: "snow"}
_CLOUDSEN12: Final[Mapping[Colour | int, str]] = {0: "clear", 1: "cloud", 2: "thin_cloud", 3: "shadow"}

_LANDSAT_BANDS: Final[Mapping[int, tuple[str, ...]]] = {
    3: RGB,
    4: ("blue", "green", "red", "nir"),
    8: ("blue", "green", "red", "nir", "swir16", "swir22", "cirrus", "lwir11"),
}
"""Common names by number of bands, where a layout has several: false for RGB pictures stored the other way round."""
_SENTINEL2_BANDS: Final = (
    "coastal", "blue", "green", "red", "rededge071", "rededge075", "rededge078", "nir", "nir08", "nir09", "cirrus",
    "swir16", "swir22",
)  # fmt: skip


def _codes(
    named: Mapping[Colour | int, str], classes: Sequence[str], ignored: Iterable[Colour | int]
) -> dict[Colour | int, int]:
    found: dict[Colour | int, int] = {code: classes.index(name) for code, name in named.items()}
    return found | dict.fromkeys(ignored, IGNORED)


def _inner(folder: Path, pattern: str) -> Path | None:
    """The folder itself or one right below it that holds ``pattern``."""
    for root in (folder, *sorted(p for p in folder.iterdir() if p.is_dir())):
        if any(root.glob(pattern)):
            return root
    return None


def _dubai(folder: Path) -> Layout | None:
    root = _inner(folder, "Tile */masks")
    if root is None:
        return None
    items = []
    for tile in sorted(root.glob("Tile *")):
        items += _pairs(listing(tile / "images"), listing(tile / "masks"), tile.name)
    classes = tuple(_DUBAI.values())
    return Layout("dubai", classes, _codes(_DUBAI, classes, [(155, 155, 155), (0, 0, 0)]), items, RGB)


def _potsdam(folder: Path) -> Layout | None:
    masks = sorted(folder.rglob("top_potsdam_*_label.tif"))
    if not masks:
        return None
    bands = {"RGB": RGB, "IRRG": ("nir", "red", "green"), "RGBIR": (*RGB, "nir")}
    for suffix, names in bands.items():
        images = {path.name: path for path in folder.rglob(f"top_potsdam_*_{suffix}.tif")}
        if not images:
            continue
        items = []
        for mask in masks:
            tile = mask.name.removeprefix("top_potsdam_").removesuffix("_label.tif")
            image = images.get(f"top_potsdam_{tile}_{suffix}.tif", mask.with_name(f"top_potsdam_{tile}_{suffix}.tif"))
            items.append(Item(image, mask, tile, "test" if tile in _POTSDAM_TEST else "train"))
        classes = tuple(ISPRS.values())
        return Layout("potsdam", classes, _codes(ISPRS, classes, [(0, 0, 0)]), items, names, may_be_shown=False)
    return None


def _vaihingen(folder: Path) -> Layout | None:
    masks = sorted(folder.rglob("gts_for_participants/top_mosaic_09cm_area*.tif"))
    if not masks:
        return None
    images = {path.name: path for path in folder.rglob("top/top_mosaic_09cm_area*.tif")}
    items = []
    for mask in masks:
        area = mask.stem.rpartition("_")[2]
        split: Split = "test" if area in _VAIHINGEN_TEST else "train"
        items.append(Item(images.get(mask.name, mask.parent.parent / "top" / mask.name), mask, area, split))
    if not any(item.split == "test" for item in items):  # the first release has no masks of the test areas
        items = [Item(item.image, item.mask, item.group) for item in items]
    classes, bands = tuple(ISPRS.values()), ("nir", "red", "green")
    return Layout("vaihingen", classes, _codes(ISPRS, classes, [(0, 0, 0)]), items, bands, may_be_shown=False)


def _gid(folder: Path) -> Layout | None:
    root = _inner(folder, "label_5classes")
    if root is None:
        return None
    items = []
    for mask in listing(root / "label_5classes"):
        stem = mask.stem.removesuffix("_label")
        items.append(Item(root / "image_RGB" / f"{stem}.tif", mask, stem))
    classes = tuple(_GID.values())
    return Layout("gid", classes, _codes(_GID, classes, [(0, 0, 0)]), items, RGB, may_be_shown=False)


def _loveda(folder: Path) -> Layout | None:
    root = _inner(folder, "Train/*/masks_png")
    if root is None:
        return None
    items = []
    splits: dict[str, Split] = {"Train": "train", "Val": "test"}  # the masks of its own test split are not public
    for name, split in splits.items():
        for part in sorted((root / name).iterdir()) if (root / name).is_dir() else ():
            items += _pairs(listing(part / "images_png"), listing(part / "masks_png"), part.name, split)
    classes = tuple(_LOVEDA.values())
    return Layout("loveda", classes, _codes(_LOVEDA, classes, [0]), items, RGB, may_be_shown=False)


def _l8_biome(folder: Path) -> Layout | None:
    root = _inner(folder, "train/Masks")
    if root is None:
        return None
    items = []
    names: tuple[Split, ...] = ("train", "val", "test")
    for split in names:
        items += _pairs(listing(root / split / "Images"), listing(root / split / "Masks"), split, split)
    return Layout("l8_biome", SKY_CLASSES, _codes(_BIOME, SKY_CLASSES, [0]), items)


def _levir_cs(folder: Path) -> Layout | None:
    root = _inner(folder, "*/*_label.tif*")
    if root is None:
        return None
    items = []
    for mask in sorted(root.glob("*/*_label.tif*")):
        names = [f"{mask.name.partition('_label.')[0]}.{suffix}" for suffix in ("tif", "tiff")]
        found = [path for name in names for path in root.glob(f"*/{name}")]
        items.append(Item(found[0] if found else mask.with_name(names[0]), mask, mask.stem))
    codes = _codes(_LEVIR_CS, SKY_CLASSES, [])
    return Layout("levir_cs", SKY_CLASSES, codes, items, _LANDSAT_BANDS[4], may_be_shown=False)


def _cloudsen12(folder: Path) -> Layout | None:
    masks = sorted(folder.rglob("labels/manual_hq.tif"))
    if not masks:
        return None
    items = []
    for mask in masks:
        scene = mask.parent.parent
        parts = scene.relative_to(folder).parts
        named: list[Split] = [s for s in ("train", "val", "test") if s in parts]
        items.append(Item(scene / "S2L1C.tif", mask, parts[-1], named[0] if named else None))
    return Layout("cloudsen12", SKY_CLASSES, _codes(_CLOUDSEN12, SKY_CLASSES, []), items, _SENTINEL2_BANDS)


def _folder(folder: Path) -> Layout | None:
    masks = listing(folder / "masks")
    if not masks:
        return None
    pairs = _pairs(listing(folder / "images"), masks, "")
    items = [Item(pair.image, pair.mask, pair.image.stem) for pair in pairs]
    palette = folder / "palette.csv"
    if not palette.is_file():
        return None
    classes, named = _read_palette(palette)
    return Layout("folder", classes, named, items)


def _sky_folder(folder: Path) -> Layout | None:
    masks = listing(folder / "masks")
    if not masks:
        return None
    pairs = _pairs(listing(folder / "images"), masks, "")
    items = [Item(pair.image, pair.mask, pair.image.stem) for pair in pairs]
    codes: dict[Colour | int, int] = {code: code for code in range(len(SKY_CLASSES))}
    return Layout("folder", SKY_CLASSES, codes, items)


def _read_palette(path: Path) -> tuple[tuple[str, ...], dict[Colour | int, int]]:
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    codes: dict[Colour | int, int] = {}
    try:
        for place, row in enumerate(rows):
            if "code" in row:
                codes[int(row["code"])] = place
            else:
                codes[int(row["red"]), int(row["green"]), int(row["blue"])] = place
        names = tuple(row["class"] for row in rows)
    except (KeyError, TypeError, ValueError) as error:
        raise EvaluationError(
            f"{path}: not readable as a palette ({error}); expected the columns class, red, green, blue, or class, code."
        ) from error
    if len(names) < 2 or len(set(names)) < len(names) or len(codes) < len(names):
        raise EvaluationError(f"{path}: expected at least two classes, each with its own name and colour.")
    return names, codes


def _pairs(images: Sequence[Path], masks: Sequence[Path], group: str, split: Split | None = None) -> list[Item]:
    """Images and masks of the same stem. What lacks its other half is an item all the same: reading it says so."""
    by_stem = {path.stem: path for path in masks}
    items = [
        Item(path, by_stem.pop(path.stem, path.parent.with_name("masks") / path.name), group, split) for path in images
    ]
    # A mask without its image points at where the image should be, so that reading it says what is missing.
    folder = images[0].parent if images else masks[0].parent.with_name("images") if masks else Path()
    return [*items, *(Item(folder / path.name, path, group, split) for path in by_stem.values())]


Recogniser = Callable[[Path], Layout | None]
MASK_LAYOUTS: Final[Mapping[str, Recogniser]] = {
    "dubai": _dubai, "potsdam": _potsdam, "vaihingen": _vaihingen, "gid": _gid, "loveda": _loveda, "folder": _folder,
}  # fmt: skip
SKY_LAYOUTS: Final[Mapping[str, Recogniser]] = {
    "l8_biome": _l8_biome, "cloudsen12": _cloudsen12, "levir_cs": _levir_cs, "folder": _sky_folder,
}  # fmt: skip
"""Layouts of each kind of task, tried in this order. Those of Potsdam, Vaihingen, GID, LoveDA, CloudSEN12 and Levir_CS
follow their published descriptions and were not tried on the archives themselves."""


def recognise(folder: Path, wanted: str, layouts: Mapping[str, Recogniser]) -> Layout:
    """Find out how a set's files lie.

    Args:
        folder: of the set.
        wanted: name of a layout, or ``auto``.
        layouts: those of the kind of task.

    Raises:
        EvaluationError: the folder is missing, or is none of the layouts.
    """
    if not folder.is_dir():
        raise EvaluationError(
            f"{folder}: no such folder; point `evaluation.folder` at the folder of the labelled sets and name its "
            "subfolders in `evaluation.tasks`."
        )
    if wanted != "auto" and wanted not in layouts:
        raise EvaluationError(
            f"layout {wanted!r} is not known for this kind of task; choose auto, {', '.join(layouts)}."
        )
    for name, recogniser in layouts.items():
        if wanted in {"auto", name} and (found := recogniser(folder)) is not None and found.items:
            return found
    expected = wanted if wanted != "auto" else f"one of {', '.join(layouts)}"
    raise EvaluationError(
        f"{folder}: its files do not lie as the layout {expected} has them; expected at least images/ and masks/ with "
        "files of the same names, and palette.csv. docs/tasks.md shows every layout."
    )


def read_mask_set(folder: Path, task: TaskConfig, layouts: Mapping[str, Recogniser], threads: int) -> MaskSet:
    """Read a set of images and masks.

    Args:
        folder: of the set.
        task: its layout, bands, downscaling and what to do with bad items.
        layouts: those of the kind of task.
        threads: files decoded at a time.

    Returns:
        The set. Pixels of undeclared mask colours are `IGNORED` where the policy is to skip.

    Raises:
        EvaluationError: something cannot be used and the policy is ``fail``; or nothing is left of a split.
    """
    layout = recognise(folder, task.layout, layouts)
    codes = dict(layout.codes) | dict.fromkeys(task.ignored_colours, IGNORED)
    findings = Findings(task.bad_items)
    items = _with_splits(folder, layout, task)
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        # Patches cut from scenes need not say where they lie: nothing here asks for it.
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        read = list(pool.map(lambda item: _read_item(item, codes, task.downscale), items))
    kept = []
    for item, (image, mask, problems) in zip(items, read, strict=True):
        for kind, place, message in problems:
            findings.found(kind, place, message)
        if image is not None and mask is not None:
            kept.append((item, image, mask))
    bands = _bands_of(folder, layout, task, kept, findings)
    kept = [entry for entry in kept if entry[1].shape[-1] == len(bands)]
    rows = rows_by_split([entry[0].split for entry in kept], folder, findings, "item")
    return MaskSet(
        layout=layout.name,
        classes=layout.classes,
        bands=bands,
        images=[entry[1] for entry in kept],
        masks=[entry[2] for entry in kept],
        names=tuple(entry[0].image.stem for entry in kept),
        rows=rows,
        may_be_shown=layout.may_be_shown,
        notes=(f"layout {layout.name}", *findings.notes),
    )


def _with_splits(folder: Path, layout: Layout, task: TaskConfig) -> list[Item]:
    """Every item with its split: from the split files, else as the set says, else by whole groups."""
    items = layout.items
    files: dict[Split, Path] = {
        "train": folder / "split_train.txt",
        "val": folder / "split_val.txt",
        "test": folder / "split_test.txt",
    }
    if files["train"].is_file() and files["test"].is_file():
        by_name = {key: item for item in items for key in (item.image.name, item.image.stem)}
        chosen: list[Item] = []
        for split, path in files.items():
            for name in read_split(path) if path.is_file() else ():
                if name not in by_name:
                    raise EvaluationError(f"{path}: lists {name!r}, but there is no such image. Correct the line.")
                chosen.append(Item(by_name[name].image, by_name[name].mask, by_name[name].group, split))
        both = [name for name, count in Counter(item.image for item in chosen).items() if count > 1]
        if both:
            raise EvaluationError(f"{folder}: {both[0].name} is in two splits; a test image must never be learnt from.")
        return chosen
    if task.test_groups is None and all(item.split for item in items):
        return list(items)
    groups = [item.group for item in items]
    _, test = halves(groups, task.test_groups)
    in_test = set(test)
    return [
        Item(item.image, item.mask, item.group, "test" if k in in_test else "train") for k, item in enumerate(items)
    ]


Problem = tuple[str, Path, str]


def _read_item(
    item: Item, codes: Mapping[Colour | int, int], downscale: int
) -> tuple[np.ndarray | None, np.ndarray | None, list[Problem]]:
    for path, kind in ((item.image, "image"), (item.mask, "mask")):
        if not path.is_file():
            return None, None, [(f"items left out: {kind} missing", path, f"there is no such {kind}; expected an image and a mask for every item. Fetch the set again.")]  # fmt: skip
    try:
        image, raw = read_pixels(item.image), read_mask(item.mask)
    except (OSError, ValueError) as error:
        return None, None, [("items left out: not readable", item.image, f"cannot be read ({error}); fetch it again.")]
    if raw.shape[:2] != image.shape[:2]:
        return None, None, [("items left out: image and mask differ in size", item.image, f"is {image.shape[1]} x {image.shape[0]} px, its mask {raw.shape[1]} x {raw.shape[0]} px; expected one size.")]  # fmt: skip
    mask, strange = _encode(raw, codes)
    problems: list[Problem] = []
    if strange:
        problems.append(
            (
                "masks with unknown colours, those pixels left out",
                item.mask,
                f"{strange}; expected only colours of the palette. Add them to the palette, or to `ignored_colours`.",
            )
        )
    if image.dtype != np.uint8:
        image = image.astype(np.float32)
        bad = ~np.isfinite(image).all(axis=-1)
        if bad.all():
            return None, None, [("items left out: no finite pixel", item.image, "has no pixel with finite values in all bands.")]  # fmt: skip
        if bad.any():
            problems.append(("images with pixels that are not finite, those left out", item.image, f"{int(bad.sum())} pixel(s) are not finite."))  # fmt: skip
            image[bad], mask[bad] = 0.0, IGNORED
    if not (mask != IGNORED).any():
        return None, None, [*problems, ("items left out: nothing labelled", item.mask, "no pixel bears a label.")]
    return (*_shrunk(image, mask, downscale), problems)


def _encode(raw: np.ndarray, codes: Mapping[Colour | int, int]) -> tuple[np.ndarray, str]:
    """Classes uint8 (H, W), and words about colours that are not known (empty where all are)."""
    if raw.ndim == 3:
        table = np.full(1 << 24, _UNKNOWN, dtype=np.uint8)
        for code, place in codes.items():
            if isinstance(code, tuple):
                table[(code[0] << 16) | (code[1] << 8) | code[2]] = place
        keys = (raw[..., 0].astype(np.int32) << 16) | (raw[..., 1].astype(np.int32) << 8) | raw[..., 2]
    else:
        table = np.full(1 << 16, _UNKNOWN, dtype=np.uint8)
        for code, place in codes.items():
            if isinstance(code, int):
                table[code] = place
        keys = raw.astype(np.int64).clip(0, (1 << 16) - 1)
    mask = table[keys]
    unknown = mask == _UNKNOWN
    if not unknown.any():
        return mask, ""
    values, counts = np.unique(keys[unknown], return_counts=True)
    most = int(values[counts.argmax()])
    shown = f"({most >> 16}, {most >> 8 & 255}, {most & 255})" if raw.ndim == 3 else str(most)
    mask[unknown] = IGNORED
    return mask, f"{int(unknown.sum())} pixel(s) of {len(values)} unknown colour(s), mostly {shown}"


def _shrunk(image: np.ndarray, mask: np.ndarray, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """Block means of the image, and the mask at the middle of each block."""
    if factor == 1:
        return image, mask
    height, width = (size // factor * factor for size in mask.shape)
    blocks = image[:height, :width].reshape(height // factor, factor, width // factor, factor, -1)
    means = blocks.mean(axis=(1, 3), dtype=np.float32)
    middle = factor // 2
    shrunk = np.rint(means).astype(np.uint8) if image.dtype == np.uint8 else means
    return shrunk, np.ascontiguousarray(mask[middle:height:factor, middle:width:factor])


def _bands_of(
    folder: Path,
    layout: Layout,
    task: TaskConfig,
    kept: Sequence[tuple[Item, np.ndarray, np.ndarray]],
    findings: Findings,
) -> tuple[str, ...]:
    counts = Counter(image.shape[-1] for _, image, _ in kept)
    if not counts:
        raise EvaluationError(f"{folder}: no usable item at all ({'; '.join(findings.notes)}).")
    usual = min(counts, key=lambda count: (-counts[count], count))
    bands = task.bands or layout.bands or _LANDSAT_BANDS.get(usual)
    if bands is None:
        raise EvaluationError(f"{folder}: images have {usual} bands; name them in `bands` of this task, in file order.")
    for item, image, _ in kept:
        if image.shape[-1] != len(bands):
            message = f"has {image.shape[-1]} band(s), expected {len(bands)} ({', '.join(bands)})."
            findings.found("items left out: other bands", item.image, message)
    return tuple(bands)
