"""The section `world` of the parameter file: size and seed of the generated world."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from geokr_core.step.section import Section


class WorldConfig(Section):
    """The generated world (see ``geokr_core.world.generate``): the default data, so that everything runs offline."""

    without_effect: ClassVar[frozenset[str]] = frozenset({"folder"})

    folder: Path = Field(Path("data/world"), description="where the generated world is written")
    seed: int = Field(7, ge=0, description="same seed, same bytes")
    scene_size_px: int = Field(768, ge=128, description="width and height of each scene")
    num_scenes: int = Field(
        12, ge=2, description="number of scenes, spread over six places, four UTM zones and both hemispheres"
    )
    task_images_per_class: int = Field(
        80, ge=4, description="labelled images of each class in the scene-classification set"
    )
