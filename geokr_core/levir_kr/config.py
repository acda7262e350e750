"""The section `levir_kr` of the parameter file: what enters the data set and how it is split."""

from pydantic import Field

from geokr_core.step.section import Section


class LevirKRConfig(Section):
    """Which chips enter the frozen data set, and how it is split."""

    max_unknown_fraction: float = Field(
        0.5,
        ge=0,
        le=1,
        description="chips with more ground that is not of a class of the legend (unknown, sea, outside, excluded) are left out",
    )
    min_voting_cells: float = Field(
        1.0, ge=0, description="chips with fewer land-cover cells of known class are left out"
    )
    validation_fraction: float = Field(0.1, ge=0, lt=1, description="share of places held out to watch pretraining")
    place_size_deg: float = Field(
        2.0, gt=0, le=45, description="size of the lon/lat cells by which places are distinguished"
    )
    seed: int = Field(0, ge=0)
