"""The step `levir_kr`: chips and proportions frozen into one data set with a manifest, and its export as STAC.

Not here: how a network reads it in batches (``pretraining.training.batches``).
"""
