"""Writing the parameter file: what was found, in the order of the chain, and beside each guess the word CHECK."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import yaml

from geokr_core.chain.params import load_params
from geokr_core.draft.headers import Box
from geokr_core.draft.labelled_sets import FoundSet, find_labelled_sets
from geokr_core.draft.land_cover import FoundProduct, find_products
from geokr_core.draft.places import PlaceSize, choose_place_size
from geokr_core.draft.scenes import FoundCollection, find_collections
from geokr_core.errors import ConfigError, MissingInputError
from geokr_core.step.files import whole_file

_RGB: Final = ("red", "green", "blue")
_ANY_PLACE_DEG: Final = 2.0


@dataclass(frozen=True)
class Draft:
    """A parameter file that was written.

    Attributes:
        path: the file.
        collections: of scenes.
        products: of land cover.
        labelled_sets: for the evaluation.
        questions: what could not be decided, each with the place in the file.
    """

    path: Path
    collections: tuple[FoundCollection, ...]
    products: tuple[FoundProduct, ...]
    labelled_sets: tuple[FoundSet, ...]
    questions: tuple[str, ...]


@dataclass(frozen=True)
class _Found:
    """What the folders hold, and where they are seen from the file's folder."""

    folders: dict[str, str]
    collections: Sequence[FoundCollection]
    products: Sequence[FoundProduct]
    sets: Sequence[FoundSet]
    unknown_sets: Sequence[str]
    left_out: Sequence[FoundProduct] = ()


def write_draft(folder: Path, scenes: Path, land_cover: Path, tasks: Path | None, name: str = "params.yaml") -> Draft:
    """Write a parameter file for someone's data, and legend files where no known legend has the codes.

    Args:
        folder: of the project, from which `geokr` will be run; made if it is missing.
        scenes: folder of scenes.
        land_cover: folder of land cover; it may be the same one.
        tasks: folder whose subfolders are labelled sets, or None.
        name: of the file.

    Raises:
        ConfigError: the file is there already.
        MissingInputError: a folder is missing, or holds nothing that can be used.
    """
    path = folder / name
    if path.exists():
        raise ConfigError(
            f"{path} is there already and is left as it is. Give another name with --name, or move it away."
        )
    for given, option in ((scenes, "--scenes"), (land_cover, "--land-cover"), (tasks, "--tasks")):
        if given is not None and not given.is_dir():
            raise MissingInputError(f"{option} {given}: no such folder.")
    found = _look(folder, scenes, land_cover, tasks)
    folder.mkdir(parents=True, exist_ok=True)
    for product in found.products:
        if product.legend_text:
            with whole_file(folder / product.legend) as partial:
                partial.write_text(product.legend_text, encoding="utf-8")
    with whole_file(path) as partial:
        partial.write_text("\n".join(_lines(found, name)) + "\n", encoding="utf-8")
    load_params(path)
    return Draft(path, tuple(found.collections), tuple(found.products), tuple(found.sets), tuple(_questions(found)))


def _look(folder: Path, scenes: Path, land_cover: Path, tasks: Path | None) -> _Found:
    products = find_products(land_cover)
    maps = [os.path.relpath(land_cover / path, scenes) for product in products for path in product.paths]
    collections = find_collections(scenes, maps)
    if not collections:
        raise MissingInputError(
            f"{scenes}: no scene found. Expected GeoTIFF, JPEG 2000 or Erdas Imagine files, or products with their metadata; "
            "docs/scenes.md lists the families that are recognised."
        )
    images = [os.path.relpath(scenes / path, land_cover) for one in collections for path in one.paths]
    products = [product for product in products if not set(product.paths) & set(images)]
    if not products:
        raise MissingInputError(
            f"{land_cover}: no land cover found. Expected rasters of whole numbers with one band, at most 60 different codes; "
            "docs/land-cover.md lists the products that are recognised."
        )
    sets, unknown = find_labelled_sets(tasks) if tasks is not None else ([], [])
    sets = [_with_bands(one, collections) for one in sets]
    unknown = [f"{name} (no labelled set that is known)" for name in unknown]
    unknown += [
        f"{one.name} (images of {one.num_unnamed_bands} bands, and nothing says which)"
        for one in sets
        if _lacks_bands(one)
    ]
    sets = [one for one in sets if not _lacks_bands(one)]
    given = {"scenes": scenes, "land_cover": land_cover, **({"evaluation": tasks} if tasks else {})}
    folders = {name: _seen_from(folder, place) for name, place in given.items()}
    taken = _of_one_legend(products)
    left_out = [product for product in products if product not in taken]
    return _Found(folders, collections, taken, sets, unknown, left_out)


def _with_bands(one: FoundSet, collections: Sequence[FoundCollection]) -> FoundSet:
    """A set whose images have bands that nothing names, with the names of scenes that have as many."""
    alike = [found.seen_bands for found in collections if len(found.seen_bands) == one.num_unnamed_bands]
    if not one.num_unnamed_bands or not alike:
        return one
    doubt = f"nothing names the {one.num_unnamed_bands} bands of its images; `bands` are taken from the scenes: compare"
    return replace(one, bands=alike[0], questions=(*one.questions, doubt))


def _lacks_bands(one: FoundSet) -> bool:
    return bool(one.num_unnamed_bands) and one.bands is None


def _seen_from(folder: Path, place: Path) -> str:
    """A folder as the file names it: relative where it lies near the project, else absolute."""
    relative = Path(os.path.relpath(place.resolve(), folder.resolve()))
    return relative.as_posix() if relative.parts.count("..") <= 2 else place.resolve().as_posix()


def _of_one_legend(products: Sequence[FoundProduct]) -> list[FoundProduct]:
    """Products that can be used together: those with a known legend, else those of the first one's."""
    known = [product for product in products if not product.legend_text]
    return known or [product for product in products if product.legend == products[0].legend]


def _land_cover_of(collection: FoundCollection, products: Sequence[FoundProduct]) -> tuple[FoundProduct, str]:
    """The product of a collection's ground: what covers most of it, then the finest; and what is uncertain about it."""
    shares = {product.name: _covered(collection.boxes, product.boxes) for product in products}
    there = [product for product in products if shares[product.name] > 0]
    if not there:
        return products[
            0
        ], f"no land cover lies under the scenes that were looked at; {products[0].name} is a placeholder"
    there.sort(key=lambda product: (-round(shares[product.name], 1), product.cell_m))
    others = ", ".join(product.name for product in there[1:])
    return there[0], f"{others} cover(s) it, too" if others else ""


def _covered(ground: Sequence[Box], maps: Sequence[Box]) -> float:
    """Mean share of some boxes that others cover, 0 to 1; overlaps of the others count twice, up to all of it."""
    shares = []
    for west, south, east, north in ground:
        area = sum(
            max(0.0, min(east, box[2]) - max(west, box[0])) * max(0.0, min(north, box[3]) - max(south, box[1]))
            for box in maps
        )
        shares.append(min(1.0, area / max((east - west) * (north - south), 1e-12)))
    return sum(shares) / len(shares) if shares else 0.0


def _questions(found: _Found) -> Iterator[str]:
    for collection in found.collections:
        place = f"scenes.collections.{collection.name}"
        yield from (f"{place}: {question}" for question in collection.questions)
        _, doubt = _land_cover_of(collection, found.products)
        if doubt:
            yield f"{place}.land_cover: {doubt}"
    for product in found.products:
        yield from (f"land_cover.products.{product.name}: {question}" for question in product.questions)
    yield from (f"land_cover.products: {text}" for text in _left_out(found))
    if doubt := _place_doubt(_place_size(found)):
        yield f"levir_kr.place_size_deg: {doubt}"
    if doubt := _band_doubt(found):
        yield f"chips.bands: {doubt}"
    for one in found.sets:
        yield from (f"evaluation.tasks.{one.name}: {question}" for question in one.questions)
    yield from (f"evaluation: {text}" for text in _evaluation_doubts(found))


def _left_out(found: _Found) -> Iterator[str]:
    for product in found.left_out:
        yield f"{', '.join(product.paths[:3])}: left out; {product.questions[0]}"


def _place_size(found: _Found) -> PlaceSize | None:
    return choose_place_size([box for one in found.collections for box in one.boxes])


def _place_doubt(size: PlaceSize | None) -> str:
    if size is None:
        return "no size of places was found that leaves some of them to validation: choose one, or give more scenes"
    return (
        "" if size.serves else f"{size.words}: choose a size that holds out some tenth of the ground in several places"
    )


def _band_doubt(found: _Found) -> str:
    bands, doubt = _chip_bands(found.collections)
    if not doubt and found.sets and set(bands) != set(_RGB):
        return f"{', '.join(bands)}: labelled sets of plain colour images need red, green and blue"
    return doubt


def _evaluation_doubts(found: _Found) -> Iterator[str]:
    if found.unknown_sets:
        yield f"left out: {', '.join(found.unknown_sets)}; docs/tasks.md says how sets lie and what a task is told"
    if "evaluation" not in found.folders:
        yield "no folder of labelled sets was given (--tasks), so the backbone will not be judged"
    elif not found.sets:
        yield f"{found.folders['evaluation']} holds no labelled set that can be used, so the backbone will not be judged"


def _chip_bands(collections: Sequence[FoundCollection]) -> tuple[tuple[str, ...], str]:
    """Bands that all collections have, red, green and blue first; and what is uncertain about them."""
    known = [one.seen_bands or one.bands or () for one in collections]
    shared = [band for band in known[0] if all(band in bands for bands in known)]
    if set(_RGB) <= set(shared):
        return _RGB, ""
    if shared:
        return tuple(shared[:3]), f"not all scenes have red, green and blue; they share {', '.join(shared)}"
    some = next((bands for bands in known if set(_RGB) <= set(bands)), known[0])
    bands = _RGB if set(_RGB) <= set(some) else tuple(some[:3])
    return (
        bands,
        "the collections share no band: scenes without these are quarantined. Name bands, or remove a collection",
    )


def _lines(found: _Found, name: str) -> Iterator[str]:
    yield "# Written by `geokr init` from what lies in the folders. Lines with CHECK hold a guess: read them before `geokr run`."
    yield "# Every key with its meaning: `geokr parameters`. Paths are relative to the folder that geokr is run from: this one."
    if name != "params.yaml":
        yield f"# Used with `geokr run --params {name}`."
    yield from ("", "store: data/store                     # everything the chain writes", "")
    yield from _scenes_lines(found)
    yield from _land_cover_lines(found)
    yield from _data_set_lines(found)
    yield from _training_lines()
    yield from _evaluation_lines(found)


def _seen(one: FoundCollection) -> tuple[str, ...]:
    """What was found of a collection, in words."""
    some = f", of which {one.num_looked_at} were looked at" if 0 < one.num_looked_at < one.num_scenes else ""
    size = " to ".join(f"{gsd_m:.3g}" for gsd_m in one.gsd_m)
    return (
        f"{one.num_scenes} scene(s){some}",
        one.product if one.product != "generic" else "",
        f"{size} m a pixel" if size else "",
        ", ".join(one.seen_bands),
        " to ".join(one.acquired),
    )


def _scenes_lines(found: _Found) -> Iterator[str]:
    yield from ("scenes:", f"  folder: {_flow(found.folders['scenes'])}", "  collections:")
    for one in found.collections:
        product, doubt = _land_cover_of(one, found.products)
        yield from (f"    # CHECK {question}" for question in one.questions)
        yield f"    # {'; '.join(part for part in _seen(one) if part)}"
        yield f"    - name: {one.name}"
        yield f"      files: {_flow(one.files)}"
        if one.band_files is not None:
            yield f"      band_files: {_flow([str(token) for token in one.band_files])}"
        if one.bands is not None:
            yield f"      bands: {_flow(list(one.bands))}"
        elif one.seen_bands:
            yield f"      # bands: {_flow(list(one.seen_bands))}        # as found; write it to overrule the files"
        if one.nodata is not None:
            yield f"      nodata: {one.nodata}"
        yield f"      land_cover: {product.name}" + (f"          # CHECK {doubt}" if doubt else "")
    yield ""


def _land_cover_lines(found: _Found) -> Iterator[str]:
    yield from ("land_cover:", f"  folder: {_flow(found.folders['land_cover'])}", "  products:")
    yield from (f"    # CHECK {text}" for text in _left_out(found))
    for product in found.products:
        yield from (f"    # CHECK {question}" for question in product.questions)
        yield f"    # {len(product.paths)} file(s), recognised by {product.reason}"
        yield f"    - name: {product.name}"
        yield f"      files: {_flow(product.files)}"
        yield f"      legend: {_flow(product.legend)}"
        if product.year is not None:
            yield f"      year: {product.year}"
    own = any(product.legend_text for product in found.products)
    yield f"  legend: {'own' if own else 'globeland30'}                   # classes that chips are described in: globeland30, geokr8 or own"
    yield ""


def _data_set_lines(found: _Found) -> Iterator[str]:
    bands, _ = _chip_bands(found.collections)
    size = _place_size(found)
    place = f"  place_size_deg: {size.deg if size else _ANY_PLACE_DEG:g}                # sides of the squares that go to training or to validation as a whole"
    yield "chips:"
    if doubt := _band_doubt(found):
        yield f"  # CHECK {doubt}"
    yield from (
        "  size_px: 64                         # sides of the squares that are learned from",
        "  stride_px: 64                       # smaller than size_px: chips overlap, and there are more of them",
        f"  bands: {_flow(list(bands))}",
        "",
        "levir_kr:",
    )
    doubt = _place_doubt(size)
    yield from (f"  # CHECK {doubt}" if doubt else f"  # {size.words}" if size else "", place, "")


def _training_lines() -> Iterator[str]:
    yield from (
        "pretraining:",
        "  preset: geokr                       # others: docs/pretraining.md",
        "  architecture: resnet18              # others: docs/architectures.md",
        "  variants: [geokr, shuffled]         # shuffled: the control, land cover permuted between chips",
        "  seeds: [0]                          # more seeds: intervals over trainings",
        "  steps: 400                          # a first look; thousands for a result",
        "  batch_size: 128",
        "",
        "backbone:",
        "  model_name: geokr-resnet18",
        "",
        "# To use the archive with the backbone, take the # away:",
        "# embeddings: {}                      # a vector a chip, for `geokr search`",
        "# map_audit: {}                       # where image and land cover disagree; needs embeddings",
        "# land_cover_shares: {}               # land cover mapped from the images",
        "",
    )


def _evaluation_lines(found: _Found) -> Iterator[str]:
    yield from (f"# CHECK {text}" for text in _evaluation_doubts(found))
    if not found.sets:
        yield "# The chain ends with the backbone. docs/tasks.md says what a section `evaluation` holds."
        return
    yield from ("evaluation:", f"  folder: {_flow(found.folders['evaluation'])}", "  tasks:")
    for one in found.sets:
        yield from (f"    # CHECK {question}" for question in one.questions)
        bands = f", bands: {_flow(list(one.bands))}" if one.bands else ""
        yield f"    - {{name: {_flow(one.name)}, kind: {one.kind}{bands}}}          # {one.layout}, {len(one.classes)} classes"
    histogram = ", colour_histogram" if any(one.kind == "scene_classification" for one in found.sets) else ""
    yield from (
        f"  initialisations: [random{histogram}, shuffled, geokr]",
        "  fine_tune_initialisations: [random, geokr]   # fine-tuning costs most",
        "  labels_per_class: [5, all]",
        "  seeds: [0, 1, 2]",
        "",
        "champion:                             # by what a new backbone replaces the present one",
        "  primary:",
    )
    first = next((one for one in found.sets if one.kind == "scene_classification"), found.sets[0])
    criterion: dict[str, Any] = {"task": first.name}
    if first.kind != "scene_classification":
        metric = "map" if first.kind == "detection" else "miou"
        criterion |= {"protocol": "fine_tune", "labels_per_class": "100%", "metric": metric}
    yield f"    - {_flow(criterion)}"


def _flow(value: Any) -> str:
    """A value as YAML on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...").strip()
