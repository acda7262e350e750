"""Sets of images with boxes: the forms of their labels (``formats``, ``yolo``) and reading them (``read``).

Not here: learning from them (``evaluation.tasks``).
"""
