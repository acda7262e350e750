"""What a pretraining step minimises: one module an objective, and the losses they are made of.

Not here: when a step happens and what is kept of it (``pretraining.training``).
"""
