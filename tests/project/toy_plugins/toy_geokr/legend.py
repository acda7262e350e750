"""The codes of a land-cover product: the path of a legend file."""

from pathlib import Path

TOY_COVER = Path(__file__).with_name("toy_cover.yaml")
