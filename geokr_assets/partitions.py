"""Partitions: one a usable scene.

Scenes are found, not listed in advance, so the partitions are dynamic. The asset ``scenes`` and the sensor
``scene_folder`` add them; nothing removes them, because the history of a vanished scene is worth keeping.
"""

import dagster as dg

from geokr_core.chain.steps import STEPS

SCENES_NAME = "scenes"
SCENES = dg.DynamicPartitionsDefinition(name=SCENES_NAME)

PARTITIONED = tuple(step.name for step in STEPS.values() if step.scenes is not None)
"""Steps that run scene by scene; all others run once for the whole archive."""
