"""Ground to be mapped cell by cell: chips and the land cover of their cells, from a frozen Levir-KR or from masks.

A Levir-KR has the cells of a land-cover product. Masks are drawn by people, so that no product has a say in them; they are
cut into chips, and a cell holds the shares of the classes of its pixels.

Not here: which cells take part and how they are learnt (``tasks.land_cover_mapping``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from geokr_core.errors import EvaluationError
from geokr_core.evaluation.config import EvaluationConfig
from geokr_core.evaluation.sets.masks.layout import IGNORED
from geokr_core.evaluation.sets.masks.read import MaskSet, read_mask_set
from geokr_core.evaluation.task_kinds import LandCoverMappingConfig, MaskConfig
from geokr_core.levir_kr.dataset import open_levir_kr
from geokr_core.step.digests import found_version
from geokr_core.step.selection import even_selection


@dataclass(frozen=True)
class Chips:
    """Chips of one split.

    Attributes:
        images: uint8 (N, S, S, C).
        cells: uint8 (N, n, n, K), share of each class in each cell in 255ths; what is missing from 255 is unknown.
    """

    images: np.ndarray
    cells: np.ndarray


@dataclass(frozen=True)
class Ground:
    """Chips to label from and chips to map.

    Attributes:
        classes: names of the K classes.
        bands: common names of the C bands.
        data_version: hash of all that it was read from.
        train: chips to label from.
        test: chips to map, at other places.
        notes: what a reader needs to know about it.
    """

    classes: tuple[str, ...]
    bands: tuple[str, ...]
    data_version: str
    train: Chips
    test: Chips
    notes: tuple[str, ...] = ()


def read_ground(task: LandCoverMappingConfig, evaluation: EvaluationConfig) -> Ground:
    """Read the ground of a task, at most ``max_chips`` of each split, evenly spread.

    Raises:
        MissingInputError: there is no Levir-KR.
        EvaluationError: it knows no cells or has an empty split; masks cannot be used, see ``read_mask_set``, or give no chip.
        DatasetError: the Levir-KR is damaged.
    """
    if task.levir_kr is not None:
        return _of_levir_kr(task, task.levir_kr)
    return _of_masks(task, evaluation)


def _of_levir_kr(task: LandCoverMappingConfig, folder: Path) -> Ground:
    data = open_levir_kr(folder)
    rows = {split: even_selection(data.rows_of(split), task.max_chips) for split in ("train", "validation")}
    if not all(map(len, rows.values())):
        counts = ", ".join(f"{len(found)} of {split}" for split, found in rows.items())
        raise EvaluationError(
            f"{task.name}: {folder} has {counts}; expected chips of both. Raise `levir_kr.validation_fraction` or "
            "lower `levir_kr.place_size_deg` where it is frozen."
        )
    splits: list[Chips] = []
    for found in rows.values():
        cells = data.cells(found)
        if cells is None:
            raise EvaluationError(
                f"{task.name}: {folder} holds no land cover within chips; expected `cells.npy`. Freeze it with "
                "`proportions.cells_per_side: 8`."
            )
        splits.append(Chips(data.images(found), cells))
    train, test = splits
    return Ground(data.classes, data.bands, data.data_version, train, test)


def _of_masks(task: LandCoverMappingConfig, evaluation: EvaluationConfig) -> Ground:
    folder = evaluation.folder / task.name
    mask_task = MaskConfig(name=task.name, kind="segmentation", layout=task.layout, bad_items=task.bad_items)
    found = read_mask_set(folder, mask_task, "segmentation", evaluation.threads)
    if strange := next((image.dtype for image in found.images if image.dtype != np.uint8), None):
        raise EvaluationError(
            f"{folder}: images are {strange}; mapping by cells wants 8-bit images. Stretch them to 8 bits, or judge the set by "
            "`kind: segmentation`."
        )
    splits = []
    for split in ("train", "test"):
        chips = [
            cut_in_cells(found.images[k], found.masks[k], len(found.classes), task.chip_size_px, task.cells_per_side)
            for k in found.rows[split]
        ]
        splits.append(_evenly(chips, task.max_chips, f"{folder}: its {split} images", task.chip_size_px))
    train, test = splits
    return Ground(found.classes, found.bands, found_version(folder), train, test, _told(found))


def cut_in_cells(
    image: np.ndarray, mask: np.ndarray, num_classes: int, chip_size_px: int, cells_per_side: int
) -> Chips:
    """Cut an image and its mask into chips side by side; what is left over at the right and below is dropped.

    Args:
        image: uint8 (H, W, C).
        mask: uint8 (H, W), class or `IGNORED`.
        num_classes: K.
        chip_size_px: side S of a chip, a multiple of ``cells_per_side``.
        cells_per_side: n.
    """
    rows, columns = (size // chip_size_px for size in mask.shape)
    height, width = rows * chip_size_px, columns * chip_size_px
    tiles = image[:height, :width].reshape(rows, chip_size_px, columns, chip_size_px, image.shape[2]).swapaxes(1, 2)
    cell = chip_size_px // cells_per_side
    shape = (rows, cells_per_side, cell, columns, cells_per_side, cell)
    cut = mask[:height, :width].reshape(shape).transpose(0, 3, 1, 4, 2, 5)
    counts = np.stack([(cut == k).sum(axis=(-2, -1)) for k in range(num_classes)], axis=-1)
    shares = np.rint(counts * (255.0 / cell**2)).astype(np.uint8)
    return Chips(
        np.ascontiguousarray(tiles.reshape(rows * columns, chip_size_px, chip_size_px, image.shape[2])),
        shares.reshape(rows * columns, cells_per_side, cells_per_side, num_classes),
    )


def _evenly(chips: Sequence[Chips], most: int, whose: str, chip_size_px: int) -> Chips:
    images, cells = (np.concatenate(parts) for parts in zip(*((one.images, one.cells) for one in chips), strict=True))
    if not len(images):
        raise EvaluationError(
            f"{whose} are smaller than a chip of {chip_size_px} px; expected one at least. Lower `chip_size_px`."
        )
    taken = even_selection(np.arange(len(images)), most)
    return Chips(images[taken], cells[taken])


def _told(found: MaskSet) -> tuple[str, ...]:
    unlabelled = sum(int((mask == IGNORED).sum()) for mask in found.masks)
    return (*found.notes, *([f"{unlabelled} pixels are not labelled"] if unlabelled else []))
