"""Rasters and pictures of any origin: opened safely, placed on a grid, remembered by their checksum.

Not here: what a raster shows (``scenes``) or what its codes mean (``land_cover``).
"""
