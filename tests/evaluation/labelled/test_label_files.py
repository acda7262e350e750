"""Label files as people save them: encodings, spreadsheets, and what operating systems leave behind."""

from pathlib import Path

import pytest

from geokr_core.errors import EvaluationError
from geokr_core.evaluation.labelled.label_files import (
    entries,
    images_in,
    read_json_labels,
    read_lines,
    read_table,
    read_text,
    read_xml_labels,
)

ROWS = [{"class": "água", "code": "0"}, {"class": "land", "code": "1"}]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", ", "])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_tables_are_read_as_spreadsheets_save_them(tmp_path: Path, encoding: str, delimiter: str, newline: str) -> None:
    lines = [
        delimiter.join(("Class", "code")),
        delimiter.join(("água", "0")),
        "",
        delimiter.join(("land", "1")),
        delimiter,
    ]
    path = tmp_path / "palette.csv"
    path.write_bytes(newline.join(lines).encode(encoding))

    assert read_table(path) == ROWS


def test_what_is_not_utf_8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "palette.csv"
    path.write_bytes("class,code\n水体,0\n".encode("gbk"))
    with pytest.raises(EvaluationError, match=r"palette\.csv: not UTF-8"):
        read_table(path)
    with pytest.raises(EvaluationError, match="cannot be read"):
        read_text(tmp_path / "nowhere.txt")


def test_a_row_with_too_many_cells_is_named_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("class,code\na,0\nb, with a comma,1\n")
    with pytest.raises(EvaluationError, match=r"line 3.*double quotes"):
        read_table(tmp_path / "p.csv")


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("class,code,Code\na,0,1\n")
    with pytest.raises(EvaluationError, match="the column 'code' is there twice"):
        read_table(tmp_path / "p.csv")


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-16", "iso-8859-1", "windows-1252", "gbk", "big5", "shift_jis", "koi8-r"]
)
def test_xml_is_read_in_the_encoding_that_it_declares(tmp_path: Path, encoding: str) -> None:
    name = {"gbk": "船", "big5": "船", "shift_jis": "船", "koi8-r": "корабль"}.get(encoding, "é")
    path = tmp_path / "a.xml"
    path.write_bytes(f'<?xml version="1.0" encoding="{encoding}"?>\n<a><b>{name}</b></a>'.encode(encoding))

    assert read_xml_labels(path).findtext("b") == name


def test_xml_that_is_wrong_or_hostile_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    for content, said in (
        (b'<?xml version="1.0" encoding="ascii"?><a>\xe9</a>', "not ASCII"),
        (b'<?xml version="1.0" encoding="klingon"?><a/>', "not KLINGON"),
        (b"<a><b></a>", "not XML"),
        (b'<!DOCTYPE a [<!ENTITY b "bb">]><a>&b;</a>', "declares XML entities"),
        (
            '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a [<!ENTITY b "bb">]><a>&b;</a>'.encode("utf-16"),
            "entities",
        ),
        (b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X", "not "),
    ):
        path.write_bytes(content)
        with pytest.raises(EvaluationError, match=said):
            read_xml_labels(path)


def test_json_with_a_byte_order_mark_is_read_and_anything_else_named(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes('{"a": 1}'.encode("utf-8-sig"))
    assert read_json_labels(path) == {"a": 1}
    for content in ("{", "[" * 100_000):
        path.write_text(content)
        with pytest.raises(EvaluationError, match="not JSON"):
            read_json_labels(path)


def test_lines_come_without_marks_blanks_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "split_train.txt"
    path.write_bytes("a/1.png \r\n\r\n  b 2.png\n".encode("utf-8-sig"))
    assert read_lines(path) == ["a/1.png", "b 2.png"]


def test_leftovers_are_passed_over_everywhere(tmp_path: Path) -> None:
    for name in (
        "a.png",
        "._a.png",
        ".DS_Store",
        "Thumbs.db",
        "thumbs.DB",
        "desktop.ini",
        "a.png~",
        "__MACOSX/a.png",
        "sub/._b.png",
        "sub/b.png",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")

    assert [path.name for path in entries(tmp_path)] == ["a.png", "sub"]
    assert [path.name for path in images_in(tmp_path)] == ["a.png"]
    assert [path.name for path in images_in(tmp_path / "sub")] == ["b.png"]
    assert entries(tmp_path / "nowhere") == []
