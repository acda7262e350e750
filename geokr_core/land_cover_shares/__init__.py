"""The step `land_cover_shares`: maps of land-cover shares predicted from scenes, with intervals from held-out places.

Fitting and judging are in ``head`` and ``judgement``, running over a scene in ``windows``, files in ``maps`` and ``stac``.
"""
