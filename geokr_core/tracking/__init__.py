"""MLflow runs: one a materialisation, kept on disk while the server is away. No model and no torch.

``server`` reaches MLflow, ``runs`` opens a run there, ``delivery`` gets records to it even when it is away for a while,
``spool`` keeps them until then, ``tracked_run`` is the run of a step. Everything goes through a separate client, so that
MLflow's global state (the tracking URI, the active run) is neither read nor changed.

Not here: registered models and their aliases (``registry``).

Environment:
    MLFLOW_TRACKING_URI: the server; ``sqlite:///mlflow.db`` in the working directory where it is not set.
    GEOKR_MLFLOW_UI_URL: where people open that server in a browser, if not at the tracking URI.
"""

import os

# MLflow reads these when it is imported, so they stand in the package that is always imported before it. A server that is
# away must cost seconds, not the minutes of MLflow's own 120 s x 8 attempts; nothing is sent to third parties.
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
