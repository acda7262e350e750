"""The section `report` of the parameter file: what the page says."""

from typing import ClassVar

from pydantic import Field

from geokr_core.step.section import Section


class ReportConfig(Section):
    """The page that people read."""

    code_version: ClassVar[int] = 5  # 5: a card says what fine-tuning says

    title: str = "GeoKR report"
    num_example_chips: int = Field(12, ge=0, le=200)
