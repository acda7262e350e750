"""Labelled sets as they lie on disk: images with classes, masks or boxes.

Not here: learning from them (``evaluation.tasks``).
"""
