"""The section `champion` of the parameter file: by which criteria a backbone is promoted."""

from typing import ClassVar

from pydantic import Field, ValidationInfo, field_validator

from geokr_core.evaluation.config import Criterion
from geokr_core.step.section import Section


class ChampionConfig(Section):
    """When the challenger replaces the champion."""

    code_version: ClassVar[int] = 2

    primary: tuple[Criterion, ...] = Field(min_length=1, description="their mean must be better beyond noise")
    guards: tuple[Criterion, ...] = Field((), description="must not become worse by more than `max_regression`")
    min_gain: float = Field(0.0, ge=0, lt=1, description="the 95 % interval of the gain must lie above this")
    max_regression: float = Field(0.01, ge=0, lt=1, description="loss on any criterion that is tolerated")

    @field_validator("guards")
    @classmethod
    def _once(cls, value: tuple[Criterion, ...], info: ValidationInfo) -> tuple[Criterion, ...]:
        names = [criterion.name for criterion in (*info.data.get("primary", ()), *value)]
        if len(set(names)) < len(names):
            raise ValueError(f"each criterion once, in `primary` or in `guards`; found {names}")
        return value

    @property
    def criteria(self) -> tuple[Criterion, ...]:
        """All criteria, primary ones first."""
        return (*self.primary, *self.guards)
