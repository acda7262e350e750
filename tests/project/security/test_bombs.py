"""Small files that would unpack without end: each is refused by name, and the process stays small."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

MOST_MB = 1500
"""What the process may grow to; torch and GDAL alone take a third of it. Every bomb asks for more."""

_CHILD = """
import json, resource, struct, sys, zlib
from pathlib import Path
from types import SimpleNamespace

folder = Path(sys.argv[1])

def aliases(levels=9):
    rows = ["a0: &a0 [" + ", ".join(["x"] * 10) + "]"]
    rows += [f"a{k}: &a{k} [" + ", ".join([f"*a{k - 1}"] * 10) + "]" for k in range(1, levels)]
    return "\\\\n".join(rows) + "\\\\n"

def params(text):
    from geokr_core.chain.params import load_params
    (folder / "params.yaml").write_text(text)
    load_params(folder / "params.yaml")

def legend(text):
    from geokr_core.land_cover.legend import load_legend
    (folder / "legend.yaml").write_text(text)
    load_legend(str(folder / "legend.yaml"))

def layout(text):
    from geokr_core.evaluation.sets.masks.layout import read_layout
    (folder / "layout.yaml").write_text(text)
    read_layout(folder / "layout.yaml", "segmentation")

def json_labels(text):
    from geokr_core.evaluation.labelled.label_files import read_json_labels
    (folder / "labels.json").write_text(text)
    read_json_labels(folder / "labels.json")

def xml_labels(text):
    from geokr_core.evaluation.labelled.label_files import read_xml_labels
    (folder / "labels.xml").write_text(text)
    read_xml_labels(folder / "labels.xml")

def xml_metadata(text):
    from geokr_core.scenes.products.metadata_files import read_xml
    (folder / "MTD.xml").write_text(text)
    read_xml(folder / "MTD.xml")

def json_metadata(text):
    from geokr_core.scenes.products.landsat import _read
    (folder / "MTL.json").write_text(text)
    _read(folder / "MTL.json")

def laughs(depth=9):
    rows = "".join(f'<!ENTITY l{k} "' + f"&l{k - 1};" * 10 + '">' for k in range(1, depth + 1))
    return f'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY l0 "lol">{rows}]><a>&l{depth};</a>'

def png():
    from geokr_core.rasters.image_files import read_image
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    content = zlib.compress(bytes(1 << 24), 9)
    (folder / "a.png").write_bytes(bytes([137]) + b"PNG\\\\r\\\\n" + bytes([26]) + b"\\\\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b""))
    read_image(folder / "a.png")

def jp2():
    import numpy as np, rasterio
    from geokr_core.errors import SceneRefusedError
    from geokr_core.scenes.config import ScenesConfig
    from geokr_core.scenes.inventory import read_inventory, take_inventory
    path = folder / "scenes" / "a.jp2"
    path.parent.mkdir()
    with rasterio.open(path, "w", driver="JP2OpenJPEG", width=64, height=64, count=1, dtype="uint8", crs="EPSG:32650", transform=rasterio.Affine(10, 0, 500000, 0, -10, 4500000), QUALITY="100", REVERSIBLE="YES") as target:
        target.write(np.zeros((1, 64, 64), np.uint8))
    content = bytearray(path.read_bytes())
    huge = struct.pack(">I", 1 << 20)
    box = content.index(b"ihdr") + 4
    content[box : box + 8] = huge + huge
    siz = content.index(bytes([0xFF, 0x51])) + 6
    content[siz : siz + 8] = huge + huge
    tile = siz + 16
    content[tile : tile + 8] = huge + huge
    path.write_bytes(content)
    collection = {"name": "small", "files": "*.jp2", "bands": ["red"], "land_cover": "none"}
    config = ScenesConfig.model_validate({"folder": path.parent, "collections": [collection]})
    take_inventory(config, folder / "inventory")
    (row,) = read_inventory(folder / "inventory").to_dict("records")
    if row["status"] == "quarantined":
        raise SceneRefusedError(row["reason"])

def parquet():
    import numpy as np, pyarrow as pa, pyarrow.parquet as pq
    from geokr_core.search.labels import read_labels
    rows = pa.DictionaryArray.from_arrays(pa.array(np.zeros(1 << 20, np.int32)), ["x" * 200])
    table = pa.table({"chip_id": rows})
    with pq.ParquetWriter(folder / "labels.parquet", table.schema) as writer:
        for _ in range(20):
            writer.write_table(table)
    read_labels(folder / "labels.parquet", SimpleNamespace())

def safetensors(header):
    from geokr_core.networks.weights import _read_state
    text = json.dumps(header).encode() if isinstance(header, dict) else header
    length = len(text) if isinstance(header, dict) else 1 << 60
    (folder / "weights.safetensors").write_bytes(struct.pack("<Q", length) + text)
    _read_state(folder / "weights.safetensors")

def pickled():
    import os, pickle
    from geokr_core.networks.weights import _read_state
    class Harm:
        def __reduce__(self):
            return (os.system, (f"touch {folder / 'owned'}",))
    (folder / "weights.pth").write_bytes(pickle.dumps(Harm()))
    _read_state(folder / "weights.pth")

DEEP = "[" * 200_000
CASES = {
    "aliases in params": lambda: params(aliases()),
    "nesting in params": lambda: params("a: " + "[" * 5_000),
    "aliases in a legend": lambda: legend(aliases()),
    "nesting in a layout": lambda: layout("a: " + "[" * 5_000),
    "nesting in JSON labels": lambda: json_labels(DEEP),
    "digits in JSON labels": lambda: json_labels("9" * 1_000_000),
    "entities in XML labels": lambda: xml_labels(laughs()),
    "entities in XML metadata": lambda: xml_metadata(laughs()),
    "nesting in JSON metadata": lambda: json_metadata(DEEP),
    "a PNG of 10 GB": png,
    "a JP2 of 1 TB": jp2,
    "a Parquet of 20 million rows": parquet,
    "a tensor of 4 TB": lambda: safetensors({"w": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4 << 40]}}),
    "a header of 1 EB": lambda: safetensors(b"{}"),
    "a pickle that runs a program": pickled,
}
for name, case in CASES.items():
    try:
        case()
        answer = ["no refusal", ""]
    except Exception as error:
        from geokr_core.errors import GeoKRError
        answer = ["refused" if isinstance(error, GeoKRError) else type(error).__name__, str(error)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps([name, *answer, peak, (folder / "owned").exists()]), flush=True)
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What became of each bomb, all in one new process."""
    folder = tmp_path_factory.mktemp("bombs")
    script = folder / "child.py"
    script.write_text(_CHILD.replace("\\\\", "\\"))
    done = subprocess.run(
        [sys.executable, str(script), str(folder)],
        cwd=Path(__file__).parents[3],
        env={"PYTHONPATH": str(Path(__file__).parents[3]), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {
        name: {"answer": answer, "message": message, "peak_mb": peak, "owned": owned}
        for name, answer, message, peak, owned in rows
    }


def test_every_bomb_is_refused_in_words(answers: dict[str, dict[str, Any]]) -> None:
    assert {name: found for name, found in answers.items() if found["answer"] != "refused"} == {}
    assert len(answers) == 15
    for found in answers.values():
        assert 20 < len(found["message"]) < 3000  # it names the file and the fault, and does not repeat the bomb


def test_none_grows_the_process(answers: dict[str, dict[str, Any]]) -> None:
    assert max(found["peak_mb"] for found in answers.values()) < MOST_MB


def test_nothing_in_a_file_is_run(answers: dict[str, dict[str, Any]]) -> None:
    assert not any(found["owned"] for found in answers.values())
