"""Serves a backbone through MLflow: images of 8 or 16 bits in, feature vectors out.

MLflow runs this file where the model is served; it lies beside the files of the bundle and uses their loader.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow.models
import numpy as np
import torch
from mlflow.exceptions import MlflowException
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
        self._loader = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self._loader)
        self._folder = path.parent
        self._loader.verify(self._folder)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # Bundles of format 1 have a loader that knows torchvision's networks alone.
        load = getattr(self._loader, "load", self._loader.into_torchvision)
        self._network = load(self._folder).to(self._device)

    # MLflow knows the hint np.ndarray and asks for no schema in it. There is none: it would turn normalised or 16-bit
    # values of a JSON request into bytes without a word, and refuse arrays of any other type before they are looked at.
    def predict(self, context: Any, model_input: np.ndarray, params: Mapping[str, Any] | None = None) -> np.ndarray:
        """Compute features.

        Args:
            context: MLflow's, not used.
            model_input: whole numbers, (B, C, H, W) or (B, H, W, C); the bands as ``backbone.json`` orders them.
            params: ``bits``: 8 (values 0 to 255, taken as they are) or 16 (stretched as in the training). ``low`` and
                ``high``, one number a band: the values that become 0 and 255, those of the whole scene; empty: those of
                each request.

        Returns:
            float32 (B, D), the pooled last stage.

        Raises:
            MlflowException: values that are not whole numbers of so many bits, e.g. images that were normalised already, or
                another shape or number of bands. Of any other error the server tells a client no more than that there was one.
        """
        asked = {"bits": 8, "low": [], "high": [], **(params or {})}
        limits = (asked["low"], asked["high"]) if len(asked["low"]) or len(asked["high"]) else None
        try:
            prepared = self._prepared(_whole_numbers(np.asarray(model_input), int(asked["bits"])), limits)
        except ValueError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error
        with torch.inference_mode():
            return np.asarray(self._network(prepared.to(self._device)).float().cpu())

    def _prepared(self, images: np.ndarray, limits: tuple[Any, Any] | None) -> torch.Tensor:
        if hasattr(self._loader, "prepare"):
            prepared: torch.Tensor = self._loader.prepare(images, self._folder, limits=limits)
        elif images.dtype == np.uint8 and limits is None:
            prepared = self._loader.preprocess(torch.from_numpy(np.array(images)), self._folder)
        else:
            raise ValueError(
                "This backbone records no stretch for 16 bits, it was built by an earlier version: send images of 8 bits."
            )
        return prepared


def _whole_numbers(images: np.ndarray, bits: int) -> np.ndarray:
    """The images as uint8, uint16 or int16."""
    if bits not in (8, 16):
        raise ValueError(f"params: `bits` is {bits}; expected 8 or 16.")
    if images.dtype.kind not in "uif" or images.size == 0:
        raise ValueError(f"Expected images, found an array of {images.dtype} and shape {images.shape}.")
    if images.dtype.kind == "f" and not (np.isfinite(images).all() and (images == np.rint(images)).all()):
        raise ValueError(
            "Expected whole numbers as images hold them, found fractions or values that are not finite. Send images as they "
            "are: normalising them is done here."
        )
    low, high = int(images.min()), int(images.max())
    kind: type[np.integer[Any]] = np.uint8 if bits == 8 else np.int16 if low < 0 else np.uint16
    if low < np.iinfo(kind).min or high > np.iinfo(kind).max:
        more = " For images of 16 bits send the parameter bits=16, with low and high of the whole scene." * (bits == 8)
        raise ValueError(f"Expected values {np.iinfo(kind).min} to {np.iinfo(kind).max}, found {low} to {high}.{more}")
    return images.astype(kind)


mlflow.models.set_model(Backbone())
