"""GeoKR's library: raw satellite scenes and a land-cover product in, a pretrained and judged backbone out.

Floors, lowest first; imports only run downwards:

1. values: ``errors``, ``files``, ``reporter``, ``summary``, ``grid``, ``legend``, ``config``, ``pictures``,
   ``multihash``, ``spool``
2. rasters: ``tiff_index``, ``raster_files``, ``checksums``; ``scene``, ``rpc``, ``rpc_files``, ``clouds``, ``scene_reader``,
   ``sensors``, ``scene_files``, ``scenes``; ``tile_index``, ``landcover``, ``coverage``, ``counting``; ``stretch``, ``quality``,
   ``shards``, ``chips``, ``proportions``; ``quicklook``, ``alignment``, ``quarantine``
3. data set: ``catalogue``, ``levir_kr``
4. learning: ``backbone``, ``teacher``, ``losses``, ``augment``, ``batches``, ``checkpoint``, ``distributed``,
   ``runtime``, ``watch``; ``methods`` (the registry alone), ``presets``; what is in ``methods``; ``schedules``,
   ``signs``, ``training``, ``pretrain``
5. judging: ``bundle`` with its ``loader`` (what is judged is what is delivered), ``tasks``, ``probe``, ``finetune``,
   ``statistics``, ``evaluate``, ``charts``, ``task_sections``, ``report``
6. delivering: ``promotion``, ``registry`` (the one module that knows MLflow)
7. doors: ``chain`` (which step follows which), ``checks``, ``versioning`` (DVC), ``cli``, ``bench``

Beside the floors: ``acquisition`` (STAC catalogues into folders; stands on values and ``raster_files``),
``stac_export`` (a frozen Levir-KR as a STAC collection; stands on the data set),
``world`` generates data, ``testing`` serves tests.

Nothing in here imports Dagster: the orchestration lives in ``geokr_assets``.
"""

__version__ = "0.1.0"
