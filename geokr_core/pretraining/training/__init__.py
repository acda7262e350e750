"""One training run: its loop, state, teacher, schedules, batches and checkpoints.

Not here: which runs there are (``pretraining.runs``) and what is written of them (``pretraining.results``).
"""
