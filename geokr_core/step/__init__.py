"""What every step is given and gives back: its section's base, a reporter, a summary, whole files, digests.

Not here: anything that knows a raster, a network or the name of a step.
"""
