"""What is remembered of files: which bytes they hold, and when to look again."""

import json
import os
import time
from pathlib import Path

import pytest

from geokr_core.rasters import checksums
from geokr_core.rasters.checksums import Checksums, file_mark, is_settled
from geokr_core.step.digests import text_digest


def test_unchanged_files_are_not_read_again_and_changed_ones_are(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"first")
    first = Checksums(tmp_path / "memory.json")
    before = first.md5(path)
    first.save()
    assert Checksums(tmp_path / "memory.json").md5(path) == before
    fresh = Checksums(tmp_path / "memory.json")
    fresh.md5(path)
    assert fresh.num_read == 1, "a file written to just now may change again within one tick of the clock"
    # As if the same had happened a minute later.
    stat = path.stat()
    mark = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, before]
    files = {str(path.resolve()): mark}
    (tmp_path / "memory.json").write_text(json.dumps({"digest": text_digest(sorted(files.items())), "files": files}))
    settled = Checksums(tmp_path / "memory.json")
    assert settled.md5(path) == before
    assert settled.num_read == 0
    # Same size, same time of writing: a copy that keeps times. The time of the inode gives it away.
    path.write_bytes(b"other")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert settled.md5(path) != before
    for damaged in ("", "[1", "[]", '{"a": 1}'):
        (tmp_path / "memory.json").write_text(damaged)
        assert Checksums(tmp_path / "memory.json").md5(path) == settled.md5(path)


def test_a_time_of_writing_ahead_of_the_clock_is_no_reason_to_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"a")
    os.utime(path, (time.time() + 3600, time.time() + 3600))
    size, modified, changed, inode = file_mark(path)
    assert modified > time.time_ns()
    assert is_settled((size, modified, changed - 3_000_000_000, inode))
    assert not is_settled((size, modified, changed, inode))


def test_what_is_kept_halfway_is_known_to_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "_SETTLED_NS", 0)
    for name in "ab":
        (tmp_path / name).write_text(name)
    killed = Checksums(tmp_path / "memory.json")
    killed.md5(tmp_path / "a")
    killed.keep(every_s=3600.0)
    assert not (tmp_path / "memory.json").exists()
    killed.keep()
    resumed = Checksums(tmp_path / "memory.json")
    resumed.md5(tmp_path / "b")
    resumed.keep()
    last = Checksums(tmp_path / "memory.json")
    for name in "ab":
        last.md5(tmp_path / name)
    assert last.num_read == 0


def test_a_memory_with_a_wrong_digest_in_it_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "_SETTLED_NS", -1)  # as if the file had been written long ago
    source, memory = tmp_path / "scene.tif", tmp_path / "memory.json"
    source.write_bytes(b"pixels")
    first = Checksums(memory)
    right = first.md5(source)
    first.save()
    assert Checksums(memory).md5(source) == right
    memory.write_text(memory.read_text().replace(right, "0" * 32))
    again = Checksums(memory)
    assert (again.md5(source), again.num_read) == (right, 1)
