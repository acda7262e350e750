"""The audit on real ground: errors planted into WorldCover over Delhi."""

from pathlib import Path

import numpy as np
import pytest
import rasterio

from geokr_core.audit.disagreement import disagreement, folds_by_place
from geokr_core.audit.planting import Kind, measure
from geokr_core.embeddings.config import EmbeddingsConfig
from geokr_core.embeddings.encoder import open_encoder
from geokr_core.embeddings.regression import Predictor

CODES = (10, 20, 30, 40, 50, 60, 80, 90)
SIZE_PX = 64
BARS: dict[Kind, tuple[float, float]] = {"gross": (0.85, 0.95), "gentle": (0.55, 0.8)}
"""Average precision, and precision in the first hundred, that must be reached; a blind audit reaches 0.05 in both."""


def _chips(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Chips, the map's shares below each (cells whose centre lies in it), and centres; 90 % of the ground known."""
    images, shares, centres = [], [], []
    with rasterio.open(folder / "worldcover_2021_delhi_rebuilt.tif") as product:
        codes, to_cell = product.read(1), ~product.transform
    for path in sorted((folder / "s2_rgb").glob("*.tif")):
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
                    images.append(pixels[top : top + SIZE_PX, left : left + SIZE_PX])
                    centres.append(np.mean(corners, axis=0))
    return np.stack(images), np.stack(shares), np.stack(centres)


@pytest.mark.slow
@pytest.mark.real_data
def test_errors_planted_into_a_real_map_are_found(real_data: Path) -> None:
    images, shares, centres = _chips(real_data / "scenes" / "delhi_s2_worldcover")
    folder = real_data / "weights" / "imagenet_efficientnet_lite0"
    config = EmbeddingsConfig(
        architecture="tf_efficientnet_lite0",
        weights=folder / "tf_efficientnet_lite0_features.safetensors",
        features="multi",
        device="cpu",
    )
    encoder = open_encoder(config, None, ["red", "green", "blue"])
    features = np.concatenate(list(encoder.batches(images, 2)))
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
