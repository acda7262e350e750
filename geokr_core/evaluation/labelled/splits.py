"""The one rule by which items of a labelled set are trained on, chosen with, or tested on.

1. Split files of the set (``split_train.txt``, ``split_test.txt``, and if wanted ``split_val.txt``) always count.
2. Else `test_groups`, where the task names them.
3. Else what the set says itself by its folders, lists or label files. Where it has no labelled test items, those for
   validation are tested on; ``trainval`` beside ``test`` is trained on.
4. Else whole groups (tiles, folders, images): every fourth one is tested on.

An image in two splits is an error everywhere, whatever `bad_items` says: a test image must never be learnt from.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal, TypeVar

import numpy as np

from geokr_core.errors import EvaluationError
from geokr_core.evaluation.labelled.findings import Findings
from geokr_core.evaluation.labelled.label_files import named, read_lines

Split = Literal["train", "val", "test"]
Part = Literal["train", "val", "test", "trainval"]
"""What a set says of an item: a split, or ``trainval`` for train and val together."""

SPLITS: Final[tuple[Split, ...]] = ("train", "val", "test")
_WORDS: Final[dict[str, Part]] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
    "trainval": "trainval",
}

_Item = TypeVar("_Item", bound=Any)
"""A frozen dataclass with ``image``, ``group`` and ``part``."""


def part_of(name: str) -> Part | None:
    """The part of a set that a file or folder name speaks of, by whole words: ``latest`` is no ``test``."""
    words = [word for word in re.split(r"[^a-z]+", name.lower()) if word in _WORDS]
    parts = {_WORDS[word] for word in words}
    if parts == {"train", "val"}:
        return "trainval"
    return parts.pop() if len(parts) == 1 else None


def read_split(path: Path, findings: Findings) -> list[str]:
    """The entries of a split file, one a line, each once.

    Raises:
        EvaluationError: the file is empty or not text; or it repeats an entry and the policy is ``fail``.
    """
    names = [line.replace("\\", "/").removeprefix("./") for line in read_lines(path)]
    if not names:
        raise EvaluationError(f"{path}: the split is empty; expected an image a line. Write it again.")
    for name in sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else ():
        message = f"{name!r} is listed more than once; expected every image once. Remove the repetition."
        findings.found("split entries repeated, taken once", path, message)
    return list(dict.fromkeys(names))


def split_files(folder: Path) -> dict[Split, Path]:
    """The split files of a set; empty where it has none.

    Raises:
        EvaluationError: there is one of training and testing without the other.
    """
    there = {split: path for split in SPLITS if (path := folder / f"split_{split}.txt").is_file()}
    if there and not {"train", "test"} <= there.keys():
        raise EvaluationError(
            f"{folder}: found {named(path.name for path in there.values())} alone, expected split_train.txt and "
            "split_test.txt, or neither. Add what is missing, or remove the file to have the set split by itself."
        )
    return there


def with_splits(
    folder: Path,
    items: Sequence[_Item],
    test_groups: Sequence[str] | None,
    findings: Findings,
    form: str = "the name of an image, or its path below the set's folder",
) -> list[_Item]:
    """Items of a set with the split that each is in as its part; those in none are left out and counted.

    Args:
        folder: the set.
        items: frozen dataclasses with ``image`` (a path), ``group`` (what must not be torn apart) and ``part`` (what the
            set itself says, or None).
        test_groups: groups that the task wants tested on, or None.
        findings: what is wrong with single items.
        form: what a line of a split file is expected to be.

    Raises:
        EvaluationError: an image is in two splits; a split file names an image that is not there and the policy is
            ``fail``; a chosen group is not there, or nothing is left to learn from.
    """
    once = _each_once(folder, items, findings)
    if not once:
        raise EvaluationError(f"{folder}: no usable image is left ({'; '.join(findings.notes) or 'none listed'}).")
    if files := split_files(folder):
        return _by_files(folder, once, files, findings, form)
    said = {item.part for item in once}
    if test_groups is None and said & {"val", "test"}:
        return _by_set(once, findings)
    test = set(halves([item.group for item in once], test_groups)[1])
    return [replace(item, part="test" if k in test else "train") for k, item in enumerate(once)]


def rows_by_split(parts: Sequence[Part | None], folder: Path, findings: Findings, what: str) -> dict[Split, np.ndarray]:
    """Places of the usable items of each split, int64.

    Args:
        parts: split of each usable item, in order.
        folder: the set, for the message.
        findings: what was left out, for the message.
        what: what an item is, for the message.

    Raises:
        EvaluationError: the training or the test split has no usable item; validation may be empty.
    """
    rows: dict[Split, np.ndarray] = {}
    for split in SPLITS:
        rows[split] = np.array([k for k, found in enumerate(parts) if found == split], dtype=np.int64)
        if not len(rows[split]) and split != "val":
            raise EvaluationError(
                f"{folder}: no usable {what} is left in the {split} split ({'; '.join(findings.notes) or 'none listed'})."
            )
    return rows


def halves(groups: Sequence[str], chosen: Sequence[str] | None) -> tuple[list[int], list[int]]:
    """Training and test items of a set without a split: whole groups, never parts of one.

    Args:
        groups: of each item, e.g. the tile it was cut from.
        chosen: groups of the test split; None: every fourth group in order of names, at least one.

    Returns:
        Item numbers of training and of test.

    Raises:
        EvaluationError: a chosen group is not there, or nothing is left to learn from.
    """
    names = sorted(set(groups))
    test = list(names[3::4] or names[-1:]) if chosen is None else list(chosen)
    unknown = [name for name in test if name not in names]
    if unknown:
        raise EvaluationError(f"test_groups names {unknown[0]!r}; there are {named(names, 20)}. Correct the name.")
    if len(test) == len(names):
        raise EvaluationError(f"All {len(names)} group(s) are in the test split; expected some to learn from.")
    return [k for k, name in enumerate(groups) if name not in test], [k for k, n in enumerate(groups) if n in test]


def settled(parts: Iterable[Part], image: str, folder: Path) -> Part:
    """The one part of an image that a set names in several places; ``trainval`` only says that it is no test image.

    Raises:
        EvaluationError: they contradict each other.
    """
    found = set(parts)
    sure = found - {"trainval"}
    if len(sure) > 1 or ("trainval" in found and "test" in sure):
        raise EvaluationError(
            f"{folder}: {image} is in two splits ({named(sorted(found))}); a test image must never be learnt from. Take it "
            "out of one of them."
        )
    return sure.pop() if sure else "trainval"


def _each_once(folder: Path, items: Sequence[_Item], findings: Findings) -> list[_Item]:
    """Every image once: one that several label files list is kept with the part that any of them names."""
    by_image: dict[Path, list[_Item]] = {}
    for item in items:
        by_image.setdefault(item.image, []).append(item)
    kept = []
    for image, found in by_image.items():
        parts = [item.part for item in found if item.part is not None]
        part = settled(parts, image.name, folder) if parts else None
        # A label file of one part says more about it than one of the whole set.
        first = next((item for item in found if item.part == part), found[0])
        if any(replace(item, part=None) != replace(first, part=None) for item in found):
            message = "is labelled more than once, and not alike; expected one set of labels an image."
            findings.found("images labelled more than once, the first labels taken", image, message)
        kept.append(replace(first, part=part))
    return kept


def _by_files(
    folder: Path, items: Sequence[_Item], files: dict[Split, Path], findings: Findings, form: str
) -> list[_Item]:
    by_name: dict[str, list[int]] = {}
    for number, item in enumerate(items):
        for key in _names_of(item.image, folder):
            by_name.setdefault(key, []).append(number)
    splits: dict[int, Split] = {}
    for split, path in files.items():
        for name in read_split(path, findings):
            there = by_name.get(name, [])
            if not there:
                message = f"lists {name!r}, but there is no such file in the set; expected {form}. Correct the line."
                findings.found("split entries without an image", path, message)
                continue
            if len(there) > 1:
                raise EvaluationError(
                    f"{path}: {name!r} may be any of {named(str(items[k].image.relative_to(folder)) for k in there)}. "
                    "Write its path below the set's folder."
                )
            if there[0] in splits:
                raise EvaluationError(
                    f"{folder}: {items[there[0]].image.name} is in two splits; expected disjoint splits, since a test image "
                    f"must never be learnt from. Take it out of {files[splits[there[0]]].name} or {path.name}."
                )
            splits[there[0]] = split
    for number, item in enumerate(items):
        if number not in splits:
            findings.noted("images in no split file, left out", item.image)
    return [replace(items[number], part=split) for number, split in splits.items()]


def _names_of(image: Path, folder: Path) -> set[str]:
    """What a split file may call an image: its path below the set's folder or the end of it, with or without its ending."""
    below = PurePosixPath(image.relative_to(folder).as_posix() if image.is_relative_to(folder) else image.name)
    tails = ["/".join(below.parts[first:]) for first in range(len(below.parts))]
    return {name for tail in tails for name in (tail, tail.removesuffix(below.suffix) if below.suffix else tail)}


def _by_set(items: Sequence[_Item], findings: Findings) -> list[_Item]:
    has_test = any(item.part == "test" for item in items)
    meant: dict[Part | None, Split] = {"train": "train", "trainval": "train", "test": "test"}
    meant["val"] = "val" if has_test else "test"
    for item in items:
        if item.part is None:
            findings.noted("images in no split, left out", item.image)
    return [replace(item, part=meant[item.part]) for item in items if item.part is not None]
