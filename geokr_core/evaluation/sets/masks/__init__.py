"""Sets of images with a mask each: how their files lie (``layout``, ``layouts/*.yaml``) and reading them (``read``).

Not here: learning from them (``evaluation.learning``).
"""
