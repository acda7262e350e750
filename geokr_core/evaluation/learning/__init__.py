"""How a fine-tuned task learns and scores, whatever its set: networks on a backbone, their training and their metrics.

Not here: which kinds of task there are (``evaluation.task_kinds``), and what one kind alone does (``evaluation.tasks``).
"""
