"""The names of the benchmarks, for those who list them and load none."""

BENCHMARKS = ("ingest", "align", "archive", "scale", "loader", "pretrain", "methods", "embed", "evaluate", "startup")
"""The module ``geokr_core.bench.<name>`` holds ``bench_<name>``."""
