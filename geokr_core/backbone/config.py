"""The section `backbone` of the parameter file: which backbone is delivered."""

from typing import ClassVar

from pydantic import Field

from geokr_core.step.section import Section


class BackboneConfig(Section):
    """The bundle that is delivered."""

    code_version: ClassVar[int] = 3

    model_name: str = Field("geokr-resnet18", pattern=r"^[A-Za-z0-9_.-]+$", description="name in the model registry")
    description: str = Field("Backbone pretrained on land-cover proportions.")
    licence: str = Field(
        "Apache-2.0",
        pattern=r"^[A-Za-z0-9.+-]+$",
        description="SPDX identifier of the licence of the weights, or `other`; what the images and land-cover products allow "
        "is yours to know. It goes into the bundle, its STAC item and its model card",
    )
