"""The audit on real ground: errors planted into WorldCover over Delhi, and the whole map in the wrong order."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS

from geokr_core.audit.cell_judge import Trial
from geokr_core.audit.cell_planting import measure_on_ground
from geokr_core.audit.disagreement import LEAST_EXPLAINED, ChipJudge, disagreement, folds_by_place
from geokr_core.audit.planting import Kind, measure
from geokr_core.embeddings.config import EmbeddingsConfig
from geokr_core.embeddings.encoder import Encoder, open_encoder
from geokr_core.embeddings.regression import Predictor
from geokr_core.land_cover.slots import UNKNOWN
from geokr_core.networks.architectures import Architecture
from geokr_core.proportions.agreement import complaint
from geokr_core.proportions.alignment import alignment_of
from geokr_core.proportions.quicklook import QuickLook
from geokr_core.rasters.grid import Grid

CODES = (10, 20, 30, 40, 50, 60, 80, 90)
SIZE_PX = 64
WINDOWS = 96
"""Windows along each side of the published map."""

BARS: dict[Kind, tuple[float, float]] = {"gross": (0.85, 0.95), "gentle": (0.55, 0.8)}
"""Average precision, and precision in the first hundred, that must be reached; a blind audit reaches 0.05 in both."""

BARS_WITH_CELLS: dict[Kind, tuple[float, float]] = {"gross": (0.88, 0.65), "gentle": (0.7, 0.55)}
"""Average precision of chips that know their cells, and of cells."""


def _map_of(folder: Path) -> tuple[np.ndarray, Affine]:
    """Codes of the map, and from column and row to longitude and latitude."""
    with rasterio.open(folder / "worldcover_2021_delhi_rebuilt.tif") as product:
        return product.read(1), product.transform


def _swapped(codes: np.ndarray) -> np.ndarray:
    """The map as a published data set had it: cut into 96 x 96 windows whose file names give column and row the wrong way round."""
    side = min(codes.shape) // WINDOWS
    covered = WINDOWS * side
    windows = codes[:covered, :covered].reshape(WINDOWS, side, WINDOWS, side)
    wrong = codes.copy()
    wrong[:covered, :covered] = windows.transpose(2, 1, 0, 3).reshape(covered, covered)
    return wrong


def _patches(folder: Path, step: int = 1) -> list[Path]:
    return sorted((folder / "s2_rgb").glob("*.tif"))[::step]


def _chips(
    paths: list[Path], codes: np.ndarray, to_place: Affine
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Chips, the map's shares below each (codes whose centre lies in it) and below its 8 x 8 cells, centres; 90 % of the ground known."""
    images, shares, cells, centres = [], [], [], []
    to_cell = ~to_place
    for path in paths:
        with rasterio.open(path) as scene:
            pixels, transform = np.moveaxis(scene.read(), 0, -1), scene.transform
        for top in range(0, pixels.shape[0] - SIZE_PX + 1, SIZE_PX):
            for left in range(0, pixels.shape[1] - SIZE_PX + 1, SIZE_PX):
                corners = [transform @ (left, top), transform @ (left + SIZE_PX, top + SIZE_PX)]
                (first, upper), (last, lower) = (to_cell @ corner for corner in corners)
                window = codes[round(upper) : round(lower), round(first) : round(last)]
                counts = np.bincount(window.ravel(), minlength=256)[list(CODES)]
                if counts.sum() >= 0.9 * max(window.size, 1):
                    shares.append(counts / counts.sum())
                    cells.append(_cell_shares(window))
                    images.append(pixels[top : top + SIZE_PX, left : left + SIZE_PX])
                    centres.append(np.mean(corners, axis=0))
    return np.stack(images), np.stack(shares), np.stack(cells), np.stack(centres)


def _cell_shares(window: np.ndarray) -> np.ndarray:
    """Shares of 8 x 8 cells of a window of codes, float64 (8, 8, K)."""
    rows, columns = (np.linspace(0, length, 9).round().astype(int) for length in window.shape)
    shown = window[..., None] == np.asarray(CODES)
    sums = np.add.reduceat(np.add.reduceat(shown.astype(float), rows[:-1], axis=0), columns[:-1], axis=1)
    found: np.ndarray = sums / np.maximum(sums.sum(axis=-1, keepdims=True), 1)
    return found


NETWORKS = {
    "tf_efficientnet_lite0": "imagenet_efficientnet_lite0/tf_efficientnet_lite0_features.safetensors",
    "mobilenet_v2": "imagenet_mobilenet_v2/mobilenet_v2_features.safetensors",
}


def _encoder(real_data: Path, architecture: Architecture = "tf_efficientnet_lite0") -> Encoder:
    """All stages of a network with ImageNet weights."""
    config = EmbeddingsConfig(
        architecture=architecture,
        weights=real_data / "weights" / NETWORKS[architecture],
        features="multi",
        device="cpu",
    )
    return open_encoder(config, None, ["red", "green", "blue"])


def _features(real_data: Path, images: np.ndarray, architecture: Architecture = "tf_efficientnet_lite0") -> np.ndarray:
    return np.concatenate(list(_encoder(real_data, architecture).batches(images, 2)))


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.timeout(2400)
def test_cells_find_errors_of_a_part_of_a_chip(real_data: Path) -> None:
    ground, encoder = real_data / "scenes" / "delhi_s2_worldcover", _encoder(real_data)
    images, _, shares, centres = _chips(_patches(ground), *_map_of(ground))
    vectors = np.concatenate(
        [
            one.astype(np.float16)
            for one in encoder.batches(images, 2, lambda batch: encoder.encode_cells(batch, shares.shape[1]))
        ]
    )
    folds = folds_by_place(centres[:, 0], centres[:, 1], 0.05, 5)
    known = shares.sum(axis=-1) > 0.9
    chosen = np.sort(np.random.default_rng([7, 1]).permutation(np.flatnonzero(known.ravel()))[:40_000])
    trial = Trial(
        rows=np.arange(len(images)),
        chip_vectors=(_features(real_data, images),),
        chip_folds=folds,
        vectors=vectors,
        shares=shares,
        known=known,
        folds=np.broadcast_to(folds[:, None, None], known.shape).copy(),
        fitted=chosen,
    )
    for number, (kind, (least_of_chips, least_of_cells)) in enumerate(BARS_WITH_CELLS.items()):
        found = [measure_on_ground(trial, kind, 0.05, np.random.default_rng([7, number, draw])) for draw in range(5)]
        both = np.mean([[one.average_precision for one in pair] for pair in found if pair is not None], axis=0)
        assert both[0] >= least_of_chips, (kind, both)
        assert both[1] >= least_of_cells, (kind, both)


@pytest.mark.slow
@pytest.mark.real_data
def test_errors_planted_into_a_real_map_are_found(real_data: Path) -> None:
    ground = real_data / "scenes" / "delhi_s2_worldcover"
    images, shares, _, centres = _chips(_patches(ground), *_map_of(ground))
    features = _features(real_data, images)
    folds = folds_by_place(centres[:, 0], centres[:, 1], 0.05, 5)
    predictor = Predictor(features, folds)
    for kind, (least_precision, least_at_100) in BARS.items():
        found = [
            measure(
                shares, lambda s: disagreement(predictor, s, folds).score, kind, 0.05, np.random.default_rng([0, k])
            )
            for k in range(5)
        ]
        precisions = [one.average_precision for one in found if one is not None]
        heads = [one.precision_at_100 for one in found if one is not None]
        assert np.mean(precisions) >= least_precision, (kind, precisions)
        assert np.mean(heads) >= least_at_100, (kind, heads)


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.timeout(2400)
def test_two_networks_find_more_than_one(real_data: Path) -> None:
    """The same draws: gentle errors in each, gross ones on the mean."""
    ground = real_data / "scenes" / "delhi_s2_worldcover"
    images, shares, _, centres = _chips(_patches(ground), *_map_of(ground))
    folds = folds_by_place(centres[:, 0], centres[:, 1], 0.05, 5)
    first, second = (_features(real_data, images, name) for name in ("tf_efficientnet_lite0", "mobilenet_v2"))
    judges = [ChipJudge.of((first,), folds), ChipJudge.of((first, second), folds)]
    for number, kind in enumerate(BARS):
        gains = [_gain(judges, shares, kind, [11, number, draw]) for draw in range(5)]
        assert np.mean(gains) > 0, (kind, gains)
        assert kind == "gross" or min(gains) > 0.01, (kind, gains)


def _gain(judges: list[ChipJudge], shares: np.ndarray, kind: Kind, seed: list[int]) -> float:
    """By how much the second judge's average precision is above the first one's, of the same planted errors."""
    found = [
        measure(shares, lambda s, judge=judge: judge(s).score, kind, 0.05, np.random.default_rng(seed))
        for judge in judges
    ]
    one, two = (each.average_precision for each in found if each is not None)
    return two - one


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.timeout(2400)
def test_a_map_whose_rows_and_columns_are_swapped_is_seen_at_once(real_data: Path) -> None:
    ground = real_data / "scenes" / "delhi_s2_worldcover"
    codes, to_place = _map_of(ground)
    explained, complaints, vectors = {}, {}, {}
    paths = _patches(ground, 6)
    for name, shown in (("as published", codes), ("swapped", _swapped(codes))):
        images, shares, _, centres = _chips(paths, shown, to_place)
        keys = [tuple(centre) for centre in centres]
        if not vectors:
            vectors = dict(zip(keys, _features(real_data, images), strict=True))
        known = [k for k, key in enumerate(keys) if key in vectors]
        features = np.stack([vectors[keys[k]] for k in known])
        folds = folds_by_place(centres[known, 0], centres[known, 1], 0.05, 5)
        explained[name] = disagreement(Predictor(features, folds), shares[known], folds).explained
        complaints[name] = complaint([_verdict(path, shown, to_place) for path in paths[::10]])
    assert explained["as published"] >= 0.3, explained
    assert explained["swapped"] < LEAST_EXPLAINED, explained
    assert complaints["as published"] is None
    assert "different ground" in str(complaints["swapped"])


def _verdict(path: Path, codes: np.ndarray, to_place: Affine) -> str:
    """What `geokr alignment` says of a patch."""
    with rasterio.open(path) as scene:
        pixels, transform = scene.read(), scene.transform
    lon = transform.c + transform.a * (np.arange(pixels.shape[2]) + 0.5)
    lat = transform.f + transform.e * (np.arange(pixels.shape[1]) + 0.5)
    columns, rows = ((lon - to_place.c) / to_place.a).astype(int), ((lat - to_place.f) / to_place.e).astype(int)
    rows, columns = np.clip(rows, 0, codes.shape[0] - 1), np.clip(columns, 0, codes.shape[1] - 1)
    slots = np.full(256, UNKNOWN, dtype=np.uint8)
    slots[list(CODES)] = np.arange(len(CODES))
    grid = Grid(CRS.from_epsg(4326), transform, *pixels.shape[1:])
    shown = QuickLook(pixels, np.ones(pixels.shape[1:], dtype=bool), slots[codes[np.ix_(rows, columns)]], grid)
    return alignment_of(path.stem, "worldcover", [shown], len(CODES), tuple(range(-3, 4))).verdict(1.0)
