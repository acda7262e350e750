"""The step `pretraining`: recipes, objectives and the one loop that trains a backbone on Levir-KR.

Not here: what is shared with the evaluation (``networks``).
"""
