"""The section `scenes` of the parameter file: which files are scenes."""

from datetime import date
from pathlib import Path
from typing import ClassVar, Self

from pydantic import Field, field_validator, model_validator

from geokr_core.scenes.products.families import family, family_names
from geokr_core.step.section import FilePattern, Section, unknown_name


class SceneCollection(Section):
    """Files below ``scenes.folder`` that share a layout, and the land-cover product of their ground."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    files: FilePattern = Field(
        description="glob relative to the folder: rasters, or the metadata files of products of many files (`MTD_MSI*.xml`, "
        "`*_MTL.*`); `{band}` stands for the band where each band is a file"
    )
    product: str = Field(
        "auto",
        description="family of products: `sentinel2`, `landsat_c2`, `gaofen`, `naip`, or one that an installed package "
        "brings; `auto`: by name and metadata, `generic`: nothing but the raster itself",
    )
    bands: tuple[str, ...] | None = Field(
        None,
        description="common band names in file order (or in order of `band_files`); which bands to offer, for `sentinel2` "
        "and `landsat_c2`; null: as the product has them, else from colour interpretation",
    )
    band_files: tuple[str, ...] | None = Field(None, description="what `{band}` becomes, one entry a band")
    land_cover: str = Field(description="name of the product under `land_cover.products` that covers this ground")
    nodata: float | None = Field(
        None,
        allow_inf_nan=True,
        description="pixels whose every band is this value are no data, where the file does not say so",
    )
    acquired: date | None = Field(None, description="acquisition date where file names and tags do not give it")
    max_abs_latitude_deg: float = Field(
        90.0, gt=0, le=90, description="chips centred further from the equator are not cut"
    )
    rpc_height_m: float | None = Field(
        None,
        ge=-500,
        le=9000,
        description="raw scenes with RPCs are orthorectified with this height above the ellipsoid; null: they are refused",
    )
    dem: Path | None = Field(
        None,
        description="raster of heights above the ellipsoid to orthorectify raw scenes with, relative to the working directory",
    )

    @field_validator("product")
    @classmethod
    def _is_known(cls, value: str) -> str:
        known = ("auto", *family_names())
        if value not in known:
            raise ValueError(unknown_name("scene product", value, known))
        return value

    @field_validator("bands")
    @classmethod
    def _each_band_once(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and (twice := next((name for name in value if value.count(name) > 1), None)):
            raise ValueError(f"{twice!r} is named more than once, found {list(value)}; name each band once")
        return value

    @model_validator(mode="after")
    def _band_files_match(self) -> Self:
        if ("{band}" in self.files) != (self.band_files is not None):
            raise ValueError("`files` holds `{band}` exactly when `band_files` lists what it stands for")
        if self.band_files is not None and (self.bands is None or len(self.bands) != len(self.band_files)):
            raise ValueError("`bands` and `band_files` must list the same bands, one entry each")
        if self.band_files is not None and self.product != "auto" and family(self.product).one_file_a_band:
            raise ValueError(f"`product: {self.product}` finds its band files itself; leave `band_files` out")
        if self.rpc_height_m is not None and self.dem is not None:
            raise ValueError("`rpc_height_m` and `dem` both give the height of the ground; keep one")
        return self


class ScenesConfig(Section):
    """Where the raw scenes lie and how their files are to be read."""

    without_effect: ClassVar[frozenset[str]] = frozenset({"folder"})

    folder: Path
    collections: tuple[SceneCollection, ...] = Field(min_length=1)

    @field_validator("collections")
    @classmethod
    def _unique(cls, value: tuple[SceneCollection, ...]) -> tuple[SceneCollection, ...]:
        names = [c.name for c in value]
        if len(set(names)) < len(names):
            raise ValueError(f"collection names must differ, found {names}")
        return value
