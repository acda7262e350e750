"""A backbone as MLflow serves it: features of images as they are, a sentence for everything else."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mlflow.exceptions import MlflowException
from safetensors.torch import load_file

from geokr_core.backbone.loader import geokr_backbone
from geokr_core.backbone.loader.backbone_pyfunc import Backbone


@pytest.fixture(scope="module")
def served(bundle: Path) -> Backbone:
    made = Backbone()
    made.load_context(SimpleNamespace(artifacts={"geokr_backbone.py": str(bundle / "geokr_backbone.py")}))
    return made


def features(images: np.ndarray, bundle: Path, **arguments: Any) -> np.ndarray:
    with torch.inference_mode():
        return np.asarray(geokr_backbone.load(bundle)(geokr_backbone.prepare(images, bundle, **arguments)))


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32])  # as in Python, as from JSON
def test_raw_images_give_the_golden_features(dtype: Any, served: Backbone, bundle: Path) -> None:
    golden = load_file(bundle / "golden.safetensors")
    images = golden["images"].numpy().astype(dtype)
    np.testing.assert_allclose(served.predict(None, images), golden["features"].numpy(), atol=1e-3)
    np.testing.assert_allclose(
        served.predict(None, images.transpose(0, 2, 3, 1)), golden["features"].numpy(), atol=1e-3
    )


@pytest.mark.parametrize("least", [0, -30])
def test_images_of_16_bits_are_stretched_as_in_training(least: int, served: Backbone, bundle: Path) -> None:
    images = np.random.default_rng(0).integers(least, 3000, size=(2, 3, 64, 64))
    stored = images.astype(np.int16)
    asked = {"bits": 16, "low": [], "high": []}
    np.testing.assert_allclose(served.predict(None, images, asked), features(stored, bundle), atol=1e-3)
    low, high = [100.0, 100.0, 200.0], [2000.0, 2500.0, 2900.0]
    found = served.predict(None, images, {"bits": 16, "low": low, "high": high})
    np.testing.assert_allclose(found, features(stored, bundle, limits=(low, high)), atol=1e-3)


@pytest.mark.parametrize(
    ("images", "complaint"),
    [
        (np.full((1, 3, 64, 64), 256), "values 0 to 255, found 256 to 256. For images of 16 bits send .* bits=16"),
        (np.full((1, 3, 64, 64), -1), "found -1 to -1"),
        (np.full((1, 3, 64, 64), 0.5, np.float32), "found fractions.*normalising them is done here"),
        (np.full((1, 3, 64, 64), np.nan, np.float32), "not finite"),
        (np.zeros((1, 4, 64, 64), np.uint8), r"3 bands red, green, blue in this order, found \(1, 4, 64, 64\)"),
        (np.array([["a"]]), "found an array of <U1"),
        (np.zeros((0, 3, 64, 64)), r"shape \(0, 3, 64, 64\)"),
    ],
)
def test_served_backbone_refuses_odd_images_by_name(images: np.ndarray, complaint: str, served: Backbone) -> None:
    with pytest.raises(MlflowException, match=f"(?i){complaint}"):
        served.predict(None, images)


@pytest.mark.parametrize(
    ("params", "complaint"),
    [
        ({"bits": 12}, "`bits` is 12; expected 8 or 16"),
        ({"bits": 16, "low": [1.0]}, "Expected limits for 3 bands"),
    ],
)
def test_served_backbone_refuses_odd_parameters_by_name(
    params: dict[str, Any], complaint: str, served: Backbone
) -> None:
    with pytest.raises(MlflowException, match=complaint):
        served.predict(None, np.ones((1, 3, 64, 64), np.uint16), params)


def test_a_bundle_of_an_earlier_version_takes_bytes_and_nothing_else(served: Backbone, bundle: Path) -> None:
    old = Backbone()
    vars(old).update(vars(served))
    old._loader = SimpleNamespace(preprocess=geokr_backbone.prepare)
    images = np.random.default_rng(0).integers(0, 256, size=(1, 3, 64, 64))
    np.testing.assert_array_equal(old.predict(None, images), served.predict(None, images))
    with pytest.raises(MlflowException, match="built by an earlier version: send images of 8 bits"):
        old.predict(None, images, {"bits": 16})
