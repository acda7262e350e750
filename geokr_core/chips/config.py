"""The section `chips` of the parameter file: how scenes are cut."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from geokr_core.step.section import Section


class FixedStretch(Section):
    """Physical values that become 0 and 255: one for all bands, or one a band.

    A scene that states scale and offset (Sentinel-2, Landsat Collection 2, tagged GeoTIFFs) is stretched by
    ``stored * scale + offset``; of any other scene the stored values are the physical ones.
    """

    low: tuple[float, ...] = Field(min_length=1, description="values that become 0")
    high: tuple[float, ...] = Field(min_length=1, description="values that become 255")

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if len(self.low) != len(self.high) or any(h <= low for low, h in zip(self.low, self.high, strict=True)):
            raise ValueError(f"`low` {self.low} and `high` {self.high} must be of one length, each high above its low")
        return self


class ChipsConfig(Section):
    """How chips are cut from scenes."""

    code_version: ClassVar[int] = 2
    without_effect: ClassVar[frozenset[str]] = frozenset({"workers"})

    size_px: int = Field(64, ge=8, le=2048)
    stride_px: int = Field(64, ge=1, le=2048)
    edge: Literal["drop", "shift"] = Field(
        "drop",
        description="what a scene's right and lower edge leave over: dropped, or covered by a last window moved inwards",
    )
    bands: tuple[str, ...] = Field(("red", "green", "blue"), min_length=1, description="bands kept, in this order")
    stretch: Literal["percentile", "joint_percentile", "fixed", "none"] = Field(
        "percentile",
        description="to 8 bits per scene: percentiles a band, percentiles over all bands, the scale of `stretch_fixed`, or as stored (uint8 only)",
    )
    stretch_low: float = Field(2.0, ge=0, lt=50, description="lower percentile")
    stretch_high: float = Field(98.0, gt=50, le=100, description="upper percentile")
    stretch_fixed: FixedStretch | None = Field(
        None,
        description="`{low: [...], high: [...]}` in physical values (reflectance, where scenes state scale and offset; else as stored), "
        "one for all bands or one a band",
    )
    min_valid_fraction: float = Field(0.98, ge=0, le=1, description="chips with fewer valid pixels are not cut")
    max_saturated_fraction: float = Field(
        0.5,
        ge=0,
        le=1,
        description="chips with more pixels at 250 or above in every band are dropped (cloud)",
    )
    max_cloud_fraction: float = Field(
        0.5,
        ge=0,
        le=1,
        description="chips with more cloud by the product's own mask are dropped; products without a mask lose none",
    )
    max_dark_fraction: float = Field(
        1.0, ge=0, le=1, description="chips with more pixels darker than 20 are dropped; below 1, deep water goes"
    )
    min_contrast: float = Field(
        0.0, ge=0, description="chips whose brightness deviates less (standard deviation, 8-bit steps) are dropped"
    )
    workers: int | None = Field(
        None,
        ge=1,
        description="threads that cut a large scene, or processes that cut hundreds of small ones; null: one a usable core. The result is the same",
    )

    @model_validator(mode="after")
    def _scale_is_given(self) -> Self:
        if (self.stretch == "fixed") != (self.stretch_fixed is not None):
            raise ValueError("`stretch: fixed` and `stretch_fixed` go together: give both or neither")
        if self.stretch_fixed is not None and len(self.stretch_fixed.low) not in (1, len(self.bands)):
            raise ValueError(
                f"`stretch_fixed` has {len(self.stretch_fixed.low)} values a limit, expected 1 or {len(self.bands)} (one a band)"
            )
        return self
