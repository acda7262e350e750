"""Folders of plain images: every readable one gets a vector, the others are named."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from affine import Affine
from PIL import Image

from geokr_core.embeddings.config import EmbeddingsConfig
from geokr_core.embeddings.encoder import open_encoder
from geokr_core.embeddings.images import embed_images, read_image
from geokr_core.embeddings.table import footer_of
from geokr_core.errors import EmbeddingsError, MissingInputError
from geokr_core.step.reporter import RecordingReporter
from geokr_core.testing import write_raster


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images in two folders, and two files that are none."""
    rng = np.random.default_rng(0)
    for k in range(5):
        pixels = rng.integers(0, 256, (40 + 8 * k, 64, 3), dtype=np.uint8)
        path = tmp_path / "images" / ("a" if k % 2 else "b") / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    (tmp_path / "images" / "broken.jpg").write_bytes(b"no image")
    Image.fromarray(rng.integers(0, 60_000, (32, 32), dtype=np.uint16)).save(tmp_path / "images" / "deep.png")
    (tmp_path / "images" / "notes.txt").write_text("no image either")
    return tmp_path / "images"


def test_every_readable_image_gets_its_vector(folder: Path, weights: Path, tmp_path: Path) -> None:
    config = EmbeddingsConfig.model_validate({"architecture": "squeezenet1_1", "weights": weights, "workers": 1})
    reporter = RecordingReporter()
    summary = embed_images(config, None, folder, tmp_path / "vectors.parquet", 32, reporter)
    assert (summary.numbers["num_images"], summary.numbers["num_skipped"]) == (5, 2)
    assert any("broken.jpg: cannot be read as an image" in warning for warning in reporter.warnings)
    assert any("deep.png" in warning and "expected 8-bit RGB" in warning for warning in reporter.warnings)
    table = pq.read_table(tmp_path / "vectors.parquet")
    assert table["path"].to_pylist() == ["a/1.png", "a/3.png", "b/0.png", "b/2.png", "b/4.png"]
    footer = footer_of(table.schema)
    vectors = np.array(table["embedding"].to_pylist()) * footer["scale"] + footer["offset"]
    direct = open_encoder(config, None, ("red", "green", "blue")).encode(read_image(folder / "b" / "2.png", 32)[None])
    assert np.abs(vectors[3] - direct[0]).max() <= max(footer["scale"]) / 2 * 1.1
    before = (tmp_path / "vectors.parquet").read_bytes()
    embed_images(config, None, folder, tmp_path / "vectors.parquet", 32, reporter)
    assert (tmp_path / "vectors.parquet").read_bytes() == before


def test_images_are_read_as_those_of_labelled_sets(tmp_path: Path) -> None:
    upright = np.zeros((32, 64, 3), dtype=np.uint8)
    upright[:, :32] = 200
    turned = Image.fromarray(np.rot90(upright))
    exif = turned.getexif()
    exif[274] = 6  # shown a quarter to the right
    turned.save(tmp_path / "a.png", exif=exif)
    assert read_image(tmp_path / "a.png", 32).shape == (32, 32, 3)
    assert (read_image(tmp_path / "a.png", 32)[:, :12] == 200).all()
    (tmp_path / "b.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(EmbeddingsError, match=r"b\.png: cannot be read as an image"):
        read_image(tmp_path / "b.png", 32)
    Image.fromarray(upright).save(tmp_path / "c.webp", lossless=True)
    assert (read_image(tmp_path / "c.webp", 32)[:, :12] == 200).all()


def test_an_image_of_16_bits_is_stretched_as_the_scenes_that_the_backbone_was_trained_on(
    finished_bundle: Path, tmp_path: Path
) -> None:
    """Percentiles 2 and 98 of each band, of the pixels with data alone; bands are taken by their names."""
    rng = np.random.default_rng(0)
    bands = [rng.normal(mean, 300, (32, 32)).astype(np.uint16) for mean in (4000, 3000, 2000, 1000)]
    stored = np.stack(bands)
    stored[:, :8] = 0
    path = tmp_path / "scene.tif"
    write_raster(path, stored, None, Affine.identity(), named=("NIR", "Red", "Green", "Blue"), nodata=0)
    encoder = open_encoder(EmbeddingsConfig(workers=1), finished_bundle, ("red", "green", "blue"))
    found = read_image(path, 32, encoder)

    for place, band in enumerate(bands[1:]):
        low, high = np.percentile(band[8:], (2, 98))
        assert np.array_equal(found[8:, :, place], np.rint(((band[8:] - low) / (high - low)).clip(0, 1) * 255))
    assert (found[:8] == 0).all()
    with pytest.raises(EmbeddingsError, match="found 4 band.s. of uint16, expected 8-bit RGB"):
        read_image(path, 32)
    write_raster(path, stored, None, Affine.identity(), nodata=0)
    with pytest.raises(EmbeddingsError, match="found 4 band.s. of uint16 without names, expected red, green, blue"):
        read_image(path, 32, encoder)


def test_links_are_followed_and_dead_ones_named(folder: Path, weights: Path, tmp_path: Path) -> None:
    (folder / "elsewhere").symlink_to(tmp_path / "more")
    (folder / "dead.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "more").mkdir()
    Image.fromarray(np.zeros((40, 40, 3), dtype=np.uint8)).save(tmp_path / "more" / "5.png")
    (tmp_path / "more" / "._5.png").write_bytes(b"of another system")
    config = EmbeddingsConfig.model_validate({"architecture": "squeezenet1_1", "weights": weights, "workers": 1})
    reporter = RecordingReporter()
    summary = embed_images(config, None, folder, tmp_path / "vectors.parquet", 32, reporter)
    assert (summary.numbers["num_images"], summary.numbers["num_skipped"]) == (6, 3)
    assert any("dead.png" in warning for warning in reporter.warnings)


def test_a_folder_without_images_is_refused(folder: Path, weights: Path, tmp_path: Path) -> None:
    config = EmbeddingsConfig.model_validate({"architecture": "squeezenet1_1", "weights": weights})
    with pytest.raises(MissingInputError, match="no such folder"):
        embed_images(config, None, tmp_path / "nothing", tmp_path / "out.parquet", 32)
    (tmp_path / "empty").mkdir()
    with pytest.raises(EmbeddingsError, match=r"no readable image among 0 file\(s\)"):
        embed_images(config, None, tmp_path / "empty", tmp_path / "out.parquet", 32)
