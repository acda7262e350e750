"""Acquisition: scenes and the land cover of the same ground, from STAC catalogues into folders that the chain reads.

``catalogues`` holds the configuration, ``web`` every request, ``search`` the items, ``plan`` what would be read and
how much that is, ``transfer`` the reading and writing. Nothing here is contacted unless a catalogue is named, nothing
is resampled, and the chain itself never imports this package.
"""

from geokr_core.acquisition.catalogues import Catalogue, CatalogueCollection, FetchConfig, load_catalogues
from geokr_core.acquisition.fetching import fetch
from geokr_core.acquisition.plan import FetchPlan

__all__ = ["Catalogue", "CatalogueCollection", "FetchConfig", "FetchPlan", "fetch", "load_catalogues"]
