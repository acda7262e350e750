"""The step `land_cover`: what a product's codes mean, and which of its tiles lies where.

Not here: counting codes below a chip (``proportions``).
"""
