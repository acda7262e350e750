"""Scene products that are recognised by their names and metadata, one module a family.

Not here: opening a raster (``scenes.reader``).
"""
