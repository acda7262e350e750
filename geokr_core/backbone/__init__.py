"""The step `backbone`: the folder that is delivered. ``bundle`` reads it, ``build`` writes it.

Not here: publishing it (``registry``).
"""
