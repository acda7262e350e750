"""GeoKR's library: raw satellite scenes and a land-cover product in, a pretrained and judged backbone out.

Floors, lowest first; imports only run downwards, and never to Dagster (`make lint` holds them to it):

1. values: ``errors``, ``files``, ``reporter``, ``summary``, ``grid``, ``legend``, ``config``, ``pictures``,
   ``multihash``, ``spool``
2. rasters: ``tiff_index``, ``raster_files``, ``checksums``; ``scene``, ``rpc``, ``rpc_files``, ``clouds``, ``scene_reader``,
   ``sensors``, ``scene_files``, ``scenes``; ``tile_index``, ``landcover``, ``coverage``, ``counting``; ``stretch``, ``quality``,
   ``shards``, ``chips``, ``proportions``; ``quicklook``, ``alignment``, ``quarantine``
3. data set: ``catalogue``, ``levir_kr``
4. learning: ``backbone``, ``teacher``, ``anchor``, ``losses``, ``augment``, ``batches``, ``checkpoint``, ``distributed``,
   ``runtime``, ``watch``; ``methods`` (the registry alone), ``presets``; what is in ``methods``; ``schedules``,
   ``signs``, ``run``, ``resuming``, ``training``, ``pretrain``
5. judging: ``bundle`` with its ``loader`` (what is judged is what is delivered), ``tasks``, ``probe``, ``finetune``,
   ``statistics``, ``promotion`` (the rule alone), ``evaluate``, ``charts``, ``task_sections``, ``report``
6. delivering: ``registry`` (the one package that knows MLflow)
7. doors: ``chain`` (which step follows which), ``checks``, ``versioning`` (DVC), ``cli``, ``bench``

Beside the floors: ``acquisition`` (STAC catalogues into folders; stands on values and ``raster_files``),
``stac_export`` (a frozen Levir-KR as a STAC collection; stands on the data set),
``world`` generates data, ``testing`` serves tests.

The orchestration lives in ``geokr_assets``.
"""

__version__ = "0.1.0"
