"""The Dagster code location: GeoKR's chain as an asset graph that anyone can start and follow in a browser.

One Dagster concept a module: ``assets`` (what is made), ``checks`` (what must hold of it), ``jobs`` (what is started
together), ``sensors`` and ``schedules`` (what starts by itself), ``resources``, ``partitions``, ``metadata`` (what a
materialisation shows). ``materialise`` is the bridge: it calls the one function of a step in ``geokr_core``.

Nothing is computed in here, and importing the definitions imports no torch, no MLflow and no raster library: the
code server, every run and every step process load this package anew.
No module in here may use ``from __future__ import annotations``: Dagster reads the annotations of its functions.
"""

from geokr_core.step.extras import require_extra

require_extra("dagster", "The Dagster code location `geokr_assets`")
