"""Partitions: one a usable scene.

Scenes are found, not listed in advance, so the partitions are dynamic. The asset of the inventory and the sensor
``scene_folder`` add them; that sensor also retires those whose scene is gone or unusable. Dagster keeps the events of a
retired partition and shows them again if the scene comes back.
"""

import dagster as dg

from geokr_core.chain.steps import STEPS

INVENTORY = "scenes"
"""The step that finds the scenes."""

SCENES_NAME = "scenes"
SCENES = dg.DynamicPartitionsDefinition(name=SCENES_NAME)

PARTITIONED = tuple(step.name for step in STEPS.values() if step.scenes is not None)
"""Steps that run scene by scene; all others run once for the whole archive."""
