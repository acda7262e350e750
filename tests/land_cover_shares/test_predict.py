"""Maps of shares: they are right where land cover is known, cover what they promise, open elsewhere, and refuse by name."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import rasterio
from PIL import Image

from geokr_core.embeddings.config import EmbeddingsConfig
from geokr_core.embeddings.encoder import open_encoder
from geokr_core.errors import EmbeddingsError, PredictionError
from geokr_core.land_cover_shares.config import LandCoverSharesConfig
from geokr_core.land_cover_shares.head import read_head
from geokr_core.land_cover_shares.judgement import held_out
from geokr_core.land_cover_shares.judgement import predicted as chip_shares
from geokr_core.land_cover_shares.outputs import CLASSES, HEAD_FILE, INTERVALS, ITEM, PICTURE_FILE, RESULT_FILE, SHARES
from geokr_core.land_cover_shares.predict import predict_shares
from geokr_core.levir_kr.config import LevirKRConfig
from geokr_core.levir_kr.dataset import open_levir_kr
from geokr_core.levir_kr.freeze import freeze
from geokr_core.pictures.images import palette_of
from geokr_core.step.files import read_json
from geokr_core.step.reporter import RecordingReporter
from geokr_core.step.selection import even_selection

SCENE = "scene_0001"


@pytest.fixture(scope="module")
def maps(mapped_archive: Any) -> Path:
    out: Path = mapped_archive.store / "land_cover_shares"
    summary = predict_shares(
        LandCoverSharesConfig(workers=2), mapped_archive.params.chips, mapped_archive.inputs, out, RecordingReporter()
    )
    assert summary.numbers["num_scenes"] == 4
    assert summary.picture_png is not None
    return out


def predicted(archive: Any, out: Path, **more: Any) -> Path:
    predict_shares(LandCoverSharesConfig(**more), archive.params.chips, archive.inputs, out, RecordingReporter())
    return out


def test_shares_are_near_the_land_cover_of_held_out_places_and_intervals_cover_it(maps: Path) -> None:
    judged = read_json(maps / RESULT_FILE)["judgement"]
    assert judged["num_held_out_places"] >= 2
    assert judged["num_test_chips"] > 20
    assert judged["residual"] < 0.95 * judged["baseline_residual"]
    assert 0.8 <= judged["coverage"] <= 0.98
    assert 0 < judged["mean_width"] < 0.5


def test_the_picture_lays_the_product_above_the_map(maps: Path, mapped_archive: Any) -> None:
    """The first chip's bars, measured: the upper one is as long in each colour as the product's share, the lower one as the map's."""
    dataset = open_levir_kr(mapped_archive.store / "levir_kr")
    rows = even_selection(held_out(dataset).judged, 20)
    with Image.open(maps / PICTURE_FILE) as opened:
        pixels = np.asarray(opened.convert("RGB")).astype(int)
    chip_px, word_px, line_px = 192, 56, 16
    assert pixels.shape[1] == 5 * (chip_px + 10), "five chips of 32 px in a row, six times enlarged"
    colours = palette_of(dataset.class_colours).astype(int)

    def shares_of_bar(number: int) -> np.ndarray:
        line = pixels[line_px + chip_px + number * line_px + line_px // 2, word_px:chip_px]
        found = np.array([(line == colour).all(axis=1).mean() for colour in colours])
        assert found.sum() == pytest.approx(1.0)
        return found

    product, mapped = shares_of_bar(0), shares_of_bar(1)
    assert product == pytest.approx(dataset.proportions[rows[0]], abs=0.02)
    encoder = open_encoder(
        EmbeddingsConfig(bundle=mapped_archive.store / "backbone", features="multi"), None, dataset.bands
    )
    given = chip_shares(dataset, rows[:1], encoder, read_head(maps / HEAD_FILE), 1)
    assert mapped == pytest.approx(given[0], abs=0.02)
    assert not np.allclose(product, mapped, atol=0.02)


def test_the_map_of_a_chip_is_what_its_land_cover_is(maps: Path, mapped_archive: Any) -> None:
    dataset = open_levir_kr(mapped_archive.store / "levir_kr")
    rows = dataset.catalogue[dataset.catalogue["scene_id"] == SCENE]
    with rasterio.open(maps / f"{SCENE}{SHARES}") as found:
        shares = np.moveaxis(found.read(), 0, -1) * np.asarray(found.scales)
        assert found.descriptions == dataset.classes
        assert found.transform.a == pytest.approx(4 * 30)
    corner = np.stack([shares[r // 4 : r // 4 + 8, c // 4 : c // 4 + 8].mean(axis=(0, 1)) for r, c in _places(rows)])
    true = dataset.proportions[rows.index]
    residual, of_mean = np.abs(corner - true).sum(axis=1), np.abs(true.mean(axis=0) - true).sum(axis=1)
    assert residual.mean() < 0.85 * of_mean.mean()
    with rasterio.open(maps / f"{SCENE}{CLASSES}") as found:
        assert (found.read(1) == shares.argmax(axis=-1)).all()
        assert found.colormap(1)[0][:3] == (250, 160, 255)
    with rasterio.open(maps / f"{SCENE}{INTERVALS}") as found:
        ends = found.read() / 250
        assert found.res == (32 * 30.0, 32 * 30.0)
    blocks = shares.reshape(4, 8, 4, 8, -1).mean(axis=(1, 3))
    low, high = np.moveaxis(ends, 0, -1)[..., :10], np.moveaxis(ends, 0, -1)[..., 10:]
    assert (low <= blocks + 0.005).all()
    assert (high >= blocks - 0.005).all()


def _places(rows: Any) -> list[tuple[int, int]]:
    return list(zip(rows["pixel_row"].astype(int), rows["pixel_col"].astype(int), strict=True))


def test_the_files_are_valid_and_open_in_rio_tiler(maps: Path) -> None:
    from rio_cogeo.cogeo import cog_validate
    from rio_tiler.io import Reader

    for ending in (SHARES, CLASSES, INTERVALS):
        valid, errors, _ = cog_validate(maps / f"{SCENE}{ending}", strict=True)
        assert valid, errors
    with Reader(str(maps / f"{SCENE}{SHARES}")) as reader:
        lon, lat = np.mean(np.reshape(reader.get_geographic_bounds("EPSG:4326"), (2, 2)), axis=0)
        values = reader.point(lon, lat).data
        assert values.shape == (10,)
        assert int(values.sum()) == pytest.approx(250, abs=5)
        assert reader.preview().count == 10


def test_items_are_stac_and_lead_to_the_network(maps: Path, mapped_archive: Any) -> None:
    item = pystac.Item.from_file(str(maps / f"{SCENE}{ITEM}"))
    assert item.datetime is None  # the date of these scenes is unknown
    classes = item.assets["class"].extra_fields["classification:classes"]
    assert [part["name"] for part in classes] == list(open_levir_kr(mapped_archive.store / "levir_kr").classes)
    assert item.assets["shares"].extra_fields["bands"][0]["raster:scale"] == pytest.approx(0.004)
    for asset in item.assets.values():
        assert (maps / asset.href).is_file()
    (model,) = [link for link in item.links if link.rel == "derived_from"]
    assert json.loads((maps / model.href).read_text())["properties"]["mlm:name"] == "tiny"
    collection = pystac.Collection.from_file(str(maps / "collection.json"))
    assert len(list(collection.get_items())) == 4


def test_the_same_inputs_give_the_same_bytes_and_nothing_is_made_twice(maps: Path, mapped_archive: Any) -> None:
    other = predicted(mapped_archive, mapped_archive.store / "again", workers=1)
    names = {path.name for path in maps.iterdir() if path.is_file()}
    assert names == {path.name for path in other.iterdir() if path.is_file()}
    for name in names:
        assert (maps / name).read_bytes() == (other / name).read_bytes(), name
    stamp = (other / f"{SCENE}{SHARES}").stat().st_mtime_ns
    (other / f"scene_0002{SHARES}").write_bytes(b"damaged")
    predicted(mapped_archive, other, head=maps / HEAD_FILE)
    assert (other / f"{SCENE}{SHARES}").stat().st_mtime_ns == stamp
    assert (other / f"scene_0002{SHARES}").read_bytes() == (maps / f"scene_0002{SHARES}").read_bytes()


def test_a_head_of_an_earlier_run_gives_the_same_maps(maps: Path, mapped_archive: Any) -> None:
    out = predicted(mapped_archive, mapped_archive.store / "given", head=maps / HEAD_FILE)
    assert (out / f"{SCENE}{SHARES}").read_bytes() == (maps / f"{SCENE}{SHARES}").read_bytes()
    assert read_json(out / RESULT_FILE)["judgement"]["num_training_chips"] == 0


def test_what_cannot_be_mapped_is_named(maps: Path, mapped_archive: Any, tmp_path: Path) -> None:
    store = mapped_archive.store
    with pytest.raises(PredictionError, match=r"fitted on vectors of tiny .* features\s+multi.*features last"):
        predicted(mapped_archive, tmp_path / "out", head=maps / HEAD_FILE, features="last")
    with pytest.raises(PredictionError, match="no such file"):
        predicted(mapped_archive, tmp_path / "out", head=tmp_path / "nothing.safetensors")
    with pytest.raises(PredictionError, match="not a head"):
        predicted(mapped_archive, tmp_path / "out", head=store / "backbone" / "backbone.safetensors")
    unsplit = LevirKRConfig(validation_fraction=0.0, place_size_deg=0.01)
    freeze(unsplit, store / "chips", store / "proportions", store / "unsplit", RecordingReporter())
    without = replace(mapped_archive, inputs=replace(mapped_archive.inputs, levir_kr=store / "unsplit"))
    with pytest.raises(PredictionError, match="no place of this Levir-KR is held out"):
        predicted(without, tmp_path / "out")
    fewer = mapped_archive.params.chips.model_copy(update={"bands": ("red", "green")})
    with pytest.raises(PredictionError, match=r"has the bands red, green, blue"):
        predict_shares(LandCoverSharesConfig(), fewer, mapped_archive.inputs, tmp_path / "out", RecordingReporter())


def test_a_head_of_another_legend_and_chips_without_a_band_are_refused(
    maps: Path, mapped_archive: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from geokr_core.levir_kr.dataset import LevirKR

    classes = open_levir_kr(mapped_archive.store / "levir_kr").classes
    monkeypatch.setattr(LevirKR, "classes", property(lambda self: tuple(reversed(classes))))
    with pytest.raises(
        PredictionError, match=r"knows the classes cultivated_land.*but the legend of this archive is snow"
    ):
        predicted(mapped_archive, tmp_path / "out", head=maps / HEAD_FILE)
    monkeypatch.undo()
    monkeypatch.setattr(LevirKR, "bands", property(lambda self: ("red", "green")))
    fewer = mapped_archive.params.chips.model_copy(update={"bands": ("red", "green")})
    with pytest.raises(EmbeddingsError, match="blue missing"):
        predict_shares(LandCoverSharesConfig(), fewer, mapped_archive.inputs, tmp_path / "out", RecordingReporter())


def test_a_scene_that_cannot_be_read_is_passed_over_by_name(maps: Path, mapped_archive: Any, tmp_path: Path) -> None:
    source = tmp_path / "scenes"
    shutil.copytree(mapped_archive.inputs.source, source)
    (source / "scene_0002.tif").write_bytes((source / "scene_0002.tif").read_bytes()[:20_000])
    cut = replace(mapped_archive, inputs=replace(mapped_archive.inputs, source=source))
    reporter = RecordingReporter()
    out = tmp_path / "out"
    config = LandCoverSharesConfig(head=maps / HEAD_FILE)
    summary = predict_shares(config, cut.params.chips, cut.inputs, out, reporter)
    assert summary.numbers["num_refused"] == 1
    assert any("scene_0002 is not mapped" in warning for warning in reporter.warnings)
    assert not (out / f"scene_0002{SHARES}").exists()
    assert (out / f"scene_0003{SHARES}").exists()
