"""Integers instead of floats: within half a step, constants exactly, and k-NN on EuroSAT hardly changed."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geokr_core.embeddings.config import EmbeddingsConfig
from geokr_core.embeddings.encoder import open_encoder
from geokr_core.embeddings.quantisation import quantise
from geokr_core.evaluation.protocols.probe import nearest_neighbours


def test_every_value_comes_back_within_half_a_step() -> None:
    rng = np.random.default_rng(0)
    vectors = (rng.gamma(0.3, size=(500, 24)) * 10.0 ** rng.uniform(-4, 4, 24)).astype(np.float32)
    quantised = quantise(vectors)
    assert quantised.codes.dtype == np.int8
    assert quantised.codes.min() == -127
    assert quantised.codes.max() == 127
    reach = vectors.max(axis=0) - vectors.min(axis=0)
    assert (np.abs(quantised.restored() - vectors).max(axis=0) <= reach / 254 / 2 * 1.001).all()


def test_a_constant_dimension_and_a_single_chip_are_kept_exactly() -> None:
    vectors = np.array([[3.25, -1.5]], dtype=np.float32)
    assert np.array_equal(quantise(vectors).restored(), vectors)
    several = np.stack([np.full(5, 0.1), np.arange(5)], axis=1).astype(np.float32)
    assert np.array_equal(quantise(several).restored()[:, 0], several[:, 0])


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize("features", ["last", "multi"])
def test_integers_lose_at_most_half_a_point_of_knn_on_eurosat(real_data: Path, features: str) -> None:
    folder = real_data / "tasks" / "eurosat"
    splits = {split: (folder / f"split_{split}.txt").read_text(encoding="utf-8").split() for split in ("train", "test")}
    config = EmbeddingsConfig.model_validate(
        {
            "architecture": "squeezenet1_1",
            "weights": real_data / "weights" / "imagenet_squeezenet1_1" / "squeezenet1_1_features.pth",
            "features": features,
        }
    )
    encoder = open_encoder(config, None, ["red", "green", "blue"])
    vectors, labels = {}, {}
    for split, names in splits.items():
        images = np.stack([np.asarray(Image.open(folder / name).convert("RGB")) for name in names])
        vectors[split] = np.concatenate(list(encoder.batches(images, 2)))
        labels[split] = np.array([name.split("/")[0] for name in names])
    classes, train = np.unique(labels["train"], return_inverse=True)
    test = np.searchsorted(classes, labels["test"])

    def accuracy(known: np.ndarray, asked: np.ndarray) -> float:
        return float((nearest_neighbours(known, train, asked, known, 5) == test).mean())

    exact = accuracy(vectors["train"], vectors["test"])
    # Two scenes, two scales: as an archive has them.
    restored = accuracy(quantise(vectors["train"]).restored(), quantise(vectors["test"]).restored())
    assert len(test) == 2500
    assert exact > 0.6
    assert abs(exact - restored) <= 0.005
