"""What a person looks at first: held-out chips with the product's shares and the map's, and the map of one scene."""

from pathlib import Path
from typing import Final

import numpy as np
import rasterio

from geokr_core.embeddings.encoder import Encoder
from geokr_core.land_cover_shares.head import Head
from geokr_core.land_cover_shares.judgement import HeldOut, predicted
from geokr_core.land_cover_shares.outputs import CLASSES
from geokr_core.levir_kr.dataset import LevirKR
from geokr_core.pictures.bars import Compared, compared
from geokr_core.pictures.images import as_rgb, beside_legend, paint
from geokr_core.step.selection import even_selection

_NUM_CHIPS: Final = 20
_SHOWN_PX: Final = 384


def map_beside_product(head: Head, dataset: LevirKR, encoder: Encoder, places: HeldOut, workers: int) -> bytes:
    """Chips that nothing was fitted on, spread over their places, each above two bars: shares by the product, shares by the map.

    The caption of a chip says how far the two are apart (sum of absolute differences, 0 to 2).

    Args:
        head: the one that maps.
        dataset: for the chips and what the product says of them.
        encoder: the network.
        places: held-out ones; chips that the intervals were tested on, or calibrated on where there are no others.
        workers: threads of the encoder.

    Returns:
        PNG bytes.
    """
    rows = even_selection(places.judged, _NUM_CHIPS)
    pictures = as_rgb(dataset.images(rows), dataset.bands)
    products, maps = dataset.proportions[rows].astype(np.float64), predicted(dataset, rows, encoder, head, workers)
    chips = [
        Compared(picture, f"off by {np.abs(product - mapped).sum():.2f}", {"product": product, "map": mapped})
        for picture, product, mapped in zip(pictures, products, maps, strict=True)
    ]
    return compared(chips, head.classes, head.colours)


def largest_classes(out: Path, scene_id: str, head: Head) -> bytes:
    """The map of the largest class of one scene, beside a legend of the classes that it shows, the most ground first.

    Returns:
        PNG bytes.

    Raises:
        rasterio.errors.RasterioIOError: the map cannot be read.
    """
    with rasterio.open(out / f"{scene_id}{CLASSES}") as dataset:
        scale = max(1.0, max(dataset.shape) / _SHOWN_PX)
        classes = dataset.read(1, out_shape=(max(1, int(dataset.height / scale)), max(1, int(dataset.width / scale))))
    image = paint(np.where(classes < len(head.classes), classes, len(head.classes)), head.colours)
    known = classes[classes < len(head.classes)]
    shares = np.bincount(known, minlength=len(head.classes)) / max(1, len(known))
    shown = [int(k) for k in np.argsort(-shares, kind="stable") if shares[k] > 0]
    return beside_legend([image], [(head.classes[k], head.colours[k], float(shares[k])) for k in shown])
