"""The section `embeddings` of the parameter file: which network embeds the chips, and what of it is kept."""

from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from geokr_core.networks.architectures import Architecture, Features
from geokr_core.step.section import Section


class EmbeddingsConfig(Section):
    """A vector for every chip of the archive."""

    without_effect: ClassVar[frozenset[str]] = frozenset({"workers", "device"})

    bundle: Path | None = Field(
        None, description="folder of a downloaded bundle that embeds the chips; null: the backbone of this chain"
    )
    architecture: Architecture | None = Field(
        None, description="a network of the table of architectures instead of a bundle; needs `weights`"
    )
    weights: Literal["imagenet"] | Path | None = Field(
        None, description="its weights: `imagenet` from torch's cache, or a file; nothing is downloaded"
    )
    features: Features = Field(
        "last",
        description="what a vector is: the pooled last stage (`last`), or all four stages side by side (`multi`)",
    )
    cells: bool = Field(
        False,
        description="also write a map of the vectors of 8 x 8 cells of each chip, a COG a scene: a band a dimension, some hundred "
        "times the size of the table",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where the network runs; the last digits of float32 differ between devices"
    )
    workers: int | None = Field(
        None, ge=1, description="threads that each embed whole batches; null: one a usable core. The result is the same"
    )

    @model_validator(mode="after")
    def _one_network(self) -> Self:
        if (self.architecture is None) != (self.weights is None):
            raise ValueError("`architecture` and `weights` name a network together: give both or neither")
        if self.bundle is not None and self.architecture is not None:
            raise ValueError("`bundle` and `architecture` name two networks: give one of them")
        return self
