"""Speed, measured as ratios within one run so that the figures hold on any machine; see ``docs/benchmarks.md``.

One module a benchmark. Each makes its own data in a temporary folder and measures the product against a plain
baseline that does the same work the obvious way. Baselines live here and nowhere else.
"""
