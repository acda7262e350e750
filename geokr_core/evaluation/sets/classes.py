"""Sets of images with one class each: folders of classes, with or without a given split.

``<set>/<Class>/<file>`` or ``<set>/Images/<Class>/<file>``, beside them ``split_train.txt`` and ``split_test.txt`` with lines
``<Class>/<file>``. Without split files every class is halved: so EuroSAT, UC Merced, AID and NWPU-RESISC45 come from their
archives (a folder that holds nothing but one folder, as archives like to, is stepped into). Folders ``train`` beside ``test``
or ``val``, as in RSD46-WHU, are a split. A small set may be cross-validated instead: whatever its split says, every image is
tested on once.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, Literal

import numpy as np
from PIL import Image
from sklearn.model_selection import StratifiedKFold

from geokr_core.errors import EvaluationError
from geokr_core.evaluation.labelled.findings import Findings
from geokr_core.evaluation.labelled.label_files import entries, images_in
from geokr_core.evaluation.labelled.splits import Part, part_of, split_files, with_splits
from geokr_core.rasters.image_files import LONE_GREY, UnusableImageError, read_image, read_in_threads

_SPLIT_SEED: Final = 0


@dataclass(frozen=True)
class Round:
    """What is learnt from, and what is tested on thereafter.

    Attributes:
        train_rows: int64, items to learn from.
        test_rows: int64, items to test on; disjoint from `train_rows`.
    """

    train_rows: np.ndarray
    test_rows: np.ndarray


@dataclass(frozen=True)
class ImageSet:
    """A labelled set of images, read whole into memory.

    Attributes:
        classes: class names in alphabetical order.
        images: uint8 (N, S, S, 3), red, green, blue.
        labels: int64 (N,), index into `classes`.
        rounds: the one split of the set, or each fold tested on in turn; no item is tested on twice.
        notes: what a reader needs to know about the set, e.g. how many images were resized.
    """

    classes: tuple[str, ...]
    images: np.ndarray
    labels: np.ndarray
    rounds: tuple[Round, ...]
    notes: tuple[str, ...]

    @property
    def train_rows(self) -> np.ndarray:
        """int64, items that are learnt from in any round, in order: all of them where there are folds."""
        rows: np.ndarray = np.unique(np.concatenate([each.train_rows for each in self.rounds]))
        return rows

    @property
    def test_rows(self) -> np.ndarray:
        """int64, items that are tested on, round by round."""
        return np.concatenate([each.test_rows for each in self.rounds])


@dataclass(frozen=True)
class _ClassImage:
    """An image file, its class, and where the set itself puts it."""

    image: Path
    label: str
    part: Part | None = None

    @property
    def group(self) -> str:
        """What must not be torn apart between training and test: the image."""
        return self.image.stem


@dataclass(frozen=True)
class _Read:
    """An image, resized; or what is wrong with it."""

    item: _ClassImage
    pixels: np.ndarray | None = None
    size: tuple[int, int] = (0, 0)
    is_grey: bool = False
    fault: str = ""


def read_image_set(
    folder: Path,
    image_size_px: int,
    threads: int = 2,
    bad_items: Literal["fail", "skip"] = "fail",
    folds: int | None = None,
) -> ImageSet:
    """Read a labelled set.

    Args:
        folder: class folders, or ``Images`` with class folders, or folders of splits; beside them split files, or none.
        image_size_px: images of another width or height are resized to this square, bilinear with antialiasing.
        threads: images decoded at a time.
        bad_items: whether an image that cannot be used is an error, or left out and counted.
        folds: parts of which each is tested on in turn, all classes alike in each, whatever split the set has; None: by that split.

    Returns:
        The set.

    Raises:
        EvaluationError: the folder is missing or empty; an image is in both splits; a class lacks training or test images, or has
            fewer images than there are folds; or an image cannot be read, is not 8-bit RGB, or is listed and not there, and the policy is ``fail``.
    """
    findings = Findings(bad_items)
    folder, root = _roots(folder)
    classes, wanted, notes = _split(folder, root, findings) if folds is None else _whole(root, folds)
    require = partial(_require_every_class, folder, classes, folds)
    require(wanted)
    read = _usable(read_in_threads(lambda item: _read_item(item, image_size_px), wanted, threads), findings)
    require([each.item for each in read], findings.notes)
    labels = np.array([classes.index(each.item.label) for each in read], dtype=np.int64)
    return ImageSet(
        classes=classes,
        images=np.stack([each.pixels for each in read if each.pixels is not None]),
        labels=labels,
        rounds=_one_round(read) if folds is None else _folded(labels, folds),
        notes=(*notes, *_size_notes(Counter(each.size for each in read), image_size_px), *findings.notes),
    )


def class_folders(folder: Path) -> tuple[str, ...]:
    """The classes of a set by the names of its folders; no image is opened.

    Raises:
        EvaluationError: it has fewer than two class folders, or one without images.
    """
    _, root = _roots(folder)
    parts = {part: path for path in _folders(root) if (part := part_of(path.name)) is not None}
    of_training = parts["train"] if "train" in parts and len(parts) > 1 else root
    classes = _classes(of_training)
    if empty := [name for name in classes if not images_in(of_training / name)]:
        raise EvaluationError(f"{of_training / empty[0]}: no image found; expected one folder of images a class.")
    return classes


def _roots(folder: Path) -> tuple[Path, Path]:
    """The set's folder, and that of its class folders."""
    if (folder / "Images").is_dir():
        return folder, folder / "Images"
    inside = entries(folder)
    if len(inside) == 1 and inside[0].is_dir() and any(path.is_dir() for path in entries(inside[0])):
        return _roots(inside[0])
    return folder, folder


def _split(folder: Path, root: Path, findings: Findings) -> tuple[tuple[str, ...], list[_ClassImage], list[str]]:
    """Class names, items of the training and then of the test split, and notes on how they were split."""
    classes, items, parts = _laid_out(root)
    notes = []
    if split_files(folder):
        form = f"<Class>/<file> with one of the classes {', '.join(classes)}"
        items = with_splits(folder, items, None, findings, form)
    elif parts:
        items = with_splits(folder, items, None, findings)
        names = [parts[part].name for part in ("train", "test" if "test" in parts else "val")]
        notes.append(f"split by its folders {' and '.join(names)}")
    else:
        items = _halved(items, classes)
        notes.append("no split files: every class was halved into training and test images")
    if unused := [item for item in items if item.part == "val"]:
        notes.append(f"images for validation, not used here: {len(unused)}")
    wanted = sorted((item for item in items if item.part != "val"), key=lambda item: item.part != "train")
    return classes, wanted, notes


def _whole(root: Path, folds: int) -> tuple[tuple[str, ...], list[_ClassImage], list[str]]:
    """Class names, all items class by class, and a note that each is tested on once."""
    classes, items, _ = _laid_out(root)
    whole = sorted((replace(item, part=None) for item in items), key=lambda item: classes.index(item.label))
    return classes, whole, [f"{folds} folds, each tested on in turn; what the set says of its split does not count"]


def _laid_out(root: Path) -> tuple[tuple[str, ...], list[_ClassImage], dict[Part, Path]]:
    """Class names, items, and the folders that say a split, if there are."""
    parts = {part: path for path in _folders(root) if (part := part_of(path.name)) is not None}
    if "train" in parts and len(parts) > 1:
        classes = _classes(parts["train"])
        return classes, [item for part, path in parts.items() for item in _listed(path, classes, part)], parts
    classes = _classes(root)
    return classes, _listed(root, classes, None), {}


def _one_round(read: Sequence[_Read]) -> tuple[Round, ...]:
    """The split that the items, those to train on first, came with."""
    num_train = sum(each.item.part == "train" for each in read)
    rows = np.arange(len(read), dtype=np.int64)
    return (Round(rows[:num_train], rows[num_train:]),)


def _folded(labels: np.ndarray, folds: int) -> tuple[Round, ...]:
    """Each fold tested on in turn; drawn once and for all, so that every start and seed meets the same ones."""
    drawn = StratifiedKFold(folds, shuffle=True, random_state=_SPLIT_SEED).split(np.zeros_like(labels), labels)
    return tuple(Round(train.astype(np.int64), test.astype(np.int64)) for train, test in drawn)


def _folders(root: Path) -> list[Path]:
    return [path for path in entries(root) if path.is_dir()]


def _listed(root: Path, classes: tuple[str, ...], part: Part | None) -> list[_ClassImage]:
    unknown = [path.name for path in _folders(root) if path.name not in classes]
    if unknown:
        raise EvaluationError(
            f"{root}: found the class folder {unknown[0]!r}, which the training folder lacks; expected the same classes "
            "in both. Complete the set, or remove the folder."
        )
    return [_ClassImage(path, name, part) for name in classes for path in images_in(root / name)]


def _classes(root: Path) -> tuple[str, ...]:
    if not root.is_dir():
        raise EvaluationError(
            f"{root}: no such folder; expected one folder of images a class. "
            "Point `evaluation.folder` at the folder of the labelled sets and name subfolders in `evaluation.tasks`."
        )
    folders = _folders(root)
    if len(folders) < 2:
        raise EvaluationError(
            f"{root}: found {len(folders)} class folder(s), expected at least 2 with images in them. "
            "Lay the set out as <set>/<Class>/<image>, and fetch it again if it should be full."
        )
    return tuple(path.name for path in folders)


def _halved(items: Sequence[_ClassImage], classes: tuple[str, ...]) -> list[_ClassImage]:
    """Every class halved by chance, once and for all."""
    halved: dict[Part, list[_ClassImage]] = {"train": [], "test": []}
    for index, name in enumerate(classes):
        of_class = [item for item in items if item.label == name]
        order = np.random.default_rng([_SPLIT_SEED, index]).permutation(len(of_class))
        half = -(-len(of_class) // 2)
        halved["train"] += [of_class[k] for k in np.sort(order[:half])]
        halved["test"] += [of_class[k] for k in np.sort(order[half:])]
    return [replace(item, part=part) for part, chosen in halved.items() for item in chosen]


def _require_every_class(
    folder: Path,
    classes: tuple[str, ...],
    folds: int | None,
    items: Sequence[_ClassImage],
    left_out: Sequence[str] = (),
) -> None:
    """Refuse a set whose classes lack images; what was ``left_out`` of them may be why."""
    wanted: Sequence[tuple[Part | None, str, int]] = (("train", "training ", 1), ("test", "test ", 1))
    for part, word, least in wanted if folds is None else ((None, "", folds),):
        counts = Counter(item.label for item in items if item.part == part)
        if scarce := [name for name in classes if counts[name] < least]:
            first = scarce[0]
            has = f"{counts[first]} images" if counts[first] else f"no {word}image"
            so_have = "; ".join((f"so have {len(scarce)} of {len(classes)} classes", *left_out))
            what = "one" if least == 1 else f"{least}, one for each of the `folds`,"
            raise EvaluationError(
                f"{folder}: class {first!r} has {has} ({so_have}); expected at least {what} of every class. "
                f"Complete the set{' or its split files' if folds is None else ' or take fewer folds'}, or remove the class folder."
            )


def _read_item(item: _ClassImage, size_px: int) -> _Read:
    try:
        picture = read_image(item.image)
        is_grey = picture.is_grey and picture.pixels.dtype == np.uint8
        pixels = np.repeat(picture.pixels, 3, axis=-1) if is_grey else picture.as_rgb8()
    except UnusableImageError as error:
        return _Read(item, fault=str(error))
    size = (pixels.shape[1], pixels.shape[0])
    if size != (size_px, size_px):
        pixels = np.asarray(Image.fromarray(pixels).resize((size_px, size_px), Image.Resampling.BILINEAR))
    return _Read(item, pixels, size, is_grey)


def _usable(read: Sequence[_Read], findings: Findings) -> list[_Read]:
    all_grey = all(each.is_grey for each in read if not each.fault)
    usable = []
    for each in read:
        if each.fault:
            findings.found("images left out: not readable as 8-bit RGB", each.item.image, each.fault)
        elif each.is_grey and not all_grey:
            findings.found("images left out: grey among colour images", each.item.image, LONE_GREY)
        else:
            usable.append(each)
            if each.is_grey:
                findings.noted("grey images, read as equal red, green and blue", each.item.image)
    return usable


def _size_notes(sizes: Counter[tuple[int, int]], size_px: int) -> list[str]:
    num_images = sizes.total()
    num_resized = num_images - sizes[(size_px, size_px)]
    if not num_resized:
        return []
    (width, height), count = min(sizes.items(), key=lambda item: (-item[1], item[0]))
    note = f"{num_resized} of {num_images} images were resized to {size_px} × {size_px} px"
    if num_images - count and (width, height) != (size_px, size_px):
        note += f"; {num_images - count} of them are not {width} × {height} px like the others"
    return [note]
