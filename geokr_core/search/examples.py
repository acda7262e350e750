"""What is looked for, as vectors: a chip of the archive, the chip at a place, or an image from outside."""

from pathlib import Path

import numpy as np

from geokr_core.embeddings.config import EmbeddingsConfig
from geokr_core.embeddings.encoder import open_encoder
from geokr_core.embeddings.images import RGB, read_image
from geokr_core.embeddings.read import Embeddings
from geokr_core.errors import ConfigError, EmbeddingsError
from geokr_core.rasters.grid import METRES_PER_DEGREE


def chip_at(found: Embeddings, lon: float, lat: float) -> int:
    """The chip whose centre is nearest to a place, if the place lies in its box.

    Args:
        found: the archive.
        lon: degrees.
        lat: degrees.

    Returns:
        Its position.

    Raises:
        EmbeddingsError: no chip lies there; the message names the nearest one.
    """
    chips = found.chips
    east_m = ((chips["lon"].to_numpy() - lon + 180.0) % 360.0 - 180.0) * METRES_PER_DEGREE * np.cos(np.radians(lat))
    north_m = (chips["lat"].to_numpy() - lat) * METRES_PER_DEGREE
    distance = np.hypot(east_m, north_m)
    west, east = chips["west"].to_numpy(), chips["east"].to_numpy()
    between = np.where(west <= east, (lon >= west) & (lon <= east), (lon >= west) | (lon <= east))
    inside = between & (lat >= chips["south"].to_numpy()) & (lat <= chips["north"].to_numpy())
    if inside.any():
        return int(np.flatnonzero(inside)[distance[inside].argmin()])
    nearest = int(distance.argmin())
    row = chips.iloc[nearest]
    raise EmbeddingsError(
        f"No chip lies at {lon:g}, {lat:g} (longitude, latitude); the nearest one is {row['chip_id']} at {row['lon']:.4f}, "
        f"{row['lat']:.4f}, {distance[nearest] / 1000:.1f} km away."
    )


def parse_place(text: str) -> tuple[float, float]:
    """``longitude,latitude`` in degrees.

    Raises:
        ConfigError: it is not that.
    """
    try:
        lon, lat = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--at {text!r}: expected LON,LAT in degrees.") from error
    if not (-180 <= lon <= 180 and -90 <= lat <= 90):
        raise ConfigError(f"--at {text!r}: expected a longitude of -180 to 180 and a latitude of -90 to 90.")
    return lon, lat


def image_vector(path: Path, config: EmbeddingsConfig, backbone: Path | None, found: Embeddings) -> np.ndarray:
    """The vector of an image file by the network that embedded the archive.

    Args:
        path: an image of red, green and blue, see `read_image`; it is scaled to the chips' size by its shorter side and cropped
            to a square around its middle.
        config: the section `embeddings`.
        backbone: bundle of the chain.
        found: the archive.

    Returns:
        float32 (1, D).

    Raises:
        MissingInputError: there is no such file.
        EmbeddingsError: it is no image, the network needs other bands than an image has, or it is not the one that
            embedded the archive.
        BackboneError: the network cannot be opened.
    """
    encoder = open_encoder(config, backbone, RGB)
    if encoder.version != found.network["model_version"] or encoder.features != found.network["features"]:
        raise EmbeddingsError(
            f"The network of the parameter file is {encoder.model} {encoder.version}, the archive was embedded by "
            f"{found.network['model']} {found.network['model_version']}; run `geokr embed` again first."
        )
    size = int(found.network["chip_size_px"])
    return encoder.encode(read_image(path, size, encoder)[None])
