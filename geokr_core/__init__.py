"""GeoKR's library: raw satellite scenes and a land-cover product in, a pretrained and judged backbone out.

Floors, lowest first; imports only run downwards:

1. values: ``errors``, ``files``, ``reporter``, ``grid``, ``legend``, ``config``
2. rasters: ``scenes``, ``landcover``, ``coverage``, ``chips``, ``proportions``
3. data set: ``levir_kr``
4. learning: ``backbone``, ``teacher``, ``losses``, ``augment``, ``pretrain``
5. judging: ``tasks``, ``probe``, ``statistics``, ``evaluate``, ``report``
6. delivering: ``bundle``, ``registry`` (the one module that knows MLflow)
7. doors: ``chain`` (which step follows which), ``versioning`` (DVC), ``cli``

Nothing in here imports Dagster: the orchestration lives in ``geokr_assets``.
"""

__version__ = "0.1.0"
