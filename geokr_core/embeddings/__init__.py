"""The step `embeddings`: a vector a chip of the whole archive, as GeoParquet and STAC, written scene by scene.

``embed`` writes them, ``read`` opens them again. Searching, auditing and mapping with them lie in rooms above.
"""
