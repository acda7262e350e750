"""Searching an archive by example: chips that look like a chip, a place or an image, exactly ranked; and a page to click in.

``index`` ranks, ``filters`` chooses, ``examples`` turns what is asked for into a vector, ``output`` shows what was found, and
``page`` writes the page that needs no server.
"""
