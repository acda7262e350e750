"""Search by example: exact, filtered as asked, and refused by name where it cannot be."""

import json
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geokr_core.embeddings.embed import embed_scenes
from geokr_core.embeddings.read import open_embeddings
from geokr_core.errors import ConfigError, EmbeddingsError, MissingInputError
from geokr_core.search.examples import chip_at, parse_place
from geokr_core.search.filters import Filters, parse_bbox, parse_dates, parse_land_cover
from geokr_core.search.find import Archive, search_archive
from geokr_core.search.index import Index, best, build_index
from geokr_core.search.output import as_text, write_contact_sheet, write_geojson
from geokr_core.step.reporter import RecordingReporter


def test_the_first_fifty_are_those_of_brute_force() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(3000, 48)).astype(np.float32) * 10.0 ** rng.uniform(-2, 2, 48).astype(np.float32) + 3
    centre, scale = vectors.mean(axis=0), vectors.std(axis=0)
    index = Index(centre, scale, np.empty((0, 48), dtype=np.float32))
    index = Index(centre, scale, index.direction(vectors))
    found = best(index.similarity(vectors[7:8]), np.ones(3000, dtype=bool), 50, without=[7])
    standardised = (vectors - centre) / scale
    cosines = [
        float(row @ standardised[7] / np.linalg.norm(row) / np.linalg.norm(standardised[7])) for row in standardised
    ]
    expected = sorted((k for k in range(3000) if k != 7), key=lambda k: -cosines[k])[:50]
    assert found.tolist() == expected


def test_equal_chips_come_in_the_order_of_the_archive() -> None:
    similarity = np.array([0.5, 0.9, 0.5, 0.5, 0.1])
    assert best(similarity, np.ones(5, dtype=bool), 3).tolist() == [1, 0, 2]
    assert best(similarity, np.array([True, False, True, True, True]), 10).tolist() == [0, 2, 3, 4]


def test_chips_that_look_alike_are_found_and_the_example_is_not(archive: Archive) -> None:
    found = search_archive(archive, like=["a-002"], limit=39)
    assert len(found) == 39
    assert "a-002" not in set(found["chip_id"])
    assert all(int(chip.split("-")[1]) % 2 == 0 for chip in found["chip_id"])
    assert found["similarity"].is_monotonic_decreasing
    assert found["rank"].tolist() == list(range(1, 40))
    assert set(found["land_cover"]) == {"forest", ""}
    both = search_archive(archive, like=["a-002", "b-004"], limit=38)
    assert not {"a-002", "b-004"} & set(both["chip_id"])


def test_a_place_and_an_image_are_examples_too(archive: Archive, tmp_path: Path) -> None:
    at = search_archive(archive, at=(20.0201, 10.001), limit=5)
    assert at.equals(search_archive(archive, like=["a-002"], limit=5))
    chip = np.load(archive.chips / "a.npy")[2]
    Image.fromarray(chip).save(tmp_path / "example.png")
    found = search_archive(archive, image=tmp_path / "example.png", limit=1)
    assert found["chip_id"].iloc[0] == "a-002"
    assert found["similarity"].iloc[0] > 0.99


def test_a_place_without_a_chip_names_the_nearest(archive: Archive) -> None:
    found = open_embeddings(archive.embeddings)
    with pytest.raises(EmbeddingsError, match=r"No chip lies at 20\.1, 11.*a-010.*km away"):
        chip_at(found, 20.1, 11.0)
    assert found.chips["chip_id"].iloc[chip_at(found, -179.996, 10.0)].startswith("b-")


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (Filters(sensors=("S2",)), lambda c: c.startswith("b")),
        (Filters(first_day=date(2020, 7, 1), last_day=date(2020, 7, 1)), lambda c: c.startswith("a")),
        (Filters(first_day=date(2020, 7, 2)), lambda c: False),
        (Filters(bbox=(20.095, 9, 20.205, 11)), lambda c: c[0] == "a" and 10 <= int(c[2:]) <= 20),
        (Filters(bbox=(179.895, 9, -179.895, 11)), lambda c: c[0] == "b" and 10 <= int(c[2:]) <= 30),
        (Filters(land_cover=parse_land_cover(["bare>0.5"])), lambda c: int(c[2:]) % 2 == 1),
        (
            Filters(land_cover=parse_land_cover(["forest >= 0.9", "bare<=0.1"])),
            lambda c: int(c[2:]) % 2 == 0 and int(c[2:]),
        ),
    ],
)
def test_filters_leave_what_they_say(archive: Archive, filters: Filters, expected: object) -> None:
    found = open_embeddings(archive.embeddings)
    allowed = filters.allowed(found, archive.proportions)
    ids = found.chips["chip_id"]
    assert set(ids[allowed]) == {chip for chip in ids if expected(chip)}  # type: ignore[operator]


def test_unknown_names_and_words_are_refused(archive: Archive) -> None:
    with pytest.raises(ConfigError, match="no sensor 'GF2'; did you mean 'GF1'"):
        search_archive(archive, like=["a-000"], filters=Filters(sensors=("GF2",)))
    with pytest.raises(ConfigError, match="no class 'forrest'; did you mean 'forest'"):
        search_archive(archive, like=["a-000"], filters=Filters(land_cover=parse_land_cover(["forrest>0.1"])))
    with pytest.raises(EmbeddingsError, match="No chip 'c-000' among 80"):
        search_archive(archive, like=["c-000"])
    with pytest.raises(ConfigError, match=r"needs an example: a chip \(--like a-000\), a place \(--at LON,LAT\)"):
        search_archive(archive)
    with pytest.raises(ConfigError, match="limit: 0 chips are wanted"):
        search_archive(archive, like=["a-000"], limit=0)
    for parse, text in (
        (parse_bbox, "1,2,3"),
        (parse_bbox, "1,3,2,2"),
        (parse_bbox, "1,2,3,91"),
        (parse_dates, "2020-13-01"),
        (parse_dates, "2021-01-01/2020-01-01"),
        (parse_place, "200,10"),
        (parse_place, "20;10"),
    ):
        with pytest.raises(ConfigError, match="expected|after the last"):
            parse(text)
    for text in ("forest", "forest>2", "forest=0.5"):
        with pytest.raises(ConfigError, match=r"like `forest>0.5`"):
            parse_land_cover([text])


def test_an_image_of_another_network_or_no_image_is_refused(archive: Archive, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(EmbeddingsError, match="cannot be read as an image"):
        search_archive(archive, image=tmp_path / "text.png")
    with pytest.raises(MissingInputError, match="no such file"):
        search_archive(archive, image=tmp_path / "none.png")
    Image.new("RGB", (40, 30)).save(tmp_path / "black.png")
    multi = archive.config.model_copy(update={"features": "multi"})
    other = Archive(archive.embeddings, archive.chips, None, None, multi)
    with pytest.raises(EmbeddingsError, match="run `geokr embed` again"):
        search_archive(other, image=tmp_path / "black.png")


def test_without_land_cover_chips_are_found_all_the_same(archive: Archive, tmp_path: Path) -> None:
    bare = Archive(archive.embeddings, archive.chips, tmp_path / "none")
    assert set(search_archive(bare, like=["a-002"], limit=5)["land_cover"]) == {""}
    with pytest.raises(MissingInputError, match="or ask without land cover"):
        search_archive(bare, like=["a-002"], filters=Filters(land_cover=parse_land_cover(["forest>0.5"])))


def test_geojson_and_contact_sheet_show_what_was_found(archive: Archive, tmp_path: Path) -> None:
    found = search_archive(archive, like=["b-020"], limit=12, filters=Filters(sensors=("S2",)))
    write_geojson(found, tmp_path / "found.geojson")
    content = json.loads((tmp_path / "found.geojson").read_text(encoding="utf-8"))
    assert [feature["id"] for feature in content["features"]] == found["chip_id"].tolist()
    assert content["features"][0]["properties"]["rank"] == 1
    assert content["features"][0]["properties"]["acquired"] is None
    for feature in content["features"]:
        assert "MultiPolygon" in feature["geometry"]["type"] or feature["geometry"]["type"] == "Polygon"
    write_contact_sheet(archive.chips, found, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet)
    first = np.load(archive.chips / "b.npy")[found["row"].iloc[0]]
    assert np.array_equal(pixels[32 : 32 + 128 : 4, :128:4], first), (
        "below the heading and its rank, each pixel four wide"
    )
    assert (pixels[16:32, :128] < 100).any(), "a rank and a similarity are written"
    assert as_text(found)[0]["rank"] == "1"


def test_dimensions_that_never_change_count_for_nothing(archive: Archive) -> None:
    found = open_embeddings(archive.embeddings)
    vectors = np.concatenate([found.vectors, np.full((len(found), 1), 7.0, dtype=np.float32)], axis=1)
    more = build_index(type(found)(found.chips, vectors, found.network))
    assert np.allclose(more.directions[:, -1], 0)
    assert np.allclose(more.directions[:, :-1], build_index(found).directions, atol=1e-6)
    with pytest.raises(EmbeddingsError, match="513 dimensions"):
        build_index(found).similarity(vectors[:1])


def test_embedding_again_changes_nothing_that_search_sees(archive: Archive) -> None:
    before = search_archive(archive, like=["a-002"], limit=5)
    embed_scenes(archive.config, None, archive.chips, archive.embeddings, RecordingReporter())
    assert search_archive(archive, like=["a-002"], limit=5).equals(before)
