"""Networks that a cell starts from: random, ImageNet's or pretrained, put on the device and recalibrated."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from geokr_core.backbone.bundle import Bundle
from geokr_core.errors import EvaluationError
from geokr_core.evaluation.cells import Start
from geokr_core.evaluation.config import UNTRAINED, EvaluationConfig, Initialisation, parts_of
from geokr_core.networks.architectures import spec_of
from geokr_core.networks.batchnorm import recalibrate_on
from geokr_core.networks.network import build
from geokr_core.networks.normalisation import Normalisation, placed
from geokr_core.networks.runtime import Runtime, device_of, precision_of
from geokr_core.networks.weights import imagenet_weights, load_initial_weights, load_weights, require_unchanged
from geokr_core.step.files import read_json


def start_of(bundle: Bundle, initialisation: Initialisation, seed: int, weights: Path | None) -> Start:
    """The start of an initialisation: the bundle's architecture and bands, with the channel statistics that its weights saw."""
    mean, std = (tuple(round(float(v), 6) for v in part) for part in (bundle.mean, bundle.std))
    if initialisation == "imagenet":
        published = spec_of(bundle.architecture).imagenet
        mean, std = (_by_band(part, bundle.bands) for part in (published.mean, published.std))
    return Start(initialisation, seed, bundle.architecture, weights, mean, std, tuple(bundle.bands))


def _by_band(values: tuple[float, ...], bands: Sequence[str]) -> tuple[float, ...]:
    """Statistics of red, green and blue in the order of ``bands``; other bands get their mean, as their filters do."""
    known = dict(zip(("red", "green", "blue"), values, strict=True))
    return tuple(known.get(band, sum(values) / len(values)) for band in bands)


class Starts:
    """Finds the network of an initialisation and seed among the pretraining runs."""

    def __init__(self, bundle: Bundle, pretraining: Path, config: EvaluationConfig) -> None:
        """Remember where weights are looked for.

        Args:
            bundle: whose architecture, bands and statistics every start has.
            pretraining: output folder of the step.
            config: where ImageNet weights lie.
        """
        self._bundle = bundle
        self._folder = pretraining
        self._imagenet = config.imagenet_weights
        self._runs: dict[str, list[Mapping[str, Any]]] = {}
        self._unchanged: set[Path] = set()

    def of(self, initialisation: Initialisation, seed: int) -> Start:
        """The start of ``initialisation`` for evaluation seed ``seed``; of more than one, the first with the others beside it."""
        first, *others = (self._of_one(part, seed) for part in parts_of(initialisation))
        return replace(first, beside=tuple(others))

    def _of_one(self, initialisation: str, seed: int) -> Start:
        weights = None
        if initialisation == "imagenet":
            weights = imagenet_weights(self._bundle.architecture, self._imagenet)
        elif initialisation not in UNTRAINED:
            runs = self._of_variant(initialisation)
            run = runs[seed % len(runs)]
            weights = self._folder / str(run["folder"]) / "backbone.safetensors"
            if not weights.is_file():
                raise EvaluationError(
                    f"{weights}: no such file, but runs.json lists it; expected the weights of every run. "
                    "Run `geokr pretrain --force`."
                )
            self._require_recorded(weights, run)
        return start_of(self._bundle, initialisation, seed, weights)

    def _require_recorded(self, weights: Path, run: Mapping[str, Any]) -> None:
        """Refuse weights that are not those that the run left; runs of earlier versions recorded nothing of them."""
        md5 = run.get("files", {}).get(weights.name)
        if md5 is not None and weights not in self._unchanged:
            require_unchanged(weights, md5)
            self._unchanged.add(weights)

    def _of_variant(self, variant: str) -> list[Mapping[str, Any]]:
        if variant in self._runs:
            return self._runs[variant]
        path = self._folder / "runs.json"
        if not path.is_file():
            raise EvaluationError(f"{path}: no such file; expected the list of pretraining runs. Run `geokr pretrain`.")
        everything = read_json(path)
        runs = [run for run in everything if run["variant"] == variant]
        if not runs:
            there = ", ".join(sorted({str(run["variant"]) for run in everything})) or "none"
            raise EvaluationError(
                f"{path}: found the variants {there}, but evaluation.initialisations asks for {variant!r}. "
                "Add it to `pretraining.variants` and run `geokr pretrain`, or take it out of the evaluation."
            )
        for run in runs:
            if run["architecture"] != self._bundle.architecture:
                raise EvaluationError(
                    f"{path}: run {run['folder']} is a {run['architecture']}, the bundle {self._bundle.folder} a "
                    f"{self._bundle.architecture}; expected one architecture. Run `geokr backbone` again."
                )
        self._runs[variant] = runs
        return runs

    def shared_pretrainings(self, config: EvaluationConfig) -> list[str]:
        """A warning for each variant that has fewer pretrainings than the evaluation has seeds."""
        warnings = []
        seeds = sorted({seed for task in config.tasks for seed in config.seeds_of(task)})
        for variant in dict.fromkeys(part for name in config.initialisations for part in parts_of(name)):
            if variant in UNTRAINED:
                continue
            num_runs = len({seed % len(self._of_variant(variant)) for seed in seeds})
            if num_runs < len(seeds):
                warnings.append(
                    f"{variant}: {len(seeds)} evaluation seeds share {num_runs} pretraining(s), so the intervals over "
                    "seeds leave out part of the spread between pretrainings. Set as many `pretraining.seeds`."
                )
        return warnings


def task_normalisation(
    start: Start, statistics: Normalisation, bands: Sequence[str], config: EvaluationConfig, runtime: Runtime
) -> Normalisation:
    """How the images of a frozen task are scaled for a start, on the runtime's device.

    Moving the task's statistics onto those of Levir-KR and then standardising with the latter is standardising with the
    former: a sharp, bright set and a dull one look alike to the network, whatever it starts from.

    Args:
        start: its bands, and its statistics where the task's do not count.
        statistics: of the task's training images.
        bands: of these, in order.
        config: says whether statistics are matched.
        runtime: where the network runs.
    """
    if config.match_statistics:
        order = [list(bands).index(band) for band in start.bands]
        return placed(Normalisation(statistics.mean[order], statistics.std[order]), runtime.device)
    return placed(Normalisation(torch.tensor(start.mean), torch.tensor(start.std)), runtime.device)


EXTRACTION_BATCH = 256

THREADS_OF_A_CELL: Final = 1
"""Of torch on a CPU: its cores measure several cells at a time (``ahead``), and scores must not depend on how many there are."""


@contextmanager
def running(config: EvaluationConfig) -> Iterator[Runtime]:
    """Give the runtime of an evaluation, with its number of threads for the time of the block.

    Raises:
        EvaluationError: ``device: cuda`` where there is none.
    """
    device = device_of(config.device, "evaluation.device", EvaluationError)
    earlier = torch.get_num_threads()
    torch.set_num_threads(THREADS_OF_A_CELL if device.type == "cpu" else config.threads)
    try:
        yield Runtime(device, precision_of(config.precision, device.type) == "bf16")
    finally:
        torch.set_num_threads(earlier)


def start_network(start: Start, images: np.ndarray, normalisation: Normalisation, runtime: Runtime) -> nn.Module:
    """Build the network that a start stands for.

    A random network with BatchNorm gets its statistics from the task's images, without their labels: with the
    constants it is built with (0 and 1) its features would be judged at a scale no training ever gave it.

    Args:
        start: architecture and weights, or a seed where there are none.
        images: uint8 (N, H, W, 3), training images.
        normalisation: of the input, on the runtime's device.
        runtime: where it runs.

    Returns:
        The network on the runtime's device, channels-last, in evaluation mode.

    Raises:
        BackboneError: weights and architecture do not fit together.
    """
    network = initial_network(start, runtime)
    if start.weights is None:
        recalibrate_batchnorm(network, images, normalisation, runtime)
    return network.eval()


class KeptNetwork:
    """Keeps the network of the last start as it begins: the cells and draws of one start follow each other."""

    def __init__(self) -> None:
        """Nothing is built yet."""
        self._kept: tuple[dict[str, object], Runtime, nn.Module] | None = None

    def of(
        self, start: Start, images: Callable[[], np.ndarray], normalisation: Normalisation, runtime: Runtime
    ) -> nn.Module:
        """A network of the start, as `start_network` gives it, to be changed at will.

        Args:
            start: architecture and weights, or a seed where there are none.
            images: gives the training images uint8 (N, H, W, C); asked once a start. Of one task always the same.
            normalisation: of the input, on the runtime's device; of one task and start always the same.
            runtime: where it runs.

        Raises:
            BackboneError: weights and architecture do not fit together.
        """
        identity = start.identity()
        if self._kept is None or self._kept[:2] != (identity, runtime):
            self._kept = identity, runtime, start_network(start, images(), normalisation, runtime)
        return copy.deepcopy(self._kept[2])


def initial_network(start: Start, runtime: Runtime) -> nn.Module:
    """Build the network of a start; a random one's BatchNorm still has the statistics it was built with.

    Raises:
        BackboneError: weights and architecture, or bands, do not fit together.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(start.seed)
        network = build(start.architecture, len(start.bands))
    if start.weights is not None:
        if start.initialisation == "imagenet":
            load_initial_weights(network, start.weights, start.architecture, start.bands)
        else:
            load_weights(network, start.weights)
    return network.to(device=runtime.device).to(memory_format=torch.channels_last)


def recalibrate_batchnorm(
    network: nn.Module, images: np.ndarray, normalisation: Normalisation, runtime: Runtime
) -> None:
    """Replace the running statistics of every BatchNorm layer by the average over batches of images.

    Args:
        network: changed in place; left in evaluation mode. Nothing happens where it has no BatchNorm.
        images: uint8 (N, H, W, C).
        normalisation: of the input, on the runtime's device.
        runtime: where it runs.
    """
    # Sets are listed class by class: unmixed batches would each have the statistics of one class.
    order = np.random.default_rng(0).permutation(len(images))
    batches = (
        normalisation(torch.from_numpy(images[np.sort(rows)]).to(runtime.device))
        for rows in np.array_split(order, -(-len(order) // EXTRACTION_BATCH))
    )
    recalibrate_on(network, batches, runtime)
