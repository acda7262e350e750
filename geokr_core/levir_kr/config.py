"""The section `levir_kr` of the parameter file: what enters the data set and how it is split."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from geokr_core.step.section import Section


class PinnedFile(Section):
    """A file that is an input only as it is now: another content is refused."""

    file: Path = Field(description="the file; a copy outside of what the chain writes")
    md5: str = Field(pattern="^[0-9a-f]{32}$", description="of its content, as `md5sum` prints it")


class AuditUseConfig(Section):
    """What an earlier audit of the map changes: training chips that it flagged are left out or weigh less."""

    use: Literal["exclude", "weight"] = Field(
        description="flagged training chips are left out (`exclude`), or their land cover weighs as much less as their score is "
        "higher (`weight`)"
    )
    table: PinnedFile = Field(description="audit.parquet of a finished run, copied")
    judgements: PinnedFile | None = Field(
        None,
        description="Parquet file with `chip_id` and `label`, as the page of `geokr audit sample` saves it: a chip whose class on the map "
        "people confirmed is not flagged, one that they saw otherwise is",
    )
    flagged_fraction: float = Field(
        0.1, gt=0, le=0.5, description="share of the audited chips, from the top of the list, that count as flagged"
    )


class LevirKRConfig(Section):
    """Which chips enter the frozen data set, and how it is split."""

    silent_unless_given: ClassVar[frozenset[str]] = frozenset({"audit"})

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
    audit: AuditUseConfig | None = Field(
        None, description="what an earlier audit of the map changes; null: nothing, every chip counts as the map says"
    )
