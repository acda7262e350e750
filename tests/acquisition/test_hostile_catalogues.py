"""Catalogues that lead elsewhere: to other addresses, out of the folder, to secrets, to more bytes than announced."""

import json
import logging
from pathlib import Path

import pytest

from geokr_core.acquisition.fetching import fetch
from geokr_core.acquisition.plan import safe_name
from geokr_core.errors import AcquisitionError, ConfigError
from geokr_core.step.reporter import RecordingReporter
from tests.acquisition.catalogue_server import serving
from tests.acquisition.served import BLUE, FIRST, Loop, contents, run, whole_assets


@pytest.mark.parametrize(
    "href", ["file:///etc/passwd", "/vsizip//etc/x.zip/a.tif", "s3://bucket/a.tif", "ftp://127.0.0.1/a.tif"]
)
def test_a_remote_catalogue_leads_to_no_other_kind_of_address(loop: Loop, tmp_path: Path, href: str) -> None:
    items = json.loads(loop.server.files["/items"])
    items[0]["assets"]["B02"]["href"] = href
    loop.server.json("/items", items)
    with pytest.raises(AcquisitionError, match=r"never opened|answered 404"):
        run(loop.one_scene(), tmp_path)


def test_a_remote_static_catalogue_leads_to_no_local_document(loop: Loop, tmp_path: Path) -> None:
    secret = tmp_path / "item.json"
    secret.write_text(json.dumps(loop.world["items"][0]))
    collection = json.loads(loop.server.files["/static/sentinel-2-l2a/collection.json"])
    collection["links"] = [{"rel": "item", "href": f"file://{secret}"}]
    loop.server.json("/static/sentinel-2-l2a/collection.json", collection)
    with pytest.raises(AcquisitionError, match=r"never followed|does not resolve"):
        run(loop.one_scene(root="/static/catalog.json"), tmp_path / "got")


@pytest.mark.parametrize("identifier", ["../../../escaped", "/etc/passwd", "a/b\\c:d", "..", "x" * 300, "ä ö"])
def test_ids_cannot_leave_the_folder(loop: Loop, tmp_path: Path, identifier: str) -> None:
    items = json.loads(loop.server.files["/items"])
    items[0]["id"] = identifier
    loop.server.json("/items", items)
    run(loop.one_scene(), tmp_path / "deep" / "got")
    assert [p.name for p in tmp_path.iterdir()] == ["deep"]
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["got"]
    assert len(list((tmp_path / "deep" / "got" / "scenes" / "s2").glob("*/*_blue.tif"))) == 1
    assert safe_name(identifier) != safe_name(identifier + "/")


def test_plans_beyond_the_limit_are_refused_before_anything_is_read(loop: Loop, tmp_path: Path) -> None:
    with pytest.raises(AcquisitionError, match=r"comes to 0\.00 GB of pixels, allowed are 1e-06"):
        run(loop.one_scene(max_gb=1e-6), tmp_path / "got")
    assert not (tmp_path / "got").exists()


def test_the_announced_size_bounds_the_download(loop: Loop, tmp_path: Path) -> None:
    config = whole_assets(loop, None)
    real = loop.server.files[BLUE]
    with pytest.raises(AcquisitionError, match="longer than the"):
        fetch(
            config,
            tmp_path,
            RecordingReporter(),
            confirm=lambda plan: bool(loop.server.files.update({BLUE: real * 3})) or True,
        )


def test_secrets_go_to_their_host_only_and_into_no_file_or_message(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LOOP_TOKEN", "s3cr3t-header")
    monkeypatch.setenv("LOOP_SIGNATURE", "sig=s3cr3t-query")
    access = {"headers": {"X-Key": "Bearer ${LOOP_TOKEN}"}, "asset_query": "${LOOP_SIGNATURE}"}
    with serving() as stranger:
        green = f"/data/{FIRST}/B03.tif"
        stranger.files[green] = loop.server.files[green]
        loop.server.redirects[green] = f"{stranger.url}{green}"
        config = loop.one_scene(catalogue=loop.catalogue(**access))
        with caplog.at_level(logging.DEBUG):
            run(config, tmp_path)
        assert stranger.log
        assert not [h for *_, h in stranger.log if "s3cr3t" in str(h)]
    blue = [h for _, path, _, h in loop.server.log if path == BLUE]
    assert blue
    assert all(h.get("x-key") == "Bearer s3cr3t-header" and "s3cr3t-query" in h["query"] for h in blue)
    assert all(h.get("user-agent", "").startswith("geokr/") for h in blue)
    assert not [name for name, data in contents(tmp_path).items() if b"s3cr3t" in data]
    loop.server.failures["*"] = [(403, {})] * 50
    with pytest.raises(AcquisitionError) as refusal:
        run(loop.one_scene(catalogue=loop.catalogue(**access), bbox=loop.middle(0.004)), tmp_path / "other")
    assert "s3cr3t" not in str(refusal.value)
    assert not [r for r in caplog.records if "s3cr3t" in r.getMessage()]
    monkeypatch.delenv("LOOP_TOKEN")
    with pytest.raises(ConfigError, match="set the environment variable LOOP_TOKEN"):
        run(config, tmp_path / "third")
