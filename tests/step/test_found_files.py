"""Files below a folder: patterns, links, leftovers, what is listed but not there, and identifiers of paths."""

import os
import re
from pathlib import Path

import pytest

from geokr_core.step.found_files import find_files, glob_fault, is_leftover, readable_id


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return folder


TREE = ("a.tif", "b.TIF", "x/a.tif", "x/y/a.tif", "x/y/b.tiff", "z/y/c.tif", "z/notes.txt", "x.SAFE/m.xml", "[1].tif")


@pytest.mark.parametrize(
    "pattern",
    [
        "*.tif",
        "**/*.tif",
        "**/*",
        "x/*.tif",
        "x/**/*.tif*",
        "*/y/*.tif",
        "**/y/*",
        "z/y/c.tif",
        "[ab].*",
        "*.SAFE/*.xml",
        "?.tif",
        "**/x/**/*.tif",
        "[[]*",
    ],
)
def test_a_pattern_matches_what_pathlib_matches(tmp_path: Path, pattern: str) -> None:
    fill(tmp_path, *TREE)
    found = find_files(tmp_path, pattern)
    matched = list(tmp_path.glob(pattern))
    assert list(found.files) == sorted(p.relative_to(tmp_path).as_posix() for p in matched if p.is_file())
    assert list(found.folders) == sorted(p.relative_to(tmp_path).as_posix() for p in matched if p.is_dir())
    assert (found.unreachable, found.leftovers, found.repeated) == ({}, (), ())


@pytest.mark.parametrize(
    ("pattern", "fault"),
    [
        ("", "empty"),
        ("/abs/*.tif", "absolute"),
        ("C:/a/*.tif", "absolute"),
        ("../*.tif", "leaves the folder"),
        ("**.tif", r"`\*\*/\*\.tif`"),
        ("a**/b.tif", "stands alone"),
        ("a//b.tif", "name missing"),
    ],
)
def test_a_pattern_that_cannot_be_meant_is_refused_with_the_way_out(tmp_path: Path, pattern: str, fault: str) -> None:
    assert re.search(fault, glob_fault(pattern))
    with pytest.raises(ValueError, match=fault):
        find_files(tmp_path, pattern)


def test_everything_below_may_be_asked_for_with_two_stars(tmp_path: Path) -> None:
    fill(tmp_path, "a.tif", "x/b.tif")
    assert find_files(tmp_path, "**").files == ("a.tif", "x/b.tif")


def test_leftovers_are_passed_over_and_counted(tmp_path: Path) -> None:
    fill(
        tmp_path,
        "a.tif",
        "._a.tif",
        "x/.DS_Store",
        "x/Thumbs.db",
        "x/b.tif",
        "x/@eaDir/b.tif/SYNO.tif",
        "__MACOSX/._a.tif",
        "b.tif~",
        "a.tif:Zone.Identifier",
        "lost+found/c.tif",
    )
    found = find_files(tmp_path, "**/*")
    assert found.files == ("a.tif", "x/b.tif")
    assert set(found.leftovers) == {
        "._a.tif",
        "x/.DS_Store",
        "x/Thumbs.db",
        "x/@eaDir",
        "__MACOSX",
        "b.tif~",
        "a.tif:Zone.Identifier",
        "lost+found",
    }
    # Only what the pattern would have matched, or folders on its way, count.
    assert find_files(tmp_path, "*.tif").leftovers == ("._a.tif",)


@pytest.mark.parametrize("name", ["a.tif", "_a.tif", "eaDir", "thumbs.tif", "lost.tif", "~a.tif"])
def test_what_a_user_may_have_named_is_no_leftover(name: str) -> None:
    assert not is_leftover(name)


def test_linked_folders_are_followed_once_and_what_lies_there_itself_keeps_its_path(tmp_path: Path) -> None:
    disk, folder = fill(tmp_path / "disk", "c.tif", "deep/d.tif"), fill(tmp_path / "in", "real/b.tif")
    (folder / "archive").symlink_to(disk)
    (folder / "again").symlink_to(disk)
    (folder / "alias").symlink_to(folder / "real")  # sorts before `real`, and must not rename its files
    (disk / "back").symlink_to(folder)
    (folder / "loop").symlink_to(".")
    (folder / "up").symlink_to("..")
    found = find_files(folder, "**/*.tif")
    assert found.files == ("again/c.tif", "again/deep/d.tif", "real/b.tif")
    assert found.repeated == ("again/back", "alias", "archive", "loop", "up")
    assert not found.unreachable


def test_what_is_listed_but_not_there_is_named(tmp_path: Path) -> None:
    fill(tmp_path, "a.tif", "sub/b.tif")
    (tmp_path / "dead.tif").symlink_to("nowhere.tif")
    (tmp_path / "disk2").symlink_to("/mnt/not/mounted")
    (tmp_path / "round.tif").symlink_to("trip.tif")
    (tmp_path / "trip.tif").symlink_to("round.tif")
    os.mkfifo(tmp_path / "pipe.tif")
    found = find_files(tmp_path, "**/*.tif")
    assert found.files == ("a.tif", "sub/b.tif")
    assert set(found.unreachable) == {"dead.tif", "disk2", "pipe.tif", "round.tif", "trip.tif"}
    assert "nowhere.tif, where there is nothing" in found.unreachable["dead.tif"]
    assert "leads in a circle" in found.unreachable["round.tif"]
    # A dead link that the pattern does not match is not reported.
    assert "disk2" not in find_files(tmp_path, "*.tif").unreachable


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "a.tif", "locked/b.tif")
    listed = os.scandir

    def scandir(path: Path) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = find_files(tmp_path, "**/*.tif")
    assert found.unreachable == {"locked": "the folder cannot be listed (Permission denied)"}
    assert found.files == ("a.tif",)


def test_a_name_that_is_not_text_is_named_by_its_bytes(tmp_path: Path) -> None:
    fill(tmp_path, "a.tif")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xb1\xb1\xbe\xa9.tif")).write_text("GBK")
    found = find_files(tmp_path, "*.tif")
    assert found.files == ("a.tif",)
    ((name, reason),) = found.unreachable.items()
    assert name.encode()  # can be stored and printed
    assert "not UTF-8" in reason


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a/b c(1)", "a-b-c-1"),
        ("x--y", "x--y"),
        ("x - y", "x---y"),
        ("_a_", "a"),
        ("...", ""),
        ("2020/LC08_x.B4", "2020-LC08_x.B4"),
    ],
)
def test_ids_of_ascii_names_are_what_they_always_were(path: str, expected: str) -> None:
    assert readable_id(path) == expected == re.sub(r"[^A-Za-z0-9._-]+", "-", path).strip("-._")


def test_names_of_any_script_give_as_many_readable_ids() -> None:
    paths = [
        "北京",
        "上海",
        "beijing",
        "北京 1",
        "北京-1",
        "2020/北京",
        "2020-北京",
        "München",
        "Mu\u0308nchen",
        "दिल्ली",
        "Санкт-Петербург",
        "★",
        "☆",
        "☆☆",
        "東京/渋谷",
        "é",
        "e\u0301",
    ]
    ids = [readable_id(path) for path in paths]
    assert len(set(ids)) == len(paths)
    assert ids[:3] == ["北京", "上海", "beijing"]
    assert re.fullmatch(r"北京-1-[0-9a-f]{8}", ids[3])
    assert all(ids)
    assert ids == [readable_id(path) for path in paths]


def test_an_id_always_fits_into_a_file_name() -> None:
    deep = ["/".join(["北京朝阳区" * 9] * 3) + str(k) for k in range(3)] + ["x" * 300, "x" * 299 + "y"]
    ids = [readable_id(path) for path in deep]
    assert len(set(ids)) == len(deep)
    assert all(len(name.encode()) <= 200 for name in ids)
