"""Reading a set of images with masks into memory."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np

from geokr_core.errors import EvaluationError
from geokr_core.evaluation.cells import RGB
from geokr_core.evaluation.labelled.findings import Findings
from geokr_core.evaluation.labelled.splits import Split, rows_by_split, with_splits
from geokr_core.evaluation.sets.masks.layout import IGNORED, Code, FoundSet, Item, recognise
from geokr_core.evaluation.task_kinds import MaskConfig
from geokr_core.rasters.image_files import (
    LONE_GREY,
    Picture,
    RawMask,
    UnusableImageError,
    read_image,
    read_in_threads,
    read_mask,
)

_UNKNOWN: Final = 254

_COMMON_NAME: Final = re.compile(
    r"coastal|blue|green|yellow|red|rededge(\d{3})?|nir(0[89])?|cirrus|swir(16|22)?|lwir(1[12])?|pan"
)
"""Common names of bands, as the STAC extension ``eo`` lists them."""


@dataclass(frozen=True)
class MaskSet:
    """A set of images with masks, in memory.

    Attributes:
        layout: name of its layout.
        classes: class names.
        bands: common names of the images' bands.
        images: (H, W, C) each, uint8 or float32.
        masks: uint8 (H, W) each, class or `IGNORED`.
        names: of the items.
        rows: items of each split; ``val`` may be empty.
        may_be_shown: whether a report may show its images.
        notes: what a reader needs to know about the set.
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


@dataclass(frozen=True)
class _Read:
    """An item as its files hold it, shrunk, and what is wrong with it."""

    item: Item
    image: Picture | None = None
    mask: np.ndarray | None = None
    problems: tuple[tuple[str, Path, str], ...] = ()


def read_mask_set(folder: Path, task: MaskConfig, kind: str, threads: int) -> MaskSet:
    """Read a set of images and masks.

    Args:
        folder: of the set.
        task: its layout, bands, downscaling and what to do with bad items.
        kind: of the task whose layouts are tried.
        threads: files decoded at a time.

    Returns:
        The set. Pixels of undeclared mask colours are `IGNORED` where the policy is to skip.

    Raises:
        EvaluationError: something cannot be used and the policy is ``fail``; or nothing is left of a split.
    """
    findings = Findings(task.bad_items)
    found = recognise(folder, task.layout, kind, findings)
    codes = _codes(found, task)
    items = with_splits(folder, found.items, task.test_groups, findings)
    kept = []
    for read in read_in_threads(lambda item: _read_item(item, codes, task.downscale), items, threads):
        for kind, place, message in read.problems:
            findings.found(kind, place, message)
        if read.image is not None and read.mask is not None:
            kept.append((read.item, read.image, read.mask))
    kept = _without_lone_grey(kept, findings)
    _require_one_scaling([(item.image, image.scaling) for item, image, _ in kept])
    bands = task.bands or bands_of(folder, found, [image for _, image, _ in kept], findings)
    usable = []
    for item, picture, mask in kept:
        image = _with_bands(item, picture, mask, bands, findings)
        if image is not None:
            usable.append((item, image, mask))
    rows = rows_by_split([item.part for item, _, _ in usable], folder, findings, "item")
    return MaskSet(
        layout=found.name,
        classes=found.classes,
        bands=bands,
        images=[image for _, image, _ in usable],
        masks=[mask for _, _, mask in usable],
        names=tuple(item.name for item, _, _ in usable),
        rows=rows,
        may_be_shown=found.may_be_shown,
        notes=(f"layout {found.name}", *findings.notes),
    )


def _codes(found: FoundSet, task: MaskConfig) -> dict[Code, int]:
    """What masks hold → class, with what the task ignores; in the one form that the masks of the set have."""
    codes = dict(found.codes)
    in_colour = any(isinstance(code, tuple) for code in codes)
    for code in task.ignored_colours:
        if in_colour:
            codes[(code, code, code) if isinstance(code, int) else code] = IGNORED
        elif isinstance(code, int):
            codes[code] = IGNORED
        elif len(set(code)) == 1:
            codes[code[0]] = IGNORED
        else:
            raise EvaluationError(
                f"{task.name}: `ignored_colours` names the colour {code}, but the masks hold codes; name the code."
            )
    return codes


def _read_item(item: Item, codes: Mapping[Code, int], downscale: int) -> _Read:
    for path, kind in ((item.image, "image"), (item.mask, "mask")):
        if not path.is_file():
            message = f"there is no such {kind}; expected an image and a mask for every item. Fetch the set again."
            return _Read(item, problems=((f"items left out: {kind} missing", path, message),))
    place = item.image
    try:
        image = read_image(place)
        place = item.mask
        raw = read_mask(place, holds_codes=not any(isinstance(code, tuple) for code in codes))
    except UnusableImageError as error:
        return _Read(item, problems=(("items left out: not readable", place, str(error)),))
    height, width = image.pixels.shape[:2]
    if raw.values.shape[:2] != (height, width):
        shown = (
            f"is {width} x {height} px, its mask {raw.values.shape[1]} x {raw.values.shape[0]} px; expected one size."
        )
        return _Read(item, problems=(("items left out: image and mask differ in size", item.image, shown),))
    mask, strange = encoded(raw, codes)
    problems = []
    if strange:
        message = f"{strange}; expected only colours of the palette. Add them to the palette, or to `ignored_colours`."
        problems.append(("masks with unknown colours, those pixels left out", item.mask, message))
    pixels, fault = _finite(image, mask)
    if fault:
        kind = "images with pixels that are not finite, those left out"
        problems.append((kind, item.image, fault))
    if not (mask != IGNORED).any():
        message = "no pixel is labelled, or no labelled pixel is known in all bands."
        problems.append(("items left out: nothing labelled", item.mask, message))
        return _Read(item, problems=tuple(problems))
    if min(mask.shape) < downscale:
        message = f"is {width} x {height} px, expected {downscale} px or more a side. Lower `downscale`."
        problems.append(("items left out: smaller than a shrunk pixel", item.image, message))
        return _Read(item, problems=tuple(problems))
    pixels, mask = _shrunk(pixels, mask, downscale)
    return _Read(item, replace(image, pixels=pixels, valid=None), mask, tuple(problems))


def _finite(image: Picture, mask: np.ndarray) -> tuple[np.ndarray, str]:
    """Pixels uint8 or float32 without anything that is no number; ``mask`` is changed where they mean nothing.

    Returns:
        The pixels, and words about numbers that are missing where the file does not say so (empty where none are).
    """
    unknown = np.zeros(mask.shape, dtype=bool) if image.valid is None else ~image.valid
    if image.pixels.dtype == np.uint8:
        mask[unknown] = IGNORED
        return image.pixels, ""
    pixels = image.pixels.astype(np.float32)
    bad = ~np.isfinite(pixels).all(axis=-1)
    num_unsaid = int((bad & ~unknown).sum())
    pixels[bad | unknown], mask[bad | unknown] = 0.0, IGNORED
    return pixels, f"{num_unsaid} pixel(s) are not finite." if num_unsaid else ""


def encoded(raw: RawMask, codes: Mapping[Code, int]) -> tuple[np.ndarray, str]:
    """Classes of a mask.

    Args:
        raw: the mask.
        codes: what masks hold → class, or `IGNORED`.

    Returns:
        Classes uint8 (H, W), `IGNORED` where nothing is labelled, and words about what is not known (empty where all is).
        A code that is listed counts even where the file declares it as nodata; one that is only declared is no label.
    """
    values = raw.values
    mask = np.full(values.shape[:2], _UNKNOWN, dtype=np.uint8)
    for code, place in codes.items():
        if isinstance(code, tuple) == (values.ndim == 3):
            same = values == (np.array(code, dtype=np.uint8) if isinstance(code, tuple) else code)
            mask[same.all(axis=-1) if values.ndim == 3 else same] = place
    if isinstance(raw.nodata, tuple):
        mask[(values == np.array(raw.nodata)).all(axis=-1) & (mask == _UNKNOWN)] = IGNORED
    elif values.ndim == 2:
        unlabelled = ~np.isfinite(values) if values.dtype.kind == "f" else np.zeros(values.shape, dtype=bool)
        if raw.nodata is not None:
            unlabelled |= values == raw.nodata
        mask[unlabelled & (mask == _UNKNOWN)] = IGNORED
    if raw.known is not None:
        mask[~raw.known] = IGNORED
    unknown = mask == _UNKNOWN
    if not unknown.any():
        return mask, ""
    strange, counts = np.unique(values[unknown], return_counts=True, axis=0)
    most = strange[counts.argmax()].tolist()
    mask[unknown] = IGNORED
    shown = tuple(most) if isinstance(most, list) else most
    return mask, f"{int(unknown.sum())} pixel(s) of {len(strange)} unknown colour(s), mostly {shown}"


_Kept = tuple[Item, Picture, np.ndarray]


def _without_lone_grey(kept: Sequence[_Kept], findings: Findings) -> list[_Kept]:
    """Grey pictures among colour ones are faults; where all are grey, that is what the set is."""
    if all(image.is_grey for _, image, _ in kept):
        return list(kept)
    for item, image, _ in kept:
        if image.is_grey:
            findings.found("items left out: grey among colour images", item.image, LONE_GREY)
    return [entry for entry in kept if not entry[1].is_grey]


def _require_one_scaling(images: Sequence[tuple[Path, tuple[tuple[float, float], ...]]]) -> None:
    """Refuse images that store the same reflectance as different numbers."""
    first: dict[tuple[tuple[float, float], ...], Path] = {}
    for path, scaling in images:
        first.setdefault(scaling, path)
    if len(first) > 1:
        shown = "; ".join(f"{path.name}: {list(scaling) or 'none'}" for scaling, path in list(first.items())[:2])
        raise EvaluationError(
            f"{images[0][0].parent}: its images declare different scales and offsets ({shown}), so that the same value is stored as "
            "different numbers; expected one for all. Write physical values, e.g. with `gdal_translate -unscale -ot Float32`."
        )


def bands_of(folder: Path, found: FoundSet, images: Sequence[Picture], findings: Findings) -> tuple[str, ...]:
    """Common names of the images' bands: as the layout or the files name them; three bands are red, green, blue.

    Args:
        folder: of the set.
        found: its layout.
        images: some or all of its images.
        findings: hears that grey images are taken for colour ones.

    Raises:
        EvaluationError: there is no image, or nothing says which bands they have.
    """
    counts = Counter(image.pixels.shape[-1] for image in images)
    if not counts:
        raise EvaluationError(f"{folder}: no usable item at all ({'; '.join(findings.notes)}).")
    usual = min(counts, key=lambda count: (-counts[count], count))
    by_layout = {len(bands): bands for bands in found.bands}
    if usual in by_layout or len(by_layout) == 1:
        return by_layout.get(usual) or next(iter(by_layout.values()))
    names = {image.band_names for image in images if len(image.band_names) == usual}
    named = next(iter(names)) if len(names) == 1 else ()
    if named and len(set(named)) == len(named) and all(_COMMON_NAME.fullmatch(name) for name in named):
        return named
    if usual == len(RGB) or (usual == len(RGB) + 1 and all(image.last_is_alpha for image in images)):
        return RGB
    if usual == 1 and all(image.is_grey for image in images):
        findings.noted("grey images, read as equal red, green and blue", folder)
        return RGB
    raise EvaluationError(
        f"{folder}: images have {usual} bands, and nothing says which; name them in `bands` of this task, in file order, e.g. "
        "`bands: [blue, green, red, nir]`."
    )


def _with_bands(
    item: Item, picture: Picture, mask: np.ndarray, bands: tuple[str, ...], findings: Findings
) -> np.ndarray | None:
    """The image with the bands of the set; ``mask`` is changed where it means nothing. None: it is left out."""
    if picture.last_is_alpha and picture.pixels.shape[-1] == len(bands) + 1:
        picture = picture.without_alpha()
        if picture.valid is not None:
            mask[~picture.valid] = IGNORED
    image = picture.pixels
    if picture.is_grey and bands == RGB:
        image = np.repeat(image, len(RGB), axis=-1)
    if image.shape[-1] != len(bands):
        message = f"has {image.shape[-1]} band(s), expected {len(bands)} ({', '.join(bands)})."
        findings.found("items left out: other bands", item.image, message)
        return None
    return image


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
