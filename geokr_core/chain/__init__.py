"""The chain: the whole parameter file, the table of steps, what is current, checks, and DVC.

Not here: the work itself, which each step's own package does.
"""
