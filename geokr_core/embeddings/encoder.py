"""The network that embeds: opened from a bundle or from the table of architectures, and run over chips.

A batch is computed on one thread whatever the machine, and several batches at a time: so the bytes of a vector do not
depend on the number of threads, and small networks run faster than with the threads of torch inside each layer.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from geokr_core.backbone.bundle import WEIGHTS, open_bundle
from geokr_core.embeddings.config import EmbeddingsConfig
from geokr_core.errors import EmbeddingsError
from geokr_core.networks.architectures import Features, feature_dim, spec_of
from geokr_core.networks.network import build, cell_features, pooled
from geokr_core.networks.normalisation import Normalisation
from geokr_core.networks.runtime import device_of, one_thread
from geokr_core.networks.weights import imagenet_weights, load_initial_weights, load_weights
from geokr_core.step.digests import file_md5, text_digest
from geokr_core.step.threads import in_order, usable_cores

BATCH_SIZE = 64
"""Chips of a batch: many enough for the processor, and fixed, because the last digits of a vector may depend on it."""


@dataclass(frozen=True)
class Encoder:
    """A network that turns chips into vectors.

    Attributes:
        model: name of the bundle, or of the architecture.
        version: data version of the bundle, or md5 of the file of weights.
        architecture: name of the network in the table of architectures.
        bands: common band names in the order that the network sees them.
        channels: positions of these bands in the chips.
        mean: channel means of images scaled to 0-1.
        std: channel standard deviations, likewise.
        features: pooled last stage, or all stages side by side.
        gsd_m: finest and coarsest ground sampling distance that it was trained on; empty where unknown.
        network: in evaluation mode, on the device.
        device: where it runs.
        bundle: folder of the bundle that it was opened from, if any.
    """

    model: str
    version: str
    architecture: str
    bands: tuple[str, ...]
    channels: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    features: Features
    gsd_m: tuple[float, ...]
    network: nn.Module
    device: torch.device
    bundle: Path | None = None

    @property
    def num_dimensions(self) -> int:
        """Length of a vector."""
        return feature_dim(self.architecture, self.features)

    @property
    def stages(self) -> dict[str, tuple[int, int]]:
        """First dimension and the one after the last of each stage in a vector."""
        channels = spec_of(self.architecture).stage_channels
        if self.features == "last":
            return {"stage4": (0, channels[-1])}
        ends = np.cumsum(channels).tolist()
        return {f"stage{k + 1}": (end - channels[k], end) for k, end in enumerate(ends)}

    @property
    def identity(self) -> str:
        """Digest of everything in the encoder that a vector depends on."""
        parts = [self.model, self.version, self.architecture, self.bands, self.channels, self.mean, self.std]
        return text_digest([*parts, self.features])

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Vectors of a batch of chips, computed in the calling thread.

        Args:
            images: uint8 (B, H, W, C), bands as in the chips.

        Returns:
            float32 (B, D).

        Raises:
            BackboneError: the chips are too small for the network.
        """
        with torch.inference_mode():
            found: np.ndarray = pooled(self.network, self._prepared(images), self.features).cpu().numpy()
        return found

    def encode_cells(self, images: np.ndarray, cells_per_side: int) -> np.ndarray:
        """Vectors of the cells of a batch of chips, computed in the calling thread.

        Args:
            images: uint8 (B, H, W, C), bands as in the chips.
            cells_per_side: cells n along each side.

        Returns:
            float32 (B, n, n, D), rows and columns as those of the pixels.

        Raises:
            BackboneError: the chips are too small for the network.
        """
        with torch.inference_mode():
            maps = cell_features(self.network, self._prepared(images), cells_per_side, self.features)
            found: np.ndarray = maps.contiguous().cpu().numpy()
        return found

    def _prepared(self, images: np.ndarray) -> torch.Tensor:
        chosen = images[..., list(self.channels)]  # a copy, also where the bands are those of the chips
        return self._normalisation(torch.from_numpy(np.ascontiguousarray(chosen)).to(self.device))

    @property
    def _normalisation(self) -> Normalisation:
        return Normalisation(torch.tensor(self.mean, device=self.device), torch.tensor(self.std, device=self.device))

    def batches(
        self, images: np.ndarray, workers: int, encode: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> Iterator[np.ndarray]:
        """Vectors of many chips, batch after batch.

        Args:
            images: uint8 (N, H, W, C), may be mapped into memory.
            workers: batches computed at the same time, each on one thread; on a GPU one.
            encode: what is done with a batch of images; None: `encode`.

        Yields:
            What ``encode`` gives, by default float32 (B, D), in the order of the images.

        Raises:
            BackboneError: the chips are too small for the network.
        """
        on_cpu, work_on = self.device.type == "cpu", encode or self.encode

        def encode_from(first: int) -> np.ndarray:
            if on_cpu and torch.get_num_threads() != 1:  # the setting belongs to the thread that works
                torch.set_num_threads(1)
            return work_on(images[first : first + BATCH_SIZE])

        firsts = range(0, len(images), BATCH_SIZE)
        with self.steady(), closing(in_order(encode_from, firsts, self.workers(min(workers, len(firsts))))) as work:
            yield from work

    def workers(self, wanted: int) -> int:
        """Batches that are computed at the same time: as wanted; on a GPU one."""
        return wanted if self.device.type == "cpu" else 1

    def steady(self) -> AbstractContextManager[None]:
        """Context in which a batch is computed on one thread, whatever the machine; on a GPU as ever."""
        return one_thread() if self.device.type == "cpu" else nullcontext()


def usable_workers(configured: int | None) -> int:
    """Threads that embed: as configured, else one a usable core."""
    return configured or usable_cores()


def open_encoder(config: EmbeddingsConfig, backbone: Path | None, chip_bands: Sequence[str]) -> Encoder:
    """The network that the configuration names, ready for chips of certain bands.

    Args:
        config: which network, which features.
        backbone: bundle of the chain, used where the configuration names no other network.
        chip_bands: common band names of the chips, in their order.

    Raises:
        MissingInputError: there is no bundle.
        BackboneError: bundle or weights are damaged, or do not fit.
        EmbeddingsError: the chips lack a band that the network needs, or there is no GPU.
    """
    device = device_of(config.device, "embeddings.device", EmbeddingsError)
    if config.architecture is not None and config.weights is not None:
        return _of_table(config, chip_bands, device)
    folder = config.bundle or backbone
    if folder is None:
        raise EmbeddingsError("No network was named: give a bundle, or `architecture` and `weights`.")
    bundle = open_bundle(folder)
    channels = _channels(bundle.bands, chip_bands, f"bundle {bundle.model_name} ({folder})")
    network = build(bundle.architecture, len(bundle.bands))
    load_weights(network, folder / WEIGHTS)
    return Encoder(
        model=bundle.model_name,
        version=bundle.bundle_data_version,
        architecture=bundle.architecture,
        bands=bundle.bands,
        channels=channels,
        mean=tuple(float(value) for value in bundle.mean),
        std=tuple(float(value) for value in bundle.std),
        features=config.features,
        gsd_m=(bundle.gsd_m_min, bundle.gsd_m_max),
        network=_placed(network, device),
        device=device,
        bundle=folder,
    )


def _of_table(config: EmbeddingsConfig, chip_bands: Sequence[str], device: torch.device) -> Encoder:
    """A network of the table: red, green and blue as published weights want them, where the chips have these."""
    architecture, weights = str(config.architecture), config.weights
    bands = ("red", "green", "blue")
    channels = _channels(bands, chip_bands, f"{architecture} with weights for photographs")
    path = imagenet_weights(architecture) if weights == "imagenet" else Path(str(weights))
    network = build(architecture, len(bands))
    load_initial_weights(network, path, architecture, bands)
    published = spec_of(architecture).imagenet
    return Encoder(
        model=f"{architecture}-{path.stem}",
        version=file_md5(path),
        architecture=architecture,
        bands=bands,
        channels=channels,
        mean=published.mean,
        std=published.std,
        features=config.features,
        gsd_m=(),
        network=_placed(network, device),
        device=device,
    )


def _placed(network: nn.Module, device: torch.device) -> nn.Module:
    return network.eval().to(device=device).to(memory_format=torch.channels_last)


def _channels(wanted: Sequence[str], found: Sequence[str], network: str) -> tuple[int, ...]:
    missing = [band for band in wanted if band not in found]
    if missing:
        raise EmbeddingsError(
            f"The chips have the bands {', '.join(found)}, but the {network} needs {', '.join(wanted)}: "
            f"{', '.join(missing)} missing. Cut chips with these bands (`chips.bands`), or embed with another network "
            "(`embeddings.bundle`, or `embeddings.architecture` with `embeddings.weights`)."
        )
    return tuple(list(found).index(band) for band in wanted)


def described(encoder: Encoder) -> dict[str, object]:
    """What readers of vectors are told about the network, as JSON values."""
    content = {
        "model": encoder.model,
        "model_version": encoder.version,
        "architecture": encoder.architecture,
        "bands": encoder.bands,
        "mean": [round(value, 6) for value in encoder.mean],
        "std": [round(value, 6) for value in encoder.std],
        "features": encoder.features,
        "num_dimensions": encoder.num_dimensions,
        "stages": encoder.stages,
    }
    plain: dict[str, object] = json.loads(json.dumps(content))
    return plain
