"""The section on what was done with the backbone: a part a step that ran, in words that its figures bear out."""

from pathlib import Path

import pytest

from geokr_core.errors import MissingInputError
from geokr_core.report.applications import applications
from geokr_core.step.files import write_json


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Outputs of the three steps, as far as the page reads them."""
    vectors, audit, shares = (tmp_path / name for name in ("embeddings", "map_audit", "land_cover_shares"))
    write_json(vectors / "embeddings.json", {"num_dimensions": 64, "model": "tiny"})
    for k in range(2):
        write_json(vectors / f"s{k}.stac.json", {"properties": {"geokr:num_chips": 30}})
    found = {"average_precision": 0.9, "precision_at_100": 0.99, "num_planted": 30.0, "plantings": 5.0}
    result = {"num_chips": 600, "num_flagged": 100, "planted_fraction": 0.05, "planted": {"gross": found}}
    pairs = [{"surplus_class": "bare_land", "missing_class": f"class_{k}", "chips": 20 - k} for k in range(12)]
    result |= {"confusions": pairs}
    write_json(audit / "audit.json", {**result, "kinds": {"single": 60, "cloud": 40}, "shifted_places": [{}]})
    (audit / "gallery.png").write_bytes(b"picture")
    judged = {"num_test_chips": 50, "residual": 0.2, "baseline_residual": 0.5, "coverage": 0.91}
    content = {"confidence": 0.9, "judgement": {**judged, "coverage_by_class": {"bare_land": 0.88}}}
    write_json(shares / "land_cover_shares.json", content)
    (shares / "held_out.png").write_bytes(b"picture")
    return {"embeddings": vectors, "map_audit": audit, "land_cover_shares": shares}


def test_each_step_that_ran_has_its_part(folders: dict[str, Path]) -> None:
    vectors, audit, confused, shares = applications(folders)
    assert "60 chips of 2 scene(s) have a vector of 64 dimensions by tiny" in vectors["sentence"]
    assert "40 cloud, 60 single" in audit["sentence"]
    assert "In 1 place(s) the map is shifted" in audit["sentence"]
    assert audit["rows"][0]["average precision"] == "0.90"
    assert audit["picture"] == "cGljdHVyZQ=="
    assert confused["rows"][0] == {"the map says": "bare land", "the image says": "class 0", "chips": "20"}
    assert len(confused["rows"]) == 10
    assert "2 more pairs of classes" in confused["sentence"]
    assert "off by 0.200" in shares["sentence"]
    assert "intervals is 91.0%" in shares["sentence"]
    assert shares["picture"] == "cGljdHVyZQ=="
    assert shares["rows"] == [{"class": "bare land", "coverage": "88.0%"}]


def test_what_did_not_run_has_none_and_what_is_missing_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    assert applications({"levir_kr": tmp_path}) == []
    assert len(applications({"map_audit": folders["map_audit"]})) == 2
    (folders["map_audit"] / "audit.json").unlink()
    with pytest.raises(MissingInputError, match="geokr audit"):
        applications(folders)
