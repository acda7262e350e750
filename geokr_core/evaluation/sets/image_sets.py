"""Sets of images with one class each: folders of classes, with or without a given split."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, UnidentifiedImageError

from geokr_core.errors import EvaluationError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff"})

_SPLIT_SEED = 0


@dataclass(frozen=True)
class ImageSet:
    """A labelled set of images, read whole into memory.

    Attributes:
        classes: class names in alphabetical order.
        images: uint8 (N, S, S, 3), red, green, blue.
        labels: int64 (N,), index into `classes`.
        train_rows: int64, items of the training split.
        test_rows: int64, items of the test split; disjoint from `train_rows`.
        notes: what a person should know, e.g. how many images were resized.
    """

    classes: tuple[str, ...]
    images: np.ndarray
    labels: np.ndarray
    train_rows: np.ndarray
    test_rows: np.ndarray
    notes: tuple[str, ...]


def read_image_set(folder: Path, image_size_px: int, threads: int = 2) -> ImageSet:
    """Read a labelled set.

    Args:
        folder: see the module's docstring for the layout.
        image_size_px: images of another width or height are resized to this square, bilinear with antialiasing.
        threads: images decoded at a time.

    Returns:
        The set.

    Raises:
        EvaluationError: the folder is missing or empty, a split file names an image that is not there, an image cannot
            be read or is not 8-bit RGB, one is in both splits, or a class lacks training or test images.
    """
    folder, root = _roots(folder)
    split_folders = _split_folders(root)
    if split_folders:
        classes = _classes(split_folders[0])
        train, test = (_listed(part, classes, f"{part.name}/") for part in split_folders)
        notes = [f"split by its folders {split_folders[0].name} and {split_folders[1].name}"]
    else:
        classes = _classes(root)
        train, test, notes = _splits(folder, root, classes)
    _require_every_class(folder, classes, train, test)
    names = [*train, *test]
    with ThreadPoolExecutor(threads) as pool:
        decoded = list(pool.map(lambda name: _read_image(root / name, image_size_px), names))
    sizes = Counter(size for _, size in decoded)
    labels = np.array([classes.index(name.split("/")[-2]) for name in names], dtype=np.int64)
    return ImageSet(
        classes=classes,
        images=np.stack([pixels for pixels, _ in decoded]),
        labels=labels,
        train_rows=np.arange(len(train), dtype=np.int64),
        test_rows=np.arange(len(train), len(names), dtype=np.int64),
        notes=(*notes, *_size_notes(sizes, image_size_px)),
    )


def _roots(folder: Path) -> tuple[Path, Path]:
    """The set's folder, and that of its class folders."""
    if (folder / "Images").is_dir():
        return folder, folder / "Images"
    inside = [path for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []
    if len(inside) == 1 and inside[0].is_dir() and any(path.is_dir() for path in inside[0].iterdir()):
        return _roots(inside[0])
    return folder, folder


def _split_folders(root: Path) -> tuple[Path, Path] | None:
    """The folders of training and test images, where the set is laid out like that."""
    for test in ("test", "val"):
        if (root / "train").is_dir() and (root / test).is_dir():
            return root / "train", root / test
    return None


def _listed(root: Path, classes: tuple[str, ...], prefix: str) -> list[str]:
    unknown = sorted(path.name for path in root.iterdir() if path.is_dir() and path.name not in classes)
    if unknown:
        raise EvaluationError(
            f"{root}: found the class folder {unknown[0]!r}, which the training folder lacks; expected the same classes "
            "in both. Complete the set, or remove the folder."
        )
    return [
        f"{prefix}{name}/{path.name}"
        for name in classes if (root / name).is_dir()
        for path in sorted((root / name).iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES
    ]  # fmt: skip


def _classes(root: Path) -> tuple[str, ...]:
    if not root.is_dir():
        raise EvaluationError(
            f"{root}: no such folder; expected one folder of images a class. "
            "Point `evaluation.folder` at the folder of the labelled sets and name subfolders in `evaluation.tasks`."
        )
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(folders) < 2:
        raise EvaluationError(
            f"{root}: found {len(folders)} class folder(s), expected at least 2 with images in them. "
            "Lay the set out as <set>/<Class>/<image>, and fetch it again if it should be full."
        )
    return tuple(p.name for p in folders)


def _splits(folder: Path, root: Path, classes: tuple[str, ...]) -> tuple[list[str], list[str], list[str]]:
    files = [folder / "split_train.txt", folder / "split_test.txt"]
    there = [path for path in files if path.is_file()]
    if not there:
        train, test = _halves(root, classes)
        return train, test, ["no split files: every class was halved into training and test images"]
    if len(there) == 1:
        raise EvaluationError(
            f"{folder}: found {there[0].name} alone, expected split_train.txt and split_test.txt, or neither. "
            "Add the other one, or remove this one to have every class halved."
        )
    train, test = (_read_split(path, classes) for path in files)
    both = sorted(set(train) & set(test))
    if both:
        raise EvaluationError(
            f"{folder}: {len(both)} image(s) are listed for training and for testing (first: {both[0]}); expected "
            "disjoint splits. Remove them from split_train.txt: a test image must never be learnt from."
        )
    return train, test, []


def _read_split(path: Path, classes: tuple[str, ...]) -> list[str]:
    names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not names:
        raise EvaluationError(f"{path}: the split is empty; expected a line <Class>/<file> an image. Write it again.")
    for number, name in enumerate(names, start=1):
        parts = PurePosixPath(name).parts
        if len(parts) != 2 or parts[0] not in classes:
            raise EvaluationError(
                f"{path}, entry {number}: found {name!r}, expected <Class>/<file> with one of the classes "
                f"{', '.join(classes)}. Correct the line."
            )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise EvaluationError(
            f"{path}: {twice[0]!r} is listed more than once; expected every image once. Remove the repetition."
        )
    return names


def _halves(root: Path, classes: tuple[str, ...]) -> tuple[list[str], list[str]]:
    train: list[str] = []
    test: list[str] = []
    for index, name in enumerate(classes):
        files = sorted(f"{name}/{p.name}" for p in (root / name).iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        order = np.random.default_rng([_SPLIT_SEED, index]).permutation(len(files))
        half = -(-len(files) // 2)
        train += sorted(files[k] for k in order[:half])
        test += sorted(files[k] for k in order[half:])
    return train, test


def _require_every_class(folder: Path, classes: tuple[str, ...], train: Sequence[str], test: Sequence[str]) -> None:
    for split, names in (("training", train), ("test", test)):
        counts = Counter(name.split("/")[-2] for name in names)
        empty = [name for name in classes if not counts[name]]
        if empty:
            raise EvaluationError(
                f"{folder}: class {empty[0]!r} has no {split} image (so have {len(empty)} of {len(classes)} classes); "
                "expected at least one of every class. Complete the set or its split files, or remove the class folder."
            )


def _read_image(path: Path, size_px: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Pixels uint8 (S, S, 3), and the width and height that the file has."""
    try:
        with Image.open(path) as image:
            image.load()
            mode, size = image.mode, image.size
            fits = size == (size_px, size_px) or mode != "RGB"
            pixels = np.asarray(image if fits else image.resize((size_px, size_px), Image.Resampling.BILINEAR))
    except FileNotFoundError as error:
        raise EvaluationError(
            f"{path}: the split lists this image, but there is no such file; expected every listed image to be there. "
            "Fetch the set again, or take the line out of the split file."
        ) from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise EvaluationError(
            f"{path}: cannot be read as an image ({error}); expected a whole JPEG, PNG or TIFF file. "
            "Fetch the file again, or take it out of the set and its split file."
        ) from error
    if mode != "RGB" or pixels.dtype != np.uint8:
        raise EvaluationError(
            f"{path}: found an image of mode {mode} ({pixels.dtype}), expected 8-bit RGB. Convert it to 8-bit RGB."
        )
    return pixels, size


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
