"""The section `map_audit` of the parameter file: which chips are audited, and how the audit tests itself."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from geokr_core.step.section import Section


class CellAuditConfig(Section):
    """The audit of 8 x 8 cells of each chip; reads `embeddings.cells` and `proportions.cells_per_side`."""

    listed: int = Field(10_000, ge=1, description="cells that `cells.parquet` lists, the worst first; maps hold all")
    max_chips: int = Field(
        2000, ge=50, description="chips, evenly spread over the archive, whose cells teach and get planted errors"
    )
    max_cells: int = Field(
        40_000,
        ge=1000,
        description="cells of these that the regression is fitted on; memory grows with them, 0.5 GB at 500 dimensions",
    )


class MapAuditConfig(Section):
    """Where image and map disagree."""

    code_version: ClassVar[int] = 3
    silent_unless_given: ClassVar[frozenset[str]] = frozenset({"cells", "other_embeddings"})

    place_size_deg: float | None = Field(
        None,
        gt=0,
        le=45,
        description="size of the lon/lat cells that are held out together; null: that of `levir_kr`",
    )
    num_folds: int = Field(5, ge=2, le=50, description="parts of the places; each is judged by what the others teach")
    min_known_fraction: float = Field(
        0.9, gt=0, le=1, description="chips with less ground of known land cover are not audited"
    )
    planted_fraction: float = Field(0.05, gt=0, le=0.3, description="chips that get a planted error in each test")
    plantings: int = Field(5, ge=1, le=50, description="tests with planted errors, of each kind")
    max_gap_years: float = Field(
        3.0, gt=0, description="a disagreement is put down to time where image and map are further apart"
    )
    cloudy_fraction: float = Field(
        0.05, ge=0, le=1, description="a disagreement is put down to cloud from this share of the chip on"
    )
    other_edition: Path | None = Field(
        None,
        description="folder of proportions of the same chips by another edition of the product, e.g. of another store: where it shows "
        "other ground, a disagreement is put down to change",
    )
    other_embeddings: tuple[Path, ...] | None = Field(
        None,
        min_length=1,
        description="folders of vectors of the same chips by further networks, e.g. of another store: the score of a chip is the "
        "geometric mean of what each network gives it; null: that of `embeddings` alone. Cells are judged by `embeddings` alone",
    )
    registration: bool = Field(
        True, description="ask of every place whether the map is shifted against the image by up to 3 pixels or cells"
    )
    seed: int = Field(0, ge=0, description="of the planted errors")
    cells: CellAuditConfig | None = Field(
        None,
        description="also judge 8 x 8 cells of each chip, and let the scores of chips know those of their cells; null: chips alone",
    )
