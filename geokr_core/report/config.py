"""The section `report` of the parameter file: what the page says."""

from typing import ClassVar

from pydantic import Field

from geokr_core.step.section import Section


class ReportConfig(Section):
    """The page that people read."""

    code_version: ClassVar[int] = 6  # 6: fine-tuned rows are said to read the whole network

    title: str = "GeoKR report"
    num_example_chips: int = Field(12, ge=0, le=200)
