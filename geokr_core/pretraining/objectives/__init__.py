"""What a pretraining step minimises: one module an objective, none of which knows another.

Not here: what they share, the losses, the network and their common face (``pretraining.losses``, ``pretraining.network``,
``pretraining.objective``); when a step happens and what is kept of it (``pretraining.training``).
"""
