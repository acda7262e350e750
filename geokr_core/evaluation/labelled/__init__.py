"""Files of labelled sets: the one door for label files, splits, and what is not usable.

Not here: how the files of one kind of set lie and what they mean (``evaluation.sets``).
"""
