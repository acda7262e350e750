"""How a backbone is judged: a probe on frozen features, or fine-tuning; and with which labels.

Not here: what is scored (``evaluation.tasks``).
"""
