"""Commands that use the vectors of an archive: ``search`` by example, and ``label`` to go on from what people labelled."""

from pathlib import Path
from typing import Annotated, Any

import typer

from geokr_core.commands.options import USE, AsJson, Overrides, ParamsFile, add
from geokr_core.commands.output import link, show_numbers, show_rows

Box = Annotated[str | None, typer.Option("--bbox", help="west,south,east,north in degrees; west > east crosses 180.")]
Dates = Annotated[str | None, typer.Option("--dates", help="First and last day: 2021-06-01/2021-08-31, or one day.")]
Sensors = Annotated[list[str] | None, typer.Option("--sensor", help="Only chips of this sensor (repeatable).")]
LandCover = Annotated[
    list[str] | None,
    typer.Option("--land-cover", help="Only chips with this share of a class: 'forest>0.5' (repeatable)."),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    add(
        app,
        search,
        USE,
        reads="<store>/embeddings, for pictures <store>/chips, for land cover <store>/proportions",
        section="embeddings",
        writes="what --geojson, --sheet and --page name",
        example="geokr search --at 127.1,37.4 --land-cover 'water>0.2' --page water.html",
    )
    add(
        app,
        embed_images,
        USE,
        name="embed-images",
        reads="the images, <store>/backbone or the network that `embeddings` names",
        section="embeddings",
        writes="one Parquet file",
        example="geokr embed-images photographs vectors.parquet --size 224",
    )
    add(
        app,
        label,
        USE,
        reads="labels saved from a page, <store>/embeddings, <store>/chips",
        writes="what --page and --map name",
        example="geokr label labels.parquet --page next.html --map target.parquet",
    )


def embed_images(
    folder: Annotated[Path, typer.Argument(help="Folder of images of 8 bits, or TIFFs of 16, at any depth.")],
    out: Annotated[Path, typer.Argument(help="Parquet file that gets a vector an image.")],
    params: ParamsFile = None,
    overrides: Overrides = None,
    size_px: Annotated[int, typer.Option("--size", help="Side in pixels that images are scaled and cropped to.")] = 64,
    as_json: AsJson = False,
) -> None:
    """Embed a folder of plain images, which have no place on Earth; `geokr embed` embeds scenes."""
    from geokr_core.chain.params import load_params
    from geokr_core.chain.steps import Folders
    from geokr_core.embeddings.config import EmbeddingsConfig
    from geokr_core.embeddings.images import embed_images
    from geokr_core.step.reporter import ConsoleReporter

    loaded = load_params(params, overrides or ())
    config, backbone = loaded.embeddings or EmbeddingsConfig(), Folders(loaded)["backbone"]
    show_numbers(embed_images(config, backbone, folder, out, size_px, ConsoleReporter()).numbers, as_json=as_json)


def search(
    params: ParamsFile = None,
    overrides: Overrides = None,
    like: Annotated[list[str] | None, typer.Option("--like", help="Id of a chip to look for (repeatable).")] = None,
    at: Annotated[str | None, typer.Option("--at", help="LON,LAT of a chip to look for, in degrees.")] = None,
    image: Annotated[
        Path | None,
        typer.Option("--image", help="Image file to look for: red, green, blue of 8 bits, or a TIFF of 16."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", help="Chips wanted.")] = 50,
    dates: Dates = None,
    sensor: Sensors = None,
    bbox: Box = None,
    land_cover: LandCover = None,
    geojson: Annotated[Path | None, typer.Option("--geojson", help="File that gets the boxes of the chips.")] = None,
    sheet: Annotated[Path | None, typer.Option("--sheet", help="PNG that gets the chips side by side.")] = None,
    page: Annotated[
        Path | None, typer.Option("--page", help="HTML file to search and label in, without a server.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find the chips of the archive that look most like a chip, a place or an image. The search is exact."""
    from geokr_core.search import output
    from geokr_core.search.examples import parse_place
    from geokr_core.search.find import search_archive, write_search_page

    archive = _archive(params, overrides)
    filters = _filters(dates, sensor, bbox, land_cover)
    place = None if at is None else parse_place(at)
    if page is not None:
        number = write_search_page(archive, page, like=like or (), at=place, image=image, filters=filters)
        typer.echo(f"{number} chips → {link(page)}; open it in a browser.", err=True)
        if not (like or at or image):
            return
    found = search_archive(archive, like=like or (), at=place, image=image, filters=filters, limit=limit)
    # Files first: who reads the head of the table alone (`| head`) ends the command while it is written.
    if geojson is not None:
        output.write_geojson(found, geojson)
    if sheet is not None:
        output.write_contact_sheet(archive.chips, found, sheet)
    show_rows(output.as_text(found), output.SHOWN, as_json=as_json)


def label(
    labels: Annotated[Path, typer.Argument(help="GeoParquet file of labels, saved from a page.")],
    params: ParamsFile = None,
    overrides: Overrides = None,
    page: Annotated[
        Path | None, typer.Option("--page", help="HTML file that shows the least certain chips first.")
    ] = None,
    map_file: Annotated[
        Path | None, typer.Option("--map", help="GeoParquet file that gets the probability of every chip.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", help="Chips to list that are worth a label next.")] = 20,
    dates: Dates = None,
    sensor: Sensors = None,
    bbox: Box = None,
    land_cover: LandCover = None,
    as_json: AsJson = False,
) -> None:
    """Learn from labels what is looked for, and list the chips whose label would tell most."""
    from geokr_core.search import output
    from geokr_core.search.find import go_on

    archive = _archive(params, overrides)
    found = go_on(archive, labels, _filters(dates, sensor, bbox, land_cover), limit, page=page, map_file=map_file)
    show_rows(output.as_text(found), output.SHOWN, as_json=as_json)
    for path in (page, map_file):
        if path is not None:
            typer.echo(f"→ {link(path)}", err=True)


def _archive(params: Path | None, overrides: list[str] | None) -> Any:
    from geokr_core.chain.params import load_params
    from geokr_core.chain.steps import Folders
    from geokr_core.embeddings.config import EmbeddingsConfig
    from geokr_core.search.find import Archive

    loaded = load_params(params, overrides or ())
    folders = Folders(loaded)
    config = loaded.embeddings or EmbeddingsConfig()
    return Archive(folders["embeddings"], folders["chips"], folders["proportions"], folders["backbone"], config)


def _filters(dates: str | None, sensors: list[str] | None, bbox: str | None, land_cover: list[str] | None) -> Any:
    from geokr_core.search.filters import Filters, parse_bbox, parse_dates, parse_land_cover

    first, last = (None, None) if dates is None else parse_dates(dates)
    box = None if bbox is None else parse_bbox(bbox)
    return Filters(first, last, tuple(sensors or ()), box, parse_land_cover(land_cover or ()))
