"""The section `backbone` of the parameter file: which backbone is delivered."""

from pydantic import Field

from geokr_core.step.section import Section


class BackboneConfig(Section):
    """The bundle that is delivered."""

    model_name: str = Field("geokr-resnet18", pattern=r"^[A-Za-z0-9_.-]+$", description="name in the model registry")
    description: str = Field("Backbone pretrained on land-cover proportions.")
