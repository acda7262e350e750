"""A first parameter file for someone's own data: written from what lies in the folders, with a comment on every guess.

What files are is asked of those who read them later: the families of scene products, the legends, the layouts of labelled
sets. Not here: anything that judges whether the data are good enough, which the steps do.
"""
