"""The step `scenes`: from a folder of imagery to an inventory of scenes, and from a scene to its pixels.

Not here: cutting scenes into chips (``chips``).
"""
