"""The section `land_cover` of the parameter file: which products give land cover."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from geokr_core.step.section import FilePattern, Section


class ProductConfig(Section):
    """One land-cover product: its tiles, its legend, its editions."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    files: FilePattern = Field(
        description="glob relative to `land_cover.folder`; one product may hold tiles of several years"
    )
    legend: str = Field(
        description="a built-in legend (docs/land-cover.md lists them), one that an installed package brings, or the path of a legend file, YAML or CSV"
    )
    year: int | None = Field(
        None,
        ge=1900,
        le=2100,
        description="edition, the year the map describes; null: as the files' names or bands say",
    )
    band: int | None = Field(
        None, ge=1, description="band that holds the codes, where files have others beside it; null: the only one"
    )
    crs: str | None = Field(None, description="CRS to use instead of the file's, where the file's is known to be wrong")


class LandCoverConfig(Section):
    """The land-cover products and the common legend that chips are described in."""

    without_effect: ClassVar[frozenset[str]] = frozenset({"folder"})

    folder: Path
    products: tuple[ProductConfig, ...] = Field(min_length=1)
    legend: Literal["globeland30", "geokr8", "own"] = Field(
        "globeland30",
        description="classes chips are described in: a preset that products are mapped to, or the product's own",
    )

    @field_validator("products")
    @classmethod
    def _unique(cls, value: tuple[ProductConfig, ...]) -> tuple[ProductConfig, ...]:
        names = [p.name for p in value]
        if len(set(names)) < len(names):
            raise ValueError(f"product names must differ, found {names}")
        return value
