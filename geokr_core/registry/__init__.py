"""MLflow: one run a materialisation, the model registry, and the challenger that becomes champion. All of it is here.

No other package imports MLflow. ``server`` reaches it, ``runs`` opens a run there, ``delivery`` gets records to it even when it is away for a
while, ``tracking`` is the run of a step, ``versions`` the registry of models, ``champion`` promotes, takes back and compares. The
rule of promotion is in ``geokr_core.promotion``, the files that are registered in ``geokr_core.bundle``. Everything goes
through a client of its own, so that MLflow's global state (the tracking URI, the active run) is neither read nor changed.

Environment:
    MLFLOW_TRACKING_URI: the server; ``sqlite:///mlflow.db`` in the working directory where it is not set.
    GEOKR_MLFLOW_UI_URL: where people open that server in a browser, if not at the tracking URI.
"""

import os

# MLflow reads these when it is imported. A server that is away must cost seconds, not the minutes of MLflow's own
# 120 s x 8 attempts; nothing is sent to third parties.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# Otherwise MLflow copies pyproject.toml and uv.lock of the working directory into every model.
os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

from geokr_core.registry.champion import CHALLENGER, CHAMPION, compare, promote, rollback
from geokr_core.registry.delivery import deliver_kept
from geokr_core.registry.runs import FINGERPRINT_TAG
from geokr_core.registry.server import EXPERIMENT, tracking_uri
from geokr_core.registry.tracking import DATA_VERSION_TAG, UI_VARIABLE, TrackedRun, git_sha, track_step
from geokr_core.registry.versions import download

__all__ = [
    "CHALLENGER",
    "CHAMPION",
    "DATA_VERSION_TAG",
    "EXPERIMENT",
    "FINGERPRINT_TAG",
    "UI_VARIABLE",
    "TrackedRun",
    "compare",
    "deliver_kept",
    "download",
    "git_sha",
    "promote",
    "rollback",
    "track_step",
    "tracking_uri",
]
