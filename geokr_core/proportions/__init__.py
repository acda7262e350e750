"""The step `proportions`: the exact share of each land-cover class below each chip, and whether image and map agree.

Not here: what codes mean and where tiles lie (``land_cover``).
"""
