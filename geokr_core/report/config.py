"""The section `report` of the parameter file: what the page says."""

from pydantic import Field

from geokr_core.step.section import Section


class ReportConfig(Section):
    """The page that people read."""

    title: str = "GeoKR report"
    num_example_chips: int = Field(12, ge=0, le=200)
