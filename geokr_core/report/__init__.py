"""The step `report`: what was trained and how good it is, on one page.

Not here: statistics and charts of the evaluation (``evaluation``).
"""
