"""The section `land_cover_shares` of the parameter file: which network and head map the scenes, and how sure they are to be."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from geokr_core.networks.architectures import Features
from geokr_core.step.section import Section


class LandCoverSharesConfig(Section):
    """Land-cover shares mapped from images."""

    code_version: ClassVar[int] = 3

    without_effect: ClassVar[frozenset[str]] = frozenset({"workers", "device"})

    bundle: Path | None = Field(
        None, description="folder of a downloaded bundle whose network is used; null: the backbone of this chain"
    )
    head: Path | None = Field(
        None,
        description="head.safetensors of an earlier run, of the same network and legend; null: a head is fitted on the training "
        "places of Levir-KR",
    )
    features: Features = Field(
        "multi", description="what the head reads: the last stage (`last`), or all four (`multi`)"
    )
    confidence: float = Field(
        0.9, gt=0.5, lt=1, description="share of chips whose land cover lies within the interval that is given"
    )
    max_training_chips: int = Field(
        20_000, ge=100, description="training chips that the head is fitted on, evenly spread over the data set"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where the network runs; the last digits of float32 differ between devices"
    )
    workers: int | None = Field(
        None, ge=1, description="threads that each run whole batches; null: one a usable core. The result is the same"
    )
