"""Partitions: one a usable scene.

Scenes are found, not listed in advance, so the partitions are dynamic. The asset ``scenes`` and the sensor
``scene_folder`` add them; nothing removes them, because the history of a vanished scene is worth keeping.
"""

import dagster as dg

SCENES_NAME = "scenes"
SCENES = dg.DynamicPartitionsDefinition(name=SCENES_NAME)

PARTITIONED = ("chips", "proportions")
"""Steps that run scene by scene; all others run once for the whole archive."""
