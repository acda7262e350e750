"""Reading a bundle: the delivered folder is opened, its files are verified.

Not here: writing one (``backbone.build``).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from safetensors import SafetensorError
from torch import nn

from geokr_core.backbone.loader import geokr_backbone
from geokr_core.errors import BackboneError, MissingInputError
from geokr_core.networks.network import build
from geokr_core.step.digests import file_md5, folder_version

WEIGHTS: Final = "backbone.safetensors"
DESCRIPTION: Final = "backbone.json"
GOLDEN: Final = "golden.safetensors"
MODEL_CARD: Final = "MODEL_CARD.md"
STAC_ITEM: Final = "mlm.json"
LOADER: Final = "geokr_backbone.py"
BUNDLE_FILES: Final = (WEIGHTS, DESCRIPTION, GOLDEN, MODEL_CARD, STAC_ITEM, LOADER)

NORMALISATION: Final = "x = (uint8 / 255 - mean) / std, each band with its own mean and std"
FORMAT_VERSION: Final = 2
"""Of the bundles that are written; which ones are read: ``geokr_backbone.FORMAT_VERSIONS``."""
GOLDEN_TOLERANCE: Final = 1e-4
"""Largest difference of golden features, relative to the largest one: processors differ in the last digits of fp32."""


@dataclass(frozen=True)
class Bundle:
    """A backbone bundle as ``backbone.json`` describes it.

    Attributes:
        folder: where its files lie.
        model_name: name in the model registry.
        architecture: name of the network, as ``networks.architectures.spec_of`` takes it.
        libraries: libraries that the weights load into, the one that it was trained with first.
        bands: common band names in channel order.
        mean: float32 (C,), of the training chips scaled to 0-1.
        std: float32 (C,), likewise.
        chip_size_px: side of the chips it was trained on.
        gsd_m_min: finest ground sampling distance it was trained on, in metres.
        gsd_m_max: coarsest one.
        legend_hash: digest of the legend whose proportions it learned.
        data_version: data version of the Levir-KR it was trained on.
        feature_dim: length of its feature vectors.
        generated_world: whether all that it saw was generated.
    """

    folder: Path
    model_name: str
    architecture: str
    libraries: tuple[str, ...]
    bands: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray
    chip_size_px: int
    gsd_m_min: float
    gsd_m_max: float
    legend_hash: str
    data_version: str
    feature_dim: int
    generated_world: bool = False

    @property
    def bundle_data_version(self) -> str:
        """DVC's hash of the bundle itself, by which the registry and the results know it; other files there do not count."""
        return folder_version({name: file_md5(self.folder / name) for name in BUNDLE_FILES})


def open_bundle(folder: Path) -> Bundle:
    """Open a bundle whose files are those that were written; `verify_bundle` also tries the weights.

    Raises:
        MissingInputError: there is none in ``folder``.
        BackboneError: a file is missing or changed, or the format is not known.
    """
    if not (folder / DESCRIPTION).is_file():
        raise MissingInputError(f"{folder}: no backbone bundle there ({DESCRIPTION}); run `geokr backbone` first.")
    try:
        content = geokr_backbone.describe(folder)
        geokr_backbone.check_files(folder)
        return Bundle(
            folder=folder,
            model_name=str(content["model_name"]),
            architecture=str(content["architecture"]),
            libraries=tuple(str(row["library"]) for row in content["network"]["loads_into"]),
            bands=tuple(content["bands"]),
            mean=np.asarray(content["mean"], dtype=np.float32),
            std=np.asarray(content["std"], dtype=np.float32),
            chip_size_px=int(content["chip_size_px"]),
            gsd_m_min=float(content["gsd_m_min"]),
            gsd_m_max=float(content["gsd_m_max"]),
            legend_hash=str(content["legend_hash"]),
            data_version=str(content["data_version"]),
            feature_dim=int(content["feature_dim"]),
            generated_world=bool(content.get("generated_world", False)),
        )
    except geokr_backbone.BundleError as error:
        raise BackboneError(f"The bundle is refused: {error} Or build it anew: `geokr backbone --force`.") from error
    except (KeyError, TypeError, ValueError) as error:
        raise BackboneError(
            f"{folder / DESCRIPTION}: damaged or of another kind ({error}); build or download it again."
        ) from error


def verify_bundle(folder: Path) -> None:
    """Check a bundle as a receiver would: every file's sha256, strict loading, golden features.

    Uses this project's own copy of the loader, never the one inside ``folder``.

    Raises:
        MissingInputError: there is no bundle in ``folder``.
        BackboneError: a file is missing or changed, or the golden features do not come out.
    """
    bundle = open_bundle(folder)
    try:
        geokr_backbone.verify(folder, None if bundle.libraries else _own_network(bundle))
    except (geokr_backbone.BundleError, SafetensorError, KeyError, RuntimeError) as error:
        raise BackboneError(f"The bundle is refused: {error}") from error


def _own_network(bundle: Bundle) -> nn.Module:
    """The filled network of an architecture that no library has."""
    return geokr_backbone.load_into(build(bundle.architecture, len(bundle.bands)), bundle.folder)
