"""One rule for splits: what a set says is meant as its users mean it, and no image is learnt from and tested on."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from geokr_core.errors import EvaluationError
from geokr_core.evaluation.labelled.findings import Findings
from geokr_core.evaluation.labelled.splits import Part, part_of, with_splits

ROOT = Path("/set")


@dataclass(frozen=True)
class Item:
    image: Path
    part: Part | None = None
    labels: str = ""

    @property
    def group(self) -> str:
        return self.image.stem


def split(
    *items: tuple[str, Part | None], root: Path = ROOT, policy: str = "fail", groups: tuple[str, ...] | None = None
) -> dict[str, str]:
    found = with_splits(root, [Item(root / name, part) for name, part in items], groups, Findings(policy))  # type: ignore[arg-type]
    return {item.image.relative_to(root).as_posix(): str(item.part) for item in found}


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("train", "train"),
        ("instances_train2017", "train"),
        ("Training", "train"),
        ("val", "val"),
        ("valid", "val"),
        ("validation", "val"),
        ("instances_val2017", "val"),
        ("test-dev", "test"),
        ("TEST", "test"),
        ("trainval", "trainval"),
        ("train_val", "trainval"),
        ("latest", None),
        ("retrained", None),
        ("contest", None),
        ("values", None),
        ("restrain", None),
        ("attestation_2", None),
        ("train_test", None),
        ("annotations", None),
        ("_annotations.coco", None),
    ],
)
def test_a_name_speaks_of_a_part_by_whole_words(name: str, part: str | None) -> None:
    assert part_of(name) == part


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (("train", "val", "test"), ("train", "val", "test")),
        (("train", "train", "val"), ("train", "train", "test")),  # no test labels: val is tested on
        (("trainval", "trainval", "test"), ("train", "train", "test")),
        (("trainval", "val"), ("train", "test")),
        (("train", "test"), ("train", "test")),
    ],
)
def test_the_usual_releases_are_read_as_their_users_mean_them(
    parts: tuple[Part, ...], expected: tuple[str, ...]
) -> None:
    assert tuple(split(*((f"{k}.png", part) for k, part in enumerate(parts))).values()) == expected


def test_a_set_that_names_training_images_alone_says_nothing() -> None:
    assert split(*((f"{k}.png", "train") for k in range(4))) == split(*((f"{k}.png", None) for k in range(4)))


def test_images_in_no_part_are_left_out_and_counted() -> None:
    findings = Findings("fail")
    items = [Item(ROOT / "a.png", "train"), Item(ROOT / "b.png"), Item(ROOT / "c.png", "test")]
    assert [item.image.name for item in with_splits(ROOT, items, None, findings)] == ["a.png", "c.png"]
    assert findings.notes == ["images in no split, left out: 1 (b.png)"]


def test_one_image_in_several_label_files_is_one_image() -> None:
    assert split(("a.png", None), ("b.png", None), ("a.png", "train"), ("b.png", "val")) == {
        "a.png": "train",
        "b.png": "test",
    }
    assert split(("a.png", "trainval"), ("b.png", "trainval"), ("a.png", "train"), ("b.png", "val")) == {
        "a.png": "train",
        "b.png": "test",
    }


@pytest.mark.parametrize("policy", ["fail", "skip"])
@pytest.mark.parametrize("others", [("train", "test"), ("train", "val"), ("val", "test"), ("trainval", "test")])
def test_an_image_in_two_parts_is_an_error_whatever_the_policy(policy: str, others: tuple[Part, Part]) -> None:
    with pytest.raises(EvaluationError, match=r"a\.png is in two splits"):
        split(("a.png", others[0]), ("b.png", "train"), ("a.png", others[1]), policy=policy)


def test_labels_that_contradict_each_other_are_a_fault() -> None:
    items = [Item(ROOT / "a.png", "train", "one"), Item(ROOT / "a.png", "train", "two"), Item(ROOT / "b.png", "test")]
    with pytest.raises(EvaluationError, match="labelled more than once, and not alike"):
        with_splits(ROOT, items, None, Findings("fail"))
    findings = Findings("skip")
    assert [item.labels for item in with_splits(ROOT, items, None, findings)] == ["one", ""]
    assert "labelled more than once" in findings.notes[0]


def lists(root: Path, **content: str) -> Path:
    for name, text in content.items():
        (root / f"split_{name}.txt").write_text(text, encoding="utf-8")
    return root


NAMES: tuple[tuple[str, Part | None], ...] = (
    ("x/a.png", None),
    ("x/b.png", "test"),
    ("y/a.png", "train"),
    ("y/c.tif", None),
)


def test_split_files_win_and_may_name_an_image_by_the_end_of_its_path(tmp_path: Path) -> None:
    root = lists(tmp_path, train="x/a.png\n.\\b\n", test="y/a\n", val="c.tif\n")
    assert split(*NAMES, root=root) == {"x/a.png": "train", "x/b.png": "train", "y/c.tif": "val", "y/a.png": "test"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"train": "x/a\nb\n", "test": "a\n"}, "'a' may be any of x/a.png, y/a.png"),
        ({"train": "x/a\n", "test": "x/a.png\n"}, "a.png is in two splits"),
        ({"train": "x/a\n", "test": "nowhere.png\n"}, "lists 'nowhere.png', but there is no such file"),
        ({"train": "x/a\nx/a\n", "test": "b\n"}, "'x/a' is listed more than once"),
        ({"train": "x/a\n", "test": "\n"}, "the split is empty"),
        ({"train": "x/a\n"}, "split_train.txt alone"),
        ({"test": "x/a\n", "val": "b\n"}, "split_val.txt, split_test.txt alone"),
    ],
)
def test_split_files_that_cannot_be_meant_are_refused(tmp_path: Path, content: dict[str, str], said: str) -> None:
    with pytest.raises(EvaluationError, match=said):
        split(*NAMES, root=lists(tmp_path, **content))


def test_entries_that_are_wrong_are_counted_where_bad_items_are_skipped(tmp_path: Path) -> None:
    root = lists(tmp_path, train="x/a\nx/a\nnowhere.png\n", test="b\n")
    findings = Findings("skip")
    found = with_splits(root, [Item(root / name, part) for name, part in NAMES], None, findings)

    assert {item.image.name: item.part for item in found} == {"a.png": "train", "b.png": "test"}
    assert findings.notes == [
        "split entries repeated, taken once: 1 (split_train.txt)",
        "split entries without an image: 1 (split_train.txt)",
        "images in no split file, left out: 2 (a.png, c.tif)",
    ]


def test_chosen_groups_win_over_what_the_set_says() -> None:
    assert split(("a.png", "test"), ("b.png", "train"), groups=("b",)) == {"a.png": "train", "b.png": "test"}
