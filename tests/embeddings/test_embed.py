"""Vectors of an archive: the right ones on the right ground, once a scene, the same bytes whatever happened."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pyproj
import pystac
import pytest
import rasterio
import torch
from pystac.validation import validate_dict

from geokr_core.embeddings import embed
from geokr_core.embeddings.config import EmbeddingsConfig
from geokr_core.embeddings.embed import embed_scenes
from geokr_core.embeddings.encoder import Encoder, open_encoder
from geokr_core.embeddings.read import open_embeddings
from geokr_core.embeddings.table import along_curve
from geokr_core.errors import BackboneError, ConfigError, EmbeddingsError, MissingInputError
from geokr_core.networks.network import build
from geokr_core.networks.weights import save_weights
from geokr_core.step.files import read_json, write_json
from geokr_core.step.reporter import RecordingReporter

Archive = Callable[..., Path]


def config_of(weights: Path, **more: Any) -> EmbeddingsConfig:
    return EmbeddingsConfig(architecture="squeezenet1_1", weights=weights, device="cpu", **{"workers": 1, **more})


def embedded(store: Path, config: EmbeddingsConfig, name: str = "embeddings") -> Path:
    embed_scenes(config, None, store / "chips", store / name, RecordingReporter())
    return store / name


def content(folder: Path) -> Mapping[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("place", ["north", "south", "south_up", "antimeridian", "degrees"])
def test_every_vector_is_that_of_the_ground_it_lies_on(archive: Archive, weights: Path, place: str) -> None:
    """Found anew from the raw file alone: the point gives the pixels, the pixels give the vector."""
    store = archive(place)
    config = config_of(weights)
    found = open_embeddings(embedded(store, config))
    encoder = open_encoder(config, None, ["red", "green", "blue"])
    with rasterio.open(store.parent / "scenes" / f"{place}.tif") as scene:
        pixels = np.moveaxis(scene.read(), 0, -1)
        to_scene = pyproj.Transformer.from_crs("OGC:CRS84", scene.crs.to_wkt(), always_xy=True)
        x, y = to_scene.transform(found.chips["lon"].to_numpy(), found.chips["lat"].to_numpy())
        columns, rows = ~scene.transform @ (np.asarray(x), np.asarray(y))
        to_degrees = pyproj.Transformer.from_crs(scene.crs.to_wkt(), "OGC:CRS84", always_xy=True)
        centres = scene.transform @ (np.round(columns), np.round(rows))
    lon, lat = to_degrees.transform(*centres)
    assert len(found) == 30
    turn = (np.asarray(lon) - found.chips["lon"].to_numpy() + 180) % 360 - 180
    assert np.abs(turn).max() < 1e-6
    assert np.abs(np.asarray(lat) - found.chips["lat"].to_numpy()).max() < 1e-6
    windows = [
        pixels[round(r) - 16 : round(r) + 16, round(c) - 16 : round(c) + 16] for r, c in zip(rows, columns, strict=True)
    ]
    again = encoder.encode(np.stack(windows))
    step = (again.max(axis=0) - again.min(axis=0)) / 254
    assert (np.abs(again - found.vectors) <= step * 0.51 + 1e-5).all()
    assert not np.allclose(again[0], found.vectors[1], atol=step.max())


def test_a_chip_across_the_antimeridian_has_a_box_that_crosses_it(archive: Archive, weights: Path) -> None:
    folder = embedded(archive("antimeridian"), config_of(weights))
    chips = open_embeddings(folder).chips
    crossing = chips["west"] > chips["east"]
    assert 0 < crossing.sum() < len(chips)
    assert (chips["lon"].abs() <= 180).all()
    assert (chips.loc[~crossing, "west"] < chips.loc[~crossing, "lon"]).all()
    item = read_json(folder / "antimeridian.stac.json")
    assert item["geometry"]["type"] == "MultiPolygon"
    assert item["bbox"][0] > item["bbox"][2]
    west, _, east, _ = read_json(folder / "collection.json")["extent"]["spatial"]["bbox"][0]
    assert west > east


def test_the_bytes_do_not_depend_on_threads(archive: Archive, weights: Path) -> None:
    store = archive("north", "south")
    one = content(embedded(store, config_of(weights, workers=1), "one"))
    threads = torch.get_num_threads()
    three = content(embedded(store, config_of(weights, workers=3), "three"))
    assert torch.get_num_threads() == threads
    assert one.keys() == three.keys()
    assert [name for name in one if one[name] != three[name]] == []


def test_only_what_is_new_or_changed_is_embedded_again(
    archive: Archive, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, config, seen = archive("north", "south"), config_of(weights), list[str]()
    real = embed._vectors

    def listening(job: Any, scene_id: str, images: np.ndarray) -> np.ndarray:
        seen.append(scene_id)
        return real(job, scene_id, images)

    monkeypatch.setattr(embed, "_vectors", listening)
    out = embedded(store, config)
    embedded(store, config)
    assert sorted(seen) == ["north", "south"]  # which of two comes first into the network is not fixed
    archive("north", "south", "degrees")
    embedded(store, config)
    assert seen[2:] == ["degrees"]
    (out / "south.parquet").write_bytes(b"damaged")
    reporter = RecordingReporter()
    embed_scenes(config, None, store / "chips", out, reporter)
    assert seen[3:] == ["south"]
    assert any("south.parquet" in line for line in reporter.warnings)
    archive("north", "degrees")
    embedded(store, config)
    assert seen[4:] == []
    assert not list(out.glob("south*"))
    assert [link["href"] for link in read_json(out / "collection.json")["links"] if link["rel"] == "item"] == [
        "./degrees.stac.json",
        "./north.stac.json",
    ]
    embedded(store, config_of(weights, features="multi"))
    assert sorted(seen[4:]) == ["degrees", "north"]


def test_killed_anywhere_it_ends_in_the_same_bytes(
    archive: Archive, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, config = archive("north", "south"), config_of(weights)
    expected = content(embedded(store, config, "whole"))
    places = ("_vectors", "quantise", "write_table", "scene_item", "write_collection")
    for place, at in zip(places, (1, 2, 2, 1, 1), strict=True):
        out = store / "killed"
        shutil.rmtree(out, ignore_errors=True)
        calls = iter(range(1, 100))
        real = getattr(embed, place)

        def dying(*args: Any, real: Any = real, at: int = at, calls: Iterator[int] = calls) -> Any:
            done = real(*args)
            if next(calls) == at:
                raise KeyboardInterrupt
            return done

        with monkeypatch.context() as patch:
            patch.setattr(embed, place, dying)
            with pytest.raises(KeyboardInterrupt):
                embedded(store, config, "killed")
        assert content(embedded(store, config, "killed")) == expected, place


def test_the_file_is_what_others_expect(archive: Archive, weights: Path) -> None:
    folder = embedded(archive("north"), config_of(weights))
    path = folder / "north.parquet"
    frame = gpd.read_parquet(path)
    assert frame.crs == "OGC:CRS84"
    assert (frame.geom_type == "Point").all()
    assert frame["embedding"].iloc[0].dtype == np.int8
    assert torch.tensor(frame["embedding"].iloc[0]).shape == (512,)  # as torchgeo's EarthIndexEmbeddings does
    assert {"chip_id", "acquired", "model", "model_version", "data_version"} <= set(frame.columns)
    metadata = json.loads(pq.read_schema(path).metadata[b"geo"])
    assert metadata["version"] == "1.1.0"
    assert metadata["columns"]["geometry"]["covering"]["bbox"]["xmin"] == ["bbox", "xmin"]
    west, south, east, north = frame.total_bounds
    middle = ((west + east) / 2, (south + north) / 2)
    part = gpd.read_parquet(path, bbox=(west - 1, south - 1, *middle))
    assert 0 < len(part) < len(frame)
    footer = json.loads(pq.read_schema(path).metadata[b"geokr"])
    assert len(footer["scale"]) == len(footer["offset"]) == footer["num_dimensions"] == 512


def test_rows_follow_a_hilbert_curve() -> None:
    rng = np.random.default_rng(0)
    lon, lat = rng.uniform(10, 20, 2000), rng.uniform(40, 50, 2000)
    order = along_curve(lon, lat, [f"{k:04d}" for k in range(2000)])

    def walk(rows: np.ndarray) -> float:
        return float(np.hypot(np.diff(lon[rows]), np.diff(lat[rows])).mean())

    assert sorted(order) == list(range(2000))
    assert walk(order) < walk(np.arange(2000)) / 15
    same = np.zeros(3)
    assert along_curve(same, same, ["c", "a", "b"]).tolist() == [1, 2, 0]


def test_stac_says_what_the_embedding_extension_asks_for(archive: Archive, weights: Path) -> None:
    folder = embedded(archive("north", "south"), config_of(weights))
    collection = read_json(folder / "collection.json")
    assert collection["emb:type"] == "chip"
    assert (collection["emb:dimensions"], collection["data_type"]) == (512, "int8")
    assert collection["emb:chip_layout"] == {"layout_type": "regular_grid", "chip_size": [32, 32], "stride": [16, 16]}
    assert {"emb:model", "emb:source-data"} <= {link["rel"] for link in collection["links"]}
    opened = pystac.Collection.from_file(str(folder / "collection.json"))
    items = list(opened.get_items())
    assert {item.id for item in items} == {"north", "south"}
    for item in items:
        quantisation = item.properties["emb:quantization"]
        assert set(quantisation) <= {"method", "original_dtype", "quantized_dtype", "scale", "offset", "link"}
        assert len(quantisation["scale"]) == 512
        assert (folder / item.assets["embeddings"].href).is_file()
    hrefs = [link["href"] for link in collection["links"]]
    hrefs += [link["href"] for name in ("north", "south") for link in read_json(folder / f"{name}.stac.json")["links"]]
    for item in items:
        validate_dict(item.to_dict(include_self_link=False), extensions=[])
    assert [href for href in hrefs if not (folder / href).exists()] == []


def test_all_stages_lie_side_by_side(archive: Archive, weights: Path) -> None:
    store = archive("north")
    multi = open_embeddings(embedded(store, config_of(weights, features="multi"), "multi"))
    last = open_embeddings(embedded(store, config_of(weights), "last"))
    first, end = multi.network["stages"]["stage4"]
    assert multi.vectors.shape[1] == end == multi.network["num_dimensions"]
    assert np.allclose(multi.vectors[:, first:end], last.vectors, atol=1e-5)


def test_the_bundle_of_the_chain_brings_its_bands_and_statistics(finished_bundle: Path, archive: Archive) -> None:
    store = archive("north")
    summary = embed_scenes(
        EmbeddingsConfig(workers=1), finished_bundle, store / "chips", store / "out", RecordingReporter()
    )
    found = open_embeddings(store / "out")
    described = read_json(finished_bundle / "backbone.json")
    assert found.network["model"] == described["model_name"]
    assert found.network["mean"] == pytest.approx(described["mean"], abs=1e-6)
    assert summary.numbers["largest_cosine_distance_of_int8"] < 1e-3
    model = next(k for k in read_json(store / "out" / "collection.json")["links"] if k["rel"] == "emb:model")
    assert (store / "out" / model["href"]).resolve() == (finished_bundle / "mlm.json").resolve()
    assert any("more than twice as fine or coarse" in line for line in summary.warnings) == (
        not described["gsd_m_min"] / 2 <= 30 <= described["gsd_m_max"] * 2
    )


def test_bands_that_the_chips_lack_are_named(archive: Archive, weights: Path) -> None:
    store = archive("north")
    cut = read_json(store / "chips" / "cut.json")
    write_json(store / "chips" / "cut.json", {**cut, "bands": ["nir", "red", "green"]})
    with pytest.raises(EmbeddingsError, match=r"bands nir, red, green.*needs red, green, blue: blue missing"):
        embedded(store, config_of(weights))


def test_the_order_of_bands_is_that_of_the_network(weights: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 4), dtype=np.uint8)
    straight = open_encoder(config_of(weights), None, ["red", "green", "blue", "nir"])
    turned = open_encoder(config_of(weights), None, ["blue", "nir", "green", "red"])
    assert np.array_equal(straight.encode(images), turned.encode(images[..., [2, 3, 1, 0]]))


def test_vectors_of_another_model_are_not_mixed_in(archive: Archive, weights: Path, tmp_path: Path) -> None:
    store = archive("north", "south")
    ours = embedded(store, config_of(weights), "ours")
    other = tmp_path / "other.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        save_weights(build("squeezenet1_1"), other)
    theirs = embedded(store, config_of(other), "theirs")
    for name in ("south.parquet", "south.record.json"):
        shutil.copy(theirs / name, ours / name)
    with pytest.raises(EmbeddingsError, match="two networks cannot be compared"):
        open_embeddings(ours)
    assert len(open_embeddings(ours, ["north"])) == 30


def test_vectors_that_are_not_finite_are_refused(
    archive: Archive, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = archive("north")

    def broken(self: Encoder, images: np.ndarray) -> np.ndarray:
        return np.full((len(images), 512), np.nan, dtype=np.float32)

    monkeypatch.setattr(Encoder, "encode", broken)
    with pytest.raises(EmbeddingsError, match="not finite for 30 of 30 chips of scene north"):
        embedded(store, config_of(weights))
    assert not (store / "embeddings" / "north.parquet").exists()


def test_what_is_not_there_is_named(archive: Archive, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="geokr chips"):
        embed_scenes(config_of(weights), None, tmp_path / "nothing", tmp_path / "out")
    store = archive("north")
    with pytest.raises(MissingInputError, match="no backbone bundle"):
        embed_scenes(EmbeddingsConfig(), tmp_path / "nothing", store / "chips", store / "out")
    with pytest.raises(BackboneError, match="no such weights file"):
        embedded(store, config_of(tmp_path / "none.safetensors"))
    with pytest.raises(MissingInputError, match="geokr embed"):
        open_embeddings(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"architecture": "resnet18"}, "give both or neither"),
        ({"weights": "imagenet"}, "give both or neither"),
        ({"bundle": "a", "architecture": "resnet18", "weights": "imagenet"}, "give one of them"),
        ({"architecture": "resnet19", "weights": "imagenet"}, "did you mean"),
    ],
)
def test_sections_that_name_no_network_or_two_are_refused(given: dict[str, str], message: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=message):
        EmbeddingsConfig.model_validate(given)


def test_chips_without_a_date_have_none(archive: Archive, weights: Path) -> None:
    folder = embedded(archive("north"), config_of(weights))
    assert pd.isna(open_embeddings(folder).chips["acquired"]).all()
    assert read_json(folder / "north.stac.json")["properties"]["geokr:acquired_unknown"] is True
    assert "unknown for some scenes" in (folder / "DATA_CARD.md").read_text(encoding="utf-8")
