"""Overlapping windows: every cell is given once, where it lies, without the border of any window."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from rasterio.crs import CRS

from geokr_core.chips.stretch import Stretch
from geokr_core.land_cover_shares.windows import Cells, cells_of_scene
from geokr_core.rasters.grid import Grid


class Scene:
    """Stands for a reader: an array of pixels."""

    def __init__(self, pixels: np.ndarray, valid: np.ndarray | None = None) -> None:
        self.pixels = pixels
        self.valid = np.ones(pixels.shape[1:], dtype=bool) if valid is None else valid
        self.asked: list[tuple[int, int]] = []

    def read(self, row: int, height: int) -> tuple[np.ndarray, np.ndarray]:
        self.asked.append((row, height))
        return self.pixels[:, row : row + height], self.valid[row : row + height]


def run(scene: Scene, cells: Cells, of_windows: object) -> tuple[np.ndarray, np.ndarray]:
    grid = Grid(CRS.from_epsg(32652), Affine(10, 0, 0, 0, -10, 0), *scene.pixels.shape[1:])
    same = Stretch((0.0,), (255.0,))
    parts = list(cells_of_scene(scene, grid, same, cells, of_windows))  # type: ignore[arg-type]
    assert [part.first for part in parts] == list(np.cumsum([0, *(len(part.valid) for part in parts)])[:-1])
    return np.concatenate([part.values for part in parts]), np.concatenate([part.valid for part in parts])


def means(side: int) -> object:
    """The mean of each cell of a window: what no window can see otherwise than another."""

    def of_windows(windows: np.ndarray) -> np.ndarray:
        num, size = windows.shape[:2]
        cell = size // side
        found: np.ndarray = windows.reshape(num, side, cell, side, cell, -1).mean(axis=(2, 4)).astype(np.float32)
        return found

    return of_windows


@pytest.mark.parametrize("shape", [(64, 64), (32, 32), (72, 104), (61, 83), (20, 200), (96, 33)])
def test_every_cell_is_given_once_and_where_it_lies(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, *shape), dtype=np.uint8)
    cells = Cells.of(Grid(CRS.from_epsg(32652), Affine.identity(), *shape), 32, 8)
    scene = Scene(pixels)
    values, valid = run(scene, cells, means(8))
    assert values.shape[:2] == (-(-shape[0] // 4), -(-shape[1] // 4)) == valid.shape
    whole = pixels[0, : shape[0] // 4 * 4, : shape[1] // 4 * 4].reshape(shape[0] // 4, 4, shape[1] // 4, 4)
    assert np.allclose(values[: shape[0] // 4, : shape[1] // 4, 0], whole.mean(axis=(1, 3)), atol=1e-3)
    assert valid.all()
    rows = [row for first, height in scene.asked for row in range(first, first + height)]
    assert rows == sorted(set(rows)), "lines are read once, from top to bottom"


def test_cells_without_data_are_none_and_windows_without_data_are_not_asked() -> None:
    pixels = np.full((1, 128, 128), 50, dtype=np.uint8)
    valid = np.ones((128, 128), dtype=bool)
    valid[:, :66] = False
    number = 0

    def counting(windows: np.ndarray) -> np.ndarray:
        nonlocal number
        number += len(windows)
        return means(8)(windows)  # type: ignore[operator, no-any-return]

    cells = Cells.of(Grid(CRS.from_epsg(32652), Affine.identity(), 128, 128), 32, 8)
    values, found = run(Scene(pixels, valid), cells, counting)
    assert not found[:, :16].any()
    assert found[:, 16:].all()
    assert number < 7 * 7
    assert np.allclose(values[:, 17:], 50)


def seams(values: np.ndarray, step: int) -> float:
    """Mean jump across lines where windows begin, over the mean jump elsewhere."""
    jumps = [np.abs(np.diff(values, axis=axis)).mean(axis=(1 - axis, 2)) for axis in (0, 1)]
    at = [np.arange(1, len(part) + 1) % step == 0 for part in jumps]
    border = np.concatenate([part[here] for part, here in zip(jumps, at, strict=True)])
    inside = np.concatenate([part[~here] for part, here in zip(jumps, at, strict=True)])
    return float(border.mean() / inside.mean())


def test_windows_that_disagree_leave_no_seams() -> None:
    """Every window adds an error to all its cells, as large as what it measures; without overlap that makes blocks."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (1, 512, 512), dtype=np.uint8)
    cells = Cells.of(Grid(CRS.from_epsg(32652), Affine.identity(), 512, 512), 32, 8)

    def wrong(windows: np.ndarray) -> np.ndarray:
        found: np.ndarray = means(8)(windows)  # type: ignore[operator]
        return found + rng.normal(0, 20, (len(windows), 1, 1, 1)).astype(np.float32)

    values, _ = run(Scene(pixels), cells, wrong)
    assert seams(values, cells.step) <= 1.1
    blocks = np.kron(rng.normal(0, 20, (32, 32)), np.ones((4, 4)))
    truth = pixels[0].reshape(128, 4, 128, 4).mean(axis=(1, 3))
    assert seams((truth + blocks)[..., None], cells.step) > 1.3, "the measure sees seams where there are some"


def test_a_network_s_map_has_no_seams(mapped_archive: object, tmp_path: Path) -> None:
    """Of a real network, whose windows see different margins."""
    from geokr_core.embeddings.config import EmbeddingsConfig
    from geokr_core.embeddings.encoder import open_encoder

    encoder = open_encoder(EmbeddingsConfig(features="multi"), mapped_archive.inputs.backbone, ("red", "green", "blue"))  # type: ignore[attr-defined]
    rng = np.random.default_rng(1)
    coarse = rng.integers(40, 216, (3, 40, 40)).repeat(8, axis=1).repeat(8, axis=2)
    pixels = (coarse + rng.normal(0, 12, coarse.shape)).clip(0, 255).astype(np.uint8)
    cells = Cells.of(Grid(CRS.from_epsg(32652), Affine.identity(), 320, 320), 32, 8)
    grid = Grid(CRS.from_epsg(32652), Affine.identity(), 320, 320)
    same = Stretch((0.0,) * 3, (255.0,) * 3)

    def encode(windows: np.ndarray) -> np.ndarray:
        return encoder.encode_cells(windows, 8)

    parts: Sequence[object] = list(cells_of_scene(Scene(pixels), grid, same, cells, encode))  # type: ignore[arg-type]
    values = np.concatenate([part.values for part in parts])  # type: ignore[attr-defined]
    scaled = (values - values.mean(axis=(0, 1))) / np.maximum(values.std(axis=(0, 1)), 1e-6)
    assert seams(scaled, cells.step) <= 1.1
