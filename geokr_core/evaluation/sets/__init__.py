"""Labelled sets as they lie on disk: images with a class (``classes``), a mask (``masks``) or boxes (``boxes``).

These know nothing of each other. Not here: reading a single file, and splits (``evaluation.labelled``); learning from a
set (``evaluation.tasks``).
"""
