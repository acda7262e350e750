"""Levir-KR as a STAC collection: read back by pystac, checked against the schemas, footprints and figures right."""

from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pandas as pd
import pyproj
import pystac
import pytest
import shapely
from pystac.validation import validate_dict

from geokr_core.errors import DatasetError, MissingInputError
from geokr_core.levir_kr.config import LevirKRConfig
from geokr_core.levir_kr.dataset import LevirKR, open_levir_kr
from geokr_core.levir_kr.freeze import freeze
from geokr_core.levir_kr.stac_export import export_stac, joint_bbox, within_half_turn
from geokr_core.step.digests import data_version, mismatch
from geokr_core.step.reporter import RecordingReporter
from geokr_core.testing import make_levir_kr

UTM = pyproj.CRS.from_epsg(32601).to_wkt()
OWN = pyproj.CRS.from_proj4("+proj=laea +lat_0=10 +lon_0=10 +datum=WGS84").to_wkt()


@pytest.fixture
def dataset(tmp_path: Path) -> LevirKR:
    """Three scenes: an ordinary one, one across the antimeridian, one in a CRS without a code and without a date."""
    make_levir_kr(tmp_path, num_chips=60, num_scenes=3)
    for scene, (crs, acquired, shift) in enumerate(((UTM, "2020-07-01", 0), (UTM, "2019-02-03", 1), (OWN, "", 0))):
        path = tmp_path / "chips" / f"scene{scene}.parquet"
        table = pd.read_parquet(path)
        if shift:
            rng = np.random.default_rng(1)
            lon, lat = rng.uniform(179.5, 180.5, len(table)), rng.uniform(-18.5, -17.5, len(table))
            boxes = shapely.box(lon - 0.05, lat - 0.05, lon + 0.05, lat + 0.05)
            lon = (lon + 180) % 360 - 180
            # Footprints are continuous each by itself: some run beyond 180, some are written west of -180.
            west = shapely.bounds(boxes)[:, 0] > 180
            boxes[west] = [shapely.affinity.translate(box, -360.0) for box in boxes[west]]
            table = table.assign(lon=lon, lat=lat, footprint=shapely.to_wkb(boxes))
        table.assign(
            crs_wkt=crs,
            acquired=acquired,
            sensor="Sentinel-2",
            stretch_low=[[100.0, 200.0, 300.0]] * len(table),
            transform=[[10.0, 0.0, 0.0, 0.0, -10.0, 0.0]] * len(table),
            stretch_high=[[2650.0, 2750.0, 2850.0]] * len(table),
        ).to_parquet(path, index=False)
    freeze(
        LevirKRConfig(place_size_deg=0.5, validation_fraction=0.2),
        tmp_path / "chips",
        tmp_path / "proportions",
        tmp_path / "levir_kr",
        RecordingReporter(),
    )
    return open_levir_kr(tmp_path / "levir_kr")


def read_back(dataset: LevirKR, out: Path) -> tuple[pystac.Collection, dict[str, pystac.Item]]:
    export_stac(dataset.folder, out, RecordingReporter())
    assert sorted(path.name for path in out.iterdir()) == ["collection.json", "items", "labels"]
    collection = pystac.Collection.from_file(str(out / "collection.json"))
    return collection, {item.id: item for item in collection.get_items()}


def test_counts_and_proportions_survive_the_round_trip(dataset: LevirKR, tmp_path: Path) -> None:
    collection, items = read_back(dataset, tmp_path / "stac")
    assert sorted(items) == ["scene0", "scene1", "scene2"]
    assert sum(item.properties["table:row_count"] for item in items.values()) == len(dataset.catalogue) == 60
    for scene, item in items.items():
        rows = dataset.catalogue[dataset.catalogue["scene_id"] == scene]
        overviews = {entry["property_key"]: entry for entry in item.properties["label:overviews"]}
        for name in dataset.classes:
            found = {s["name"]: s["value"] for s in overviews[f"fraction_{name}"]["statistics"]}
            assert found["mean"] == pytest.approx(rows[f"fraction_{name}"].mean(), abs=1e-5)
        assert sum(entry["count"] for entry in overviews["largest_class"]["counts"]) == len(rows)
        table = pd.read_parquet(item.assets["labels"].get_absolute_href())
        assert [c["name"] for c in item.properties["table:columns"]] == [c for c in table.columns if c != "bbox"]
        np.testing.assert_array_equal(table["chip_id"], rows["chip_id"])
        # The table leads to the pixels.
        shard = np.load(str(item.assets["chips"].get_absolute_href()))
        np.testing.assert_array_equal(shard[table["row"]], dataset.images(rows.index.to_numpy()))
    means = collection.summaries.to_dict()["label:overviews"][0]["statistics"]
    assert [m["name"] for m in means] == list(dataset.classes)
    np.testing.assert_allclose([m["value"] for m in means], dataset.proportions.mean(axis=0), atol=1e-5)


def test_every_file_that_is_pointed_at_is_there_with_its_checksum(dataset: LevirKR, tmp_path: Path) -> None:
    collection, items = read_back(dataset, tmp_path / "elsewhere" / "stac")
    assets = [*collection.assets.values(), *(a for item in items.values() for a in item.assets.values())]
    assert len(assets) == 2 + 3 * 2
    for asset in assets:
        assert not asset.href.startswith("/")
        path = Path(str(asset.get_absolute_href()))
        assert path.stat().st_size == asset.extra_fields["file:size"]
        assert mismatch(path, asset.extra_fields["file:checksum"]) == ""


def test_a_scene_across_the_antimeridian_is_cut_there(dataset: LevirKR, tmp_path: Path) -> None:
    collection, items = read_back(dataset, tmp_path / "stac")
    crossing = items["scene1"]
    west, south, east, north = crossing.bbox or []
    assert 179 < west < 180 < east + 360 < 181
    assert -19 < south < -18
    assert -18 < north < -17
    geometry = crossing.geometry or {}
    assert geometry["type"] == "MultiPolygon"
    shape = shapely.geometry.shape(geometry)
    assert shape.is_valid
    assert shape.bounds[0] == -180
    assert shape.bounds[2] == 180
    assert shape.area < 1.5
    table = pd.read_parquet(crossing.assets["labels"].get_absolute_href())
    bounds = shapely.bounds(shapely.from_wkb(table["geometry"]))
    assert bounds[:, 0].min() >= -180
    assert bounds[:, 2].max() <= 180
    assert items["scene0"].geometry["type"] == "Polygon"  # type: ignore[index]
    # Scenes at 0-20 east and at the antimeridian: the box goes from the one to the other eastwards.
    joint = collection.extent.spatial.bboxes[0]
    assert 0 <= joint[0] < 5
    assert -180 < joint[2] < -179


def test_crs_dates_stretch_and_colours_are_told(dataset: LevirKR, tmp_path: Path) -> None:
    collection, items = read_back(dataset, tmp_path / "stac")
    assert items["scene0"].properties["proj:code"] == "EPSG:32601"
    assert items["scene2"].properties["proj:code"] is None
    assert pyproj.CRS.from_wkt(items["scene2"].properties["proj:wkt2"]) == pyproj.CRS.from_wkt(OWN)
    assert str(items["scene0"].datetime) == "2020-07-01 00:00:00+00:00"
    assert items["scene2"].datetime is None
    assert items["scene2"].properties["geokr:acquired_unknown"] is True
    assert items["scene2"].properties["start_datetime"] < items["scene2"].properties["end_datetime"]
    bands = items["scene0"].assets["chips"].extra_fields["raster:bands"]
    assert [(b["scale"], b["offset"]) for b in bands] == [(10.0, 100.0), (10.0, 200.0), (10.0, 300.0)]
    classes = collection.summaries.to_dict()["classification:classes"]
    assert [f"#{c['color_hint']}".lower() for c in classes] == [c.lower() for c in dataset.class_colours]


def test_the_core_schemas_and_the_rules_of_the_extensions_hold(dataset: LevirKR, tmp_path: Path) -> None:
    collection, items = read_back(dataset, tmp_path / "stac")
    validate_dict(collection.to_dict(), extensions=[])
    for item in items.values():
        content = item.to_dict()
        validate_dict(content, extensions=[])
        jsonschema.validate(content, EXTENSION_RULES)
    broken = next(iter(items.values())).to_dict()
    broken["properties"]["label:overviews"][0]["counts"][0]["count"] = 1.5
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, EXTENSION_RULES)


@pytest.mark.filterwarnings("ignore:The PySTAC Label Extension:DeprecationWarning")
def test_readers_of_the_extensions_understand_the_items(dataset: LevirKR, tmp_path: Path) -> None:
    from pystac.extensions.classification import ClassificationExtension
    from pystac.extensions.file import FileExtension
    from pystac.extensions.label import LabelExtension, LabelType
    from pystac.extensions.projection import ProjectionExtension
    from pystac.extensions.raster import RasterExtension
    from pystac.extensions.table import TableExtension

    item = read_back(dataset, tmp_path / "stac")[1]["scene0"]
    label = LabelExtension.ext(item)
    assert label.label_type == LabelType.VECTOR
    assert [list(c.classes) for c in label.label_classes or []] == [list(dataset.classes)]
    counts = (label.label_overviews or [])[0].counts or []
    assert sum(count.count for count in counts) == TableExtension.ext(item).row_count == 20
    assert ProjectionExtension.ext(item).code == "EPSG:32601"
    classes = ClassificationExtension.ext(item.assets["labels"]).classes or []
    assert [c.name for c in classes] == list(dataset.classes)
    assert [band.scale for band in RasterExtension.ext(item.assets["chips"]).bands or []] == [10.0, 10.0, 10.0]
    assert FileExtension.ext(item.assets["chips"]).size == (tmp_path / "chips" / "scene0.npy").stat().st_size


def test_the_same_data_set_gives_the_same_bytes(dataset: LevirKR, tmp_path: Path) -> None:
    export_stac(dataset.folder, tmp_path / "stac", RecordingReporter())
    before = data_version(tmp_path / "stac")
    export_stac(dataset.folder, tmp_path / "stac", RecordingReporter())
    assert data_version(tmp_path / "stac") == before


def test_what_is_missing_is_named(dataset: LevirKR, tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="no frozen Levir-KR"):
        export_stac(tmp_path, tmp_path / "stac", RecordingReporter())
    (tmp_path / "chips" / "scene1.npy").unlink()
    with pytest.raises(DatasetError, match=r"scene1\.npy: the shard is missing"):
        export_stac(dataset.folder, tmp_path / "stac", RecordingReporter())
    assert not (tmp_path / "stac").exists()
    make_levir_kr(tmp_path / "bare", num_chips=30)
    with pytest.raises(DatasetError, match="no column crs_wkt"):
        export_stac(tmp_path / "bare" / "levir_kr", tmp_path / "stac", RecordingReporter())


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([(1, 0, 2, 1)], (1, 0, 2, 1)),
        ([(1, 0, 2, 1), (-5, -3, 0, 0)], (-5, -3, 2, 1)),
        ([(170, 0, 175, 1), (-175, 0, -170, 1)], (170, 0, -170, 1)),
        ([(179, 0, -179, 1), (-178, 0, -170, 1)], (179, 0, -170, 1)),
        ([(-180, 0, 180, 1), (5, 0, 6, 1)], (-180, 0, 180, 1)),
        ([(-100, 0, 100, 1), (90, 0, -90, 1)], (-180, 0, 180, 1)),
    ],
)
def test_the_joint_box_is_the_narrowest(boxes: list[Any], expected: tuple[float, ...]) -> None:
    assert joint_bbox(boxes) == expected


@pytest.mark.parametrize("turn", [-720.0, -360.0, 0.0, 360.0])
def test_no_turn_of_the_longitudes_changes_a_footprint(turn: float) -> None:
    geometry, bbox = within_half_turn(shapely.box(179.0 + turn, 10.0, 182.0 + turn, 11.0))
    assert bbox == (179.0, 10.0, -178.0, 11.0)
    assert shapely.geometry.shape(geometry).area == pytest.approx(3.0)
    for polygon in shapely.geometry.shape(geometry).geoms:
        assert polygon.exterior.is_ccw


# The rules of the extensions' published schemas that this export could break, in our own words: those schemas are
# fetched by address, and nothing is fetched in a test.
_NUMBER, _TEXT = {"type": "number"}, {"type": "string", "minLength": 1}
_COLUMN = {"type": "object", "required": ["name"], "properties": {"name": _TEXT, "type": _TEXT}}
EXTENSION_RULES: dict[str, Any] = {
    "type": "object",
    "required": ["stac_extensions"],
    "properties": {
        "stac_extensions": {
            "items": {
                "pattern": r"^https://[a-z.-]+/(label|projection|raster|classification|table|file)/v[0-9.]+/schema\.json$"
            }
        },
        "properties": {
            "required": ["label:properties", "label:description", "label:type", "table:columns", "proj:code"],
            "properties": {
                "label:type": {"enum": ["vector", "raster"]},
                "label:description": _TEXT,
                "label:properties": {"type": "array", "minItems": 1, "items": _TEXT},
                "label:tasks": {"type": "array", "items": _TEXT},
                "label:methods": {"type": "array", "items": _TEXT},
                "label:classes": {
                    "type": "array",
                    "items": {
                        "required": ["name", "classes"],
                        "properties": {"name": _TEXT, "classes": {"items": _TEXT}},
                    },
                },
                "label:overviews": {
                    "type": "array",
                    "items": {
                        "properties": {
                            "property_key": _TEXT,
                            "counts": {"items": {"properties": {"name": _TEXT, "count": {"type": "integer"}}}},
                            "statistics": {"items": {"properties": {"name": _TEXT, "value": _NUMBER}}},
                        }
                    },
                },
                "table:columns": {"type": "array", "minItems": 1, "items": _COLUMN},
                "table:row_count": {"type": "integer"},
                "proj:code": {"type": ["string", "null"], "pattern": r"^[A-Za-z]+:[A-Za-z0-9]+$"},
                "proj:wkt2": {"type": ["string", "null"]},
            },
            "patternProperties": {r"^label:(?!(type|description|properties|tasks|methods|classes|overviews)$)": False},
        },
        "assets": {
            "additionalProperties": {
                "properties": {
                    "file:checksum": {"type": "string", "pattern": "^[a-f0-9]+$"},
                    "file:size": {"type": "integer"},
                    "classification:classes": {
                        "type": "array",
                        "minItems": 1,
                        "uniqueItems": True,
                        "items": {
                            "required": ["value", "name"],
                            "properties": {
                                "value": {"type": "integer"},
                                "name": {"type": "string", "pattern": "^[0-9A-Za-z-_]+$"},
                                "color_hint": {"type": "string", "pattern": "^([0-9A-F]{6})$"},
                            },
                        },
                    },
                    "raster:bands": {
                        "type": "array",
                        "minItems": 1,
                        "items": {"properties": {"data_type": {"const": "uint8"}, "scale": _NUMBER, "offset": _NUMBER}},
                    },
                }
            }
        },
    },
}
