"""Serves a backbone through MLflow: normalised images in, feature vectors out.

MLflow runs this file where the model is served; it lies beside the files of the bundle and uses their loader.
"""

import importlib.util
from pathlib import Path
from typing import Any

import mlflow.models
import numpy as np
import torch
from mlflow.pyfunc.model import PythonModel


class Backbone(PythonModel):
    """Feature vectors of images, in fp32 on whatever device torch finds."""

    def load_context(self, context: Any) -> None:
        """Check the bundle and load it.

        Raises:
            ValueError: a file of the bundle is missing or was changed.
        """
        path = Path(context.artifacts["geokr_backbone.py"])
        spec = importlib.util.spec_from_file_location("geokr_backbone", path)
        if spec is None or spec.loader is None:
            raise ValueError(f"{path}: cannot be imported; register the backbone again.")
        loader = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loader)
        loader.verify(path.parent)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # Bundles of format 1 have a loader that knows torchvision's networks alone.
        load = getattr(loader, "load", loader.into_torchvision)
        self._network = load(path.parent).to(self._device)
        self._num_bands = len(loader.describe(path.parent)["bands"])

    # MLflow knows the hint np.ndarray and asks for no schema in it: the registered signature is the schema.
    def predict(self, context: Any, model_input: np.ndarray, params: Any = None) -> np.ndarray:
        """Compute features.

        Args:
            context: MLflow's, not used.
            model_input: float32 (B, C, H, W), normalised as ``geokr_backbone.preprocess`` does it.
            params: not used.

        Returns:
            float32 (B, D), the pooled last stage.

        Raises:
            ValueError: integers (images that were not normalised), another shape or number of bands, or values that are
                not finite.
        """
        given = np.asarray(model_input)
        if given.dtype.kind != "f":
            raise ValueError(
                f"Expected normalised images of float32, found {given.dtype}; normalise them with geokr_backbone.preprocess."
            )
        if given.ndim != 4 or given.shape[1] != self._num_bands:
            raise ValueError(f"Expected images of shape (B, {self._num_bands}, H, W), found {given.shape}.")
        if not np.isfinite(given).all():
            raise ValueError(
                "Found values that are not finite among the images; expected finite ones: fill what is missing."
            )
        images = torch.from_numpy(np.array(given, dtype=np.float32)).to(self._device)
        with torch.inference_mode():
            return np.asarray(self._network(images).float().cpu())


mlflow.models.set_model(Backbone())
