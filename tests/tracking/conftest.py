"""One MLflow database for the tests of tracking."""

from mlflow_database import database, server  # noqa: F401  # fixtures
