"""What waits for a server is kept in order, leaves only once it was taken, and belongs to one process at a time."""

import json
from pathlib import Path
from typing import Any

import pytest

from geokr_core.tracking.spool import Spool, spool_of, spools_of


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Spool:
    monkeypatch.setenv("GEOKR_SPOOL", str(tmp_path / "spool"))
    return spool_of("http://here", "run1")


def test_records_come_back_in_order_with_copies_of_their_files(spool: Spool, tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(b"first")
    spool.keep({"kind": "file"}, picture)
    picture.write_bytes(b"second")
    spool.keep({"kind": "file"}, picture)
    spool.keep({"kind": "end"})
    picture.unlink()
    taken: list[Any] = []
    contents: list[bytes] = []

    def take(record: Any) -> None:
        taken.append(record["kind"])
        contents.extend(Path(record[key]).read_bytes() for key in ("attached",) if key in record)

    assert spool.hand_over(take) == 3
    assert (taken, contents) == (["file", "file", "end"], [b"first", b"second"])
    assert not spool
    assert not spool.folder.exists()


def test_what_was_not_taken_stays(spool: Spool) -> None:
    for number in range(4):
        spool.keep({"number": number})

    def take_two(record: Any) -> None:
        if record["number"] == 2:
            raise ConnectionError

    with pytest.raises(ConnectionError):
        spool.hand_over(take_two)
    taken: list[int] = []
    spool.hand_over(lambda record: taken.append(record["number"]))
    assert taken == [2, 3]


def test_a_line_that_was_cut_off_by_a_kill_or_a_full_disk_is_lost_alone(spool: Spool) -> None:
    spool.keep({"number": 1})
    with (spool.folder / "records.jsonl").open("a") as stream:
        stream.write("\n" + json.dumps({"number": 2})[:-3])
    spool.keep({"number": 3})
    taken: list[int] = []
    assert spool.hand_over(lambda record: taken.append(record["number"])) == 2
    assert taken == [1, 3]


def test_a_spool_belongs_to_one_process_and_one_server(spool: Spool) -> None:
    spool.keep({})
    assert [one.run_id for one in spools_of("http://here")] == ["run1"]
    assert spools_of("http://there") == []
    with spool.owned() as mine, Spool(spool.folder).owned() as theirs:
        assert (mine, theirs) == (True, False)
    with spool.owned() as again:
        assert again
