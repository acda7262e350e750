"""Operating a project for years: its health, its page of today, metrics, retention, backup and restore.

Everything here looks at what the chain, MLflow, DVC and Dagster left behind, and at the machine. Not here: any step, and
whatever starts steps.
"""
