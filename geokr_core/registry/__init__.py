"""The model registry: registered backbones, and the challenger that becomes champion.

``versions`` registers and downloads models, ``promotion`` holds the rule, ``champion`` promotes, takes back and compares,
``standing`` asks whether what was recorded is still so.
Its names, and those of ``tracking`` that belong to a registered model, can be imported from here; a module is imported when
one of its names is first asked for, so that the parameter file, whose section `champion` lies here, stays light.

Not here: MLflow runs (``tracking``), the files that are registered (``backbone``).
"""

import importlib
from typing import TYPE_CHECKING, Any

import geokr_core.tracking  # sets what MLflow reads at import  # noqa: F401
from geokr_core.step.extras import named_extras

if TYPE_CHECKING:
    from geokr_core.registry.champion import compare, promote, rollback
    from geokr_core.registry.standing import CHALLENGER, CHAMPION, changed_since
    from geokr_core.registry.versions import download
    from geokr_core.tracking.delivery import deliver_kept
    from geokr_core.tracking.runs import FINGERPRINT_TAG
    from geokr_core.tracking.server import EXPERIMENT, tracking_uri
    from geokr_core.tracking.tracked_run import DATA_VERSION_TAG, UI_VARIABLE, TrackedRun, git_sha, track_step

__all__ = [
    "CHALLENGER",
    "CHAMPION",
    "DATA_VERSION_TAG",
    "EXPERIMENT",
    "FINGERPRINT_TAG",
    "UI_VARIABLE",
    "TrackedRun",
    "changed_since",
    "compare",
    "deliver_kept",
    "download",
    "git_sha",
    "promote",
    "rollback",
    "track_step",
    "tracking_uri",
]

_HOMES = {
    "geokr_core.registry.champion": ("compare", "promote", "rollback"),
    "geokr_core.registry.standing": ("CHALLENGER", "CHAMPION", "changed_since"),
    "geokr_core.registry.versions": ("download",),
    "geokr_core.tracking.delivery": ("deliver_kept",),
    "geokr_core.tracking.runs": ("FINGERPRINT_TAG",),
    "geokr_core.tracking.server": ("EXPERIMENT", "tracking_uri"),
    "geokr_core.tracking.tracked_run": ("DATA_VERSION_TAG", "UI_VARIABLE", "TrackedRun", "git_sha", "track_step"),
}


def __getattr__(name: str) -> Any:
    """A name of `__all__`, from the module where it lives (PEP 562)."""
    for home, names in _HOMES.items():
        if name in names:
            with named_extras():
                return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
