"""A small generated world: scenes, land cover and labelled sets, so that the chain runs and is tested offline.

It exists to run the chain and to find its mistakes. It proves nothing about the real one: its land cover is noise cut
at thresholds, its spectra are round numbers, its textures were drawn so that a network has something to learn. That a
backbone is good, or better than another, can only be shown on real scenes, real land-cover products and real tasks.
"""
