"""The kinds of task: one module a kind, with the networks and metrics it needs.

Not here: which kinds there are (``evaluation.task_kinds``) and reading labelled files (``evaluation.sets``).
"""
