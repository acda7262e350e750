"""Patterns that match some files and no others."""

from pathlib import Path

import pytest

from geokr_core.draft.patterns import matches, patterns_of
from geokr_core.step.found_files import find_files


@pytest.mark.parametrize(
    ("wanted", "others", "expected"),
    [
        (["a.tif", "b.tif"], ["c.txt"], ("*.tif",)),
        (["x/a.tif", "x/b.tif"], ["y/c.tif"], ("x/*.tif",)),
        (["x/a.tif", "y/b.tif"], ["z.csv"], ("**/*.tif",)),
        (["s_1.tif", "s_2.tif"], ["map.tif"], ("s_*.tif",)),
        (["1_img.tif", "2_img.tif"], ["1_map.tif"], ("*_img.tif",)),
        (["a.tif", "b.tif"], ["c.tif"], ("a.tif", "b.tif")),
        (["only.tif"], ["other.tif"], ("only.tif",)),
        (["p[1].tif", "p[2].tif"], ["q.tif"], ("p[[]*.tif",)),
    ],
)
def test_the_shortest_pattern_that_takes_no_other_file(
    wanted: list[str], others: list[str], expected: tuple[str, ...]
) -> None:
    assert patterns_of(wanted, others) == expected


def test_a_pattern_matches_here_what_it_will_match_in_the_chain(tmp_path: Path) -> None:
    paths = ["a.tif", "x/b.tif", "x/y/c.tif", "x/d.csv", "p[1].tif"]
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    for pattern in ("*.tif", "**/*.tif", "x/**/*.tif", "x/*", "p[[]1].tif"):
        assert [path for path in sorted(paths) if matches(pattern, path)] == list(find_files(tmp_path, pattern).files)
