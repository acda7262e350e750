"""Which land-cover products a folder holds: by the names of their files, else by the codes that they hold."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from geokr_core.draft.headers import Box, Header, is_raster, read_header, sample
from geokr_core.draft.names import distinct, identifier
from geokr_core.draft.patterns import MOST_PATTERNS, patterns_of
from geokr_core.land_cover.legend import ProductLegend, legend_names, load_legend
from geokr_core.step.found_files import find_files

_MOST_CODES: Final = 60
"""A raster with more different values is taken for an image, not for a map of classes."""

_MOST_SAMPLED: Final = 20
"""Files of a product whose codes are looked at."""

_MOST_ALONE: Final = 3
"""Up to as many maps of one folder are taken for different products; more are tiles of one."""

_METRES_A_DEGREE: Final = 111_320.0


@dataclass(frozen=True)
class FoundProduct:
    """A land-cover product of a folder.

    Attributes:
        name: for the parameter file.
        files: pattern below the folder.
        paths: files that it matches.
        legend: name of a legend, or the name of the file that `legend_text` is to be written to.
        year: edition, where the names of the files do not say it.
        boxes: where its files lie.
        cell_m: side of a cell in metres, about.
        reason: how it was recognised.
        questions: what could not be decided.
        legend_text: a legend file to be completed, where no known legend has the codes.
    """

    name: str
    files: str
    paths: tuple[str, ...]
    legend: str
    year: int | None
    boxes: tuple[Box, ...]
    cell_m: float
    reason: str
    questions: tuple[str, ...] = ()
    legend_text: str = ""


def find_products(folder: Path, images: Sequence[str] = ()) -> list[FoundProduct]:
    """The products of a folder.

    Args:
        folder: of land-cover rasters, which may hold scenes as well.
        images: files below it that are known to be scenes.

    Returns:
        By name. Rasters that are no map of classes are left out.
    """
    paths = [path for path in find_files(folder, "**").files if is_raster(path) and path not in set(images)]
    headers = [header for path in paths if (header := read_header(folder, path)) is not None]
    by_name: dict[str, list[Header]] = {}
    rest: list[Header] = []
    legends = {name: load_legend(name) for name in legend_names()}
    for header in headers:
        named = [name for name, legend in legends.items() if legend.named(header.name) and _is_whole(header)]
        (by_name.setdefault(named[0], []) if named else rest).append(header)
    products = [one for name, alike in by_name.items() for one in _named(folder, legends[name], name, alike, paths)]
    products += _by_codes(folder, rest, legends, paths)
    names = distinct([product.name for product in products])
    numbered = [replace(product, name=name) for product, name in zip(products, names, strict=True)]
    return sorted(numbered, key=lambda product: product.name)


def _is_whole(header: Header) -> bool:
    return header.kind.startswith(("int", "uint"))


def _named(
    folder: Path, legend: ProductLegend, name: str, headers: Sequence[Header], others: Sequence[str]
) -> list[FoundProduct]:
    year_known = all(legend.year_of(header.name) or legend.years_of_bands(header.name) for header in headers)
    codes = _codes(folder, headers)
    unlisted = sorted(code for code in codes if legend.meaning(code) is None)
    questions = [f"codes {unlisted} are not listed by the legend {name}"] if unlisted else []
    return _product(
        folder, name, headers, others, legend=name, year_known=year_known, questions=questions, reason="file names"
    )


def _by_codes(
    folder: Path, headers: Sequence[Header], legends: Mapping[str, ProductLegend], others: Sequence[str]
) -> list[FoundProduct]:
    """Products of files whose names say nothing: files of one folder that one legend fits are one product."""
    by_folder: dict[str, list[Header]] = {}
    for header in headers:
        if header.num_bands == 1 and _is_whole(header):
            by_folder.setdefault(header.folder, []).append(header)
    groups = [group for alike in by_folder.values() for group in _products_of(folder, alike)]
    found: list[FoundProduct] = []
    for group in groups:
        codes = _codes(folder, group)
        fitting = _fitting(codes, legends)
        likely, by = _likely(folder, fitting, group[0], legends)
        # What no legend fits is a map only if the file itself says so by a colour table, or holds few classes.
        is_map = fitting or group[0].colour_table or len(codes) <= _MOST_CODES // 2
        if not is_map or not 2 <= len(codes) <= _MOST_CODES:
            continue
        if len(likely) == 1:
            legend = likely[0]
            doubt = _doubt(legend, by, codes, fitting)
            found += _product(
                folder, legend, group, others, legend=legend, questions=[doubt], reason="the codes it holds"
            )
        else:
            found += _unknown(folder, group, others, fitting)
    return found


def _products_of(folder: Path, headers: Sequence[Header]) -> list[Sequence[Header]]:
    """Files of one folder, product by product: several maps of one place often share a folder, also with images."""
    if len(headers) > _MOST_SAMPLED:
        return [headers]
    maps = [header for header in headers if len(_codes(folder, [header])) <= _MOST_CODES]
    return [maps] if len(maps) > _MOST_ALONE else [[header] for header in maps]


def _fitting(codes: frozenset[int], legends: Mapping[str, ProductLegend]) -> list[str]:
    """Legends that list all codes."""
    fitting = []
    for name, legend in legends.items():
        classes = {code for entry in legend.classes for code in entry.codes}
        if codes <= classes | {*legend.nodata, *legend.sea} and len(codes & classes) >= 2:
            fitting.append(name)
    return fitting


def _likely(
    folder: Path, fitting: Sequence[str], header: Header, legends: Mapping[str, ProductLegend]
) -> tuple[Sequence[str], str]:
    """Of several legends the one that the path names, or whose cells are as large, if it is just one; else all. And by what."""
    path = f"{folder.resolve().name}/{header.path}".casefold()  # whoever has one product gives its own folder
    named = [name for name in fitting if name in path]
    size = header.cell_m
    alike = [name for name in fitting if size and (cell := legends[name].resolution_m) and 0.8 <= size / cell <= 1.25]
    ways = ((named, "the path"), (alike, "the size of its cells"))
    return next(((some, by) for some, by in ways if len(some) == 1), (fitting, "its codes"))


def _doubt(legend: str, by: str, codes: frozenset[int], fitting: Sequence[str]) -> str:
    others = [name for name in fitting if name != legend]
    if not others:
        return f"`legend: {legend}` is concluded from {len(codes)} codes alone"
    return (
        f"its {len(codes)} codes fit {' and '.join([legend, *others])}, which mean other land cover by them: "
        f"`legend: {legend}` is concluded from {by}"
    )


def _unknown(
    folder: Path, headers: Sequence[Header], others: Sequence[str], fitting: Sequence[str]
) -> list[FoundProduct]:
    codes = sorted(_codes(folder, headers))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["code", "name", "colour", "common"])
    for code in codes:
        writer.writerow([code, f"class {code}", headers[0].colour_table.get(code, ""), ""])
    products = _product(
        folder,
        identifier(Path(headers[0].name).stem, "product"),
        headers,
        others,
        legend="",
        questions=[
            f"its codes fit several legends ({', '.join(fitting)}): name the right one as `legend`, or complete the legend file"
            if fitting
            else "no known legend has its codes: complete the legend file, names and, to compare products, `common`"
        ],
        reason=f"a raster of {len(codes)} codes",
    )
    file = f"legend_{products[0].name}.csv"
    return [replace(product, legend=file, legend_text=text.getvalue()) for product in products]


def _product(
    folder: Path,
    name: str,
    headers: Sequence[Header],
    others: Sequence[str],
    *,
    legend: str,
    questions: Sequence[str],
    reason: str,
    year_known: bool = False,
) -> list[FoundProduct]:
    """The product, or one a file where no pattern matches all files and no others; of very many the first."""
    open_points = list(questions)
    year = None
    if not year_known:
        year = _year_in([f"{folder.resolve().name}/{header.path}" for header in headers])
        open_points.append(
            f"`year` {year} is taken from the path" if year else "no name says its year: `year` is a placeholder"
        )
        year = year or 2020
    patterns = patterns_of([header.path for header in headers], others)
    parts = [headers] if len(patterns) == 1 else [[header] for header in headers]
    if len(patterns) > MOST_PATTERNS:
        open_points.append(
            f"its {len(patterns)} files share no pattern of names; only the first {MOST_PATTERNS} are taken"
        )
    return [
        FoundProduct(
            identifier(name, "product") + (f"_{year}" if year and str(year) not in name else ""),
            pattern,
            tuple(header.path for header in part),
            legend,
            year,
            tuple(header.box for header in part if header.box is not None),
            part[0].cell_m or part[0].cell * _METRES_A_DEGREE,
            reason,
            tuple(open_points),
        )
        for pattern, part in list(zip(patterns, parts, strict=True))[:MOST_PATTERNS]
    ]


def _codes(folder: Path, headers: Sequence[Header]) -> frozenset[int]:
    """Codes that occur in some files, without what they declare as nodata."""
    codes: set[int] = set()
    for header in headers[:_MOST_SAMPLED]:
        if _is_whole(header):
            codes |= {int(code) for code in np.unique(sample(folder, header)[:1])} - {header.nodata}
    return frozenset(codes)


def _year_in(paths: Sequence[str]) -> int | None:
    years = {int(year) for path in paths for year in re.findall(r"(?<!\d)((?:19[6-9]|20[0-4])\d)(?!\d)", path)}
    return years.pop() if len(years) == 1 else None
