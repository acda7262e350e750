"""The step `world`: a small generated world of scenes, land cover and labelled sets, so that the chain runs and is tested offline.

It exists to run the chain and to find its mistakes. It proves nothing about the real one: its land cover is noise cut
at thresholds, its spectra are round numbers, its textures were drawn so that a network has something to learn. Only
real scenes, real land-cover products and real tasks can show that a backbone is good, or better than another.

Not here: anything that the chain needs on real data.
"""
