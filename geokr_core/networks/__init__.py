"""Networks as such: the table of architectures, their weights, stages, input, device and processes.

Not here: losses and tasks. No module of this package knows a data set.
"""
