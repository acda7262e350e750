"""The section `proportions` of the parameter file: how land cover is counted, and how image and map are compared."""

from typing import ClassVar

from pydantic import Field

from geokr_core.step.section import Section


class ProportionsConfig(Section):
    """How land cover is counted under a chip."""

    without_effect: ClassVar[frozenset[str]] = frozenset({"workers"})

    edge_segments: int = Field(
        8,
        ge=1,
        le=256,
        description="straight pieces a chip edge is cut into before it is carried to another CRS",
    )
    cells_per_side: int = Field(
        8,
        ge=0,
        le=64,
        description="land cover is also kept for n x n squares of each chip, for labels that follow a crop; 0: not kept",
    )
    workers: int | None = Field(
        None,
        ge=1,
        description="processes that count scenes, from a hundred scenes each on; null: one a usable core. The result is the same",
    )


class AlignmentConfig(Section):
    """Whether image and land cover are aligned. Labels do not depend on it: switching it on recounts nothing."""

    check: bool = Field(False, description="ask every scene in Dagster; a scene that seems shifted gives a warning")
    max_shift: int = Field(
        3, ge=1, le=8, description="shifts tried in each direction, in image pixels or land-cover cells if larger"
    )
    tolerance_px: float = Field(1.0, ge=0, description="shifts up to this many image pixels count as none")
    max_pixels: int = Field(1_000_000, ge=10_000, description="pixels of a scene that are looked at")
