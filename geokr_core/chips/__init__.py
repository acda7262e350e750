"""The step `chips`: scenes are cut into chips, stretched to 8 bits, judged and written one shard a scene.

Not here: reading a scene (``scenes``), its land cover (``proportions``).
"""
