"""Files that travel with a backbone and run where this project is not installed.

``geokr_backbone.py`` is copied verbatim into every bundle, ``backbone_pyfunc.py`` beside it into the model registry.
Neither imports anything else of this project, and only tools at the receiving end import what they name.
"""
