"""The command `fetch`: scenes and the land cover of the same ground, from STAC catalogues into folders that the chain reads.

``catalogues`` holds the configuration, ``web`` every request, ``search`` finds the items, ``plan`` says what would be read and
how much that is, ``transfer`` reads and writes, ``fetching`` does it all. No server is contacted unless a catalogue is named, and
nothing is resampled.

Not here: any step. The chain reads the folders and never imports this package.
"""
