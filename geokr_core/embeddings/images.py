"""Vectors of plain images, without a place on Earth: a folder of photographs or of cut-out scenes, as one Parquet file."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from geokr_core.backbone.loader.geokr_backbone import BundleError, stretch_limits
from geokr_core.chips.stretch import Stretch
from geokr_core.embeddings.config import EmbeddingsConfig
from geokr_core.embeddings.encoder import BATCH_SIZE, Encoder, described, open_encoder, usable_workers
from geokr_core.embeddings.quantisation import quantise
from geokr_core.embeddings.table import METADATA_KEY
from geokr_core.errors import EmbeddingsError, MissingInputError
from geokr_core.rasters.image_files import Picture, UnusableImageError
from geokr_core.rasters.image_files import read_image as read_picture
from geokr_core.step.files import whole_file
from geokr_core.step.found_files import find_files
from geokr_core.step.reporter import LOG, Reporter
from geokr_core.step.summary import Summary

RGB: Final = ("red", "green", "blue")
SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp")


def read_image(path: Path, size_px: int, encoder: Encoder | None = None) -> np.ndarray:
    """An image file as a chip: scaled by its shorter side, and cropped to a square around its middle.

    Args:
        path: an image in 8 bits, grey or in colour; it stands as its EXIF tag says. Or a raster of 16 bits or floats with the
            bands red, green and blue, in this order or named so.
        size_px: side of the chip.
        encoder: of a bundle, which says how images of more than 8 bits are stretched: as the scenes it was trained on, by limits
            of the image itself. Any other, or None: they are refused.

    Returns:
        uint8 (size_px, size_px, 3), red, green and blue.

    Raises:
        MissingInputError: there is no such file.
        EmbeddingsError: it is no readable image, too large, or of other bands or more bits.
    """
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file.")
    try:
        picture = read_picture(path)
        rgb = Image.fromarray(_as_rgb8(picture, encoder))
    except (UnusableImageError, BundleError) as error:
        raise EmbeddingsError(f"{path}: {error}") from error
    factor = size_px / min(rgb.size)
    width, height = (max(size_px, round(side * factor)) for side in rgb.size)
    scaled = np.asarray(rgb.resize((width, height), Image.Resampling.BICUBIC))
    top, left = (height - size_px) // 2, (width - size_px) // 2
    return scaled[top : top + size_px, left : left + size_px]


def _as_rgb8(picture: Picture, encoder: Encoder | None) -> np.ndarray:
    if picture.pixels.dtype == np.uint8 or picture.is_grey or encoder is None or encoder.bundle is None:
        is_grey = picture.pixels.dtype == np.uint8 and picture.pixels.shape[-1] == 1
        return np.repeat(picture.pixels, 3, axis=-1) if is_grey else picture.as_rgb8()
    seen = picture.of_bands(RGB).pixels[..., list(encoder.channels)]
    low, high = stretch_limits(seen, encoder.bundle, valid=picture.valid, layout="HWC")
    valid = np.ones(seen.shape[:2], dtype=bool) if picture.valid is None else picture.valid
    rgb = np.zeros((*seen.shape[:2], len(RGB)), dtype=np.uint8)
    rgb[..., list(encoder.channels)] = Stretch(tuple(low), tuple(high)).apply(np.moveaxis(seen, -1, 0), valid)
    return rgb


def embed_images(
    config: EmbeddingsConfig, backbone: Path | None, folder: Path, out: Path, size_px: int, reporter: Reporter = LOG
) -> Summary:
    """Embed every image below a folder.

    Args:
        config: which network, which features.
        backbone: bundle of the chain, used where the configuration names no other network.
        folder: of images, at any depth.
        out: Parquet file that gets ``path`` below the folder, ``model``, ``model_version`` and ``embedding`` (int8; scale and offset
            are in the footer, as in the files of scenes); the same images give the same bytes.
        size_px: side that images are scaled and cropped to.
        reporter: hears of files that are no readable images; they are skipped.

    Returns:
        Counts.

    Raises:
        MissingInputError: there is no such folder, or no bundle.
        EmbeddingsError: no file in it is a readable image, or the network needs other bands than an image has.
        BackboneError: the network cannot be opened, or the images are too small for it.
        OSError: the file system refused.
    """
    if not folder.is_dir():
        raise MissingInputError(f"{folder}: no such folder of images.")
    encoder = open_encoder(config, backbone, RGB)
    there = find_files(folder, "**")
    for name, reason in there.unreachable.items():
        reporter.warning(f"skipped: {folder / name}: {reason}.")
    paths = sorted(path for name in there.files if (path := folder / name).suffix.lower() in SUFFIXES)
    read, vectors = [], []
    with reporter.progress("images", len(paths)) as advance:
        for first in range(0, len(paths), 16 * BATCH_SIZE):
            part, images = _readable(paths[first : first + 16 * BATCH_SIZE], size_px, encoder, reporter)
            read += part
            if part:
                vectors += list(encoder.batches(np.stack(images), usable_workers(config.workers)))
            advance(min(16 * BATCH_SIZE, len(paths) - first))
    if not read:
        raise EmbeddingsError(
            f"{folder}: no readable image among {len(paths)} file(s) ending in {', '.join(SUFFIXES)}; scenes with a place on Earth "
            "are embedded by `geokr embed`."
        )
    quantised = quantise(np.concatenate(vectors))
    network = described(encoder)
    table = pa.table(
        {
            "path": pa.array([path.relative_to(folder).as_posix() for path in read]),
            "model": pa.repeat(encoder.model, len(read)),
            "model_version": pa.repeat(encoder.version, len(read)),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(quantised.codes.ravel()), quantised.codes.shape[1]),
        }
    )
    footer = {**network, "dtype": "int8", "scale": quantised.scale.tolist(), "offset": quantised.offset.tolist()}
    with whole_file(out) as partial:
        named = table.replace_schema_metadata({METADATA_KEY: json.dumps(footer).encode()})
        pq.write_table(named, partial, compression="zstd")
    left = len(paths) - len(read) + len(there.unreachable)
    return Summary(numbers={"num_images": len(read), "num_skipped": left, "num_dimensions": encoder.num_dimensions})


def _readable(
    paths: Sequence[Path], size_px: int, encoder: Encoder, reporter: Reporter
) -> tuple[list[Path], list[np.ndarray]]:
    read, images = [], []
    for path in paths:
        try:
            images.append(read_image(path, size_px, encoder))
            read.append(path)
        except EmbeddingsError as error:
            reporter.warning(f"skipped: {error}")
    return read, images
