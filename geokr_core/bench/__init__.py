"""Speed, measured as ratios within one run so that the figures hold on any machine; see ``docs/benchmarks.md``.

One module a benchmark. Each makes its data in a temporary folder and compares the product with a plain baseline that
does the same work in the obvious way.

Not here: anything that the chain uses. Baselines live only here.
"""
