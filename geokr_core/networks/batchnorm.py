"""Batch normalisation of a network that is not trained any more: frozen, or recalibrated on other images."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from geokr_core.networks.network import pooled
from geokr_core.networks.runtime import Runtime
from geokr_core.networks.stopwatch import computing


def freeze_batchnorm(network: nn.Module, modes: Iterable[str] = ("statistics", "scales")) -> None:
    """Keep every BatchNorm layer as it is while the rest learns; call it after ``train()``.

    Args:
        network: changed in place.
        modes: ``statistics`` keeps the running mean and variance and normalises by them; ``scales`` keeps weight and bias.
    """
    wanted = set(modes)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            if "statistics" in wanted:
                layer.eval()
            if "scales" in wanted:
                layer.requires_grad_(requires_grad=False)


def recalibrate_on(network: nn.Module, batches: Iterable[Tensor], runtime: Runtime) -> None:
    """Replace the running statistics of every BatchNorm layer by the average over given batches.

    Args:
        network: changed in place; left in evaluation mode. Nothing happens where it has no BatchNorm.
        batches: normalised images, float32 (B, C, H, W).
        runtime: where it runs.
    """
    layers = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    network.eval()
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # cumulative average, every batch counts the same
        layer.train()
    with torch.inference_mode():
        for batch in batches:
            with computing(), runtime.autocast():
                pooled(network, batch, "last")
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    network.eval()
