"""GeoKR's library: raw satellite scenes and a land-cover product in, a pretrained and evaluated backbone out.

The file tree is the chain: what a step does lies in the package of its name, beside its section of the parameter file.
Imports run downwards only, and never to Dagster (`make lint` checks it); the orchestration lives in ``geokr_assets``.

``import geokr_core as geokr`` gives the names of `__all__`, each imported when it is first used. ``docs/python.md`` shows
them at work.
"""

from importlib import import_module
from typing import Any, Final

__version__ = "0.1.0"

_PLACES: Final = {
    "load_params": "chain.params",
    "run": "chain.run",
    "run_step": "chain.run",
    "status": "chain.status",
    "generate_world": "world.generate",
    "take_inventory": "scenes.inventory",
    "index_products": "land_cover.tile_index",
    "cut_chips": "chips.cut",
    "count_proportions": "proportions.count",
    "freeze": "levir_kr.freeze",
    "open_levir_kr": "levir_kr.dataset",
    "pretrain": "pretraining.pretrain",
    "build_bundle": "backbone.build",
    "open_bundle": "backbone.bundle",
    "embed_scenes": "embeddings.embed",
    "open_embeddings": "embeddings.read",
    "search_archive": "search.find",
    "audit_map": "audit.run",
    "predict_shares": "land_cover_shares.predict",
    "evaluate": "evaluation.evaluate",
    "write_report": "report.page",
    "promote": "registry.champion",
}
"""Module of each public name; ``__init__.pyi`` says the same to type checkers and editors."""

__all__ = ["__version__", *_PLACES]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from geokr_core.step.extras import named_extras

    with named_extras():
        value = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
