"""Commands that get data and give it: ``init`` for one's own, ``fetch`` from a STAC catalogue, ``check-data``, ``stac``."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from geokr_core.commands.options import ARCHIVE, START, AsJson, Overrides, ParamsFile, add
from geokr_core.commands.output import link, show_json, show_numbers, show_rows


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    add(
        app,
        init,
        START,
        reads="names and headers of files, and a few values of each kind",
        writes="DIR/params.yaml; a legend file for land cover with unknown codes",
        example="geokr init my-project --scenes archive/scenes --land-cover archive/land_cover --tasks archive/labelled",
    )
    add(
        app,
        fetch,
        ARCHIVE,
        reads="the catalogue, and of each file the pixels of the box",
        writes="GeoTIFFs below the folder, params-snippet.yaml",
        example="geokr fetch -c params/catalogues.yaml --collection sentinel2_l2a --bbox=-112.9,37.1,-112.7,37.3 \\\n           --dates 2021-06-01/2021-08-31 --max-cloud 10 --out data/zion --dry-run",
    )
    add(
        app,
        check_data,
        ARCHIVE,
        name="check-data",
        reads="names and sizes of the files of FOLDER/scenes, FOLDER/tasks and FOLDER/weights",
        example="geokr check-data ../shared/data",
    )
    add(
        app,
        export,
        ARCHIVE,
        reads="a bundle",
        writes="the ONNX file, or the folder for timm",
        example="geokr export --onnx backbone.onnx --timm for-timm",
    )
    add(
        app,
        stac,
        ARCHIVE,
        reads="<store>/levir_kr",
        writes="collection.json, an item a scene, GeoParquet",
        example="geokr stac --out stac --licence CC-BY-4.0",
    )


def export(
    params: ParamsFile = None,
    overrides: Overrides = None,
    bundle: Annotated[
        Path | None, typer.Option("--bundle", help="Folder of a bundle.", show_default="<store>/backbone")
    ] = None,
    onnx: Annotated[Path | None, typer.Option("--onnx", help="ONNX file, normalisation inside.")] = None,
    timm: Annotated[
        Path | None, typer.Option("--timm", help='Folder for timm.create_model("local-dir:FOLDER").')
    ] = None,
) -> None:
    """Write a backbone as ONNX, or as a folder that timm opens by one line; both give its golden features."""
    from geokr_core.backbone.export import export_onnx, export_timm
    from geokr_core.chain.params import load_params
    from geokr_core.chain.steps import Folders
    from geokr_core.errors import ConfigError

    if onnx is None and timm is None:
        raise ConfigError("Nothing to write: give --onnx FILE, --timm FOLDER, or both.")
    folder = bundle or Folders(load_params(params, overrides or ()))["backbone"]
    if onnx is not None:
        typer.echo(f"golden features within {export_onnx(folder, onnx):.1e} → {onnx}")
    if timm is not None:
        typer.echo(f"golden features within {export_timm(folder, timm):.1e} → {timm}")


def init(
    folder: Annotated[
        Path, typer.Argument(help="Project folder, from which geokr will be run; made if it is missing.")
    ],
    scenes: Annotated[Path, typer.Option("--scenes", help="Folder of scenes.")],
    land_cover: Annotated[Path, typer.Option("--land-cover", help="Folder of land cover; may be the same one.")],
    tasks: Annotated[
        Path | None, typer.Option("--tasks", help="Folder whose subfolders are labelled sets.", show_default="none")
    ] = None,
    name: Annotated[str, typer.Option("--name", help="Name of the parameter file.")] = "params.yaml",
    as_json: AsJson = False,
) -> None:
    """Write a commented parameter file for your own data, from what the folders hold."""
    from geokr_core.draft.parameter_file import write_draft

    draft = write_draft(folder, scenes, land_cover, tasks, name)
    if as_json:
        show_json(
            {
                "parameter_file": str(draft.path),
                "collections": {
                    one.name: {"files": one.files, "num_scenes": one.num_scenes, "bands": list(one.seen_bands)}
                    for one in draft.collections
                },
                "products": {one.name: {"files": one.files, "legend": one.legend} for one in draft.products},
                "labelled_sets": {one.name: {"kind": one.kind, "layout": one.layout} for one in draft.labelled_sets},
                "questions": list(draft.questions),
            }
        )
        return
    typer.echo(f"{link(draft.path)} written, from:")
    for one in draft.collections:
        typer.echo(
            f"  {one.name}: {one.num_scenes} scene(s) {one.files} ({', '.join(one.seen_bands) or 'bands unknown'})"
        )
    for product in draft.products:
        typer.echo(
            f"  {product.name}: {len(product.paths)} land-cover file(s) {product.files} (legend {product.legend})"
        )
    for labelled in draft.labelled_sets:
        typer.echo(f"  {labelled.name}: {labelled.kind} ({labelled.layout})")
    if draft.questions:
        typer.echo(f"{len(draft.questions)} point(s) could not be decided; they are marked CHECK in the file:")
        for question in draft.questions:
            typer.echo(f"  {question}")
    inside = "" if folder.resolve() == Path.cwd() else f"cd {folder} && "
    option = "" if name == "params.yaml" else f" --params {name}"
    typer.echo(
        f"Next: {inside}geokr status{option}; then geokr scenes{option}, or geokr run{option} for the whole chain."
    )


def fetch(
    catalogues: Annotated[
        Path, typer.Option("--catalogues", "-c", help="File of catalogues, see params/catalogues.yaml.")
    ],
    collection: Annotated[list[str], typer.Option("--collection", help="Collection name in that file (repeatable).")],
    bbox: Annotated[str, typer.Option("--bbox", help="west,south,east,north in degrees; west > east crosses 180.")],
    dates: Annotated[str, typer.Option("--dates", help="First and last day: 2021-06-01/2021-08-31, or one day.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder that gets the files; finished ones are kept.")],
    max_cloud: Annotated[float, typer.Option("--max-cloud", help="Percent; cloudier scenes stay out.")] = 100.0,
    max_items: Annotated[int, typer.Option("--max-items", help="Scenes a collection, least cloudy first.")] = 10,
    max_gb: Annotated[float, typer.Option("--max-gb", help="Refuse larger plans.")] = 10.0,
    connections: Annotated[int, typer.Option("--connections", help="Files read at the same time (1-8).")] = 2,
    skip_broken: Annotated[bool, typer.Option("--skip-broken", help="Leave out items that cannot be read.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before reading.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fetch scenes and the land cover of the same ground from a STAC catalogue.

    Searches the catalogue, reads the headers, shows what would be read and how large it is, asks, and reads only the
    pixels of the box, as they are. Run the same command again after an interruption: finished files are kept.

    The land cover named for the collection comes with it. The file params-snippet.yaml in the folder holds the
    sections `scenes` and `land_cover` for a parameter file. Access keys come from environment variables that the
    file of catalogues names; docs/acquisition.md tells more.
    """
    from geokr_core.acquisition.catalogues import FetchConfig, load_catalogues, parse_request
    from geokr_core.acquisition.fetching import fetch
    from geokr_core.step.reporter import ConsoleReporter

    limits = {
        "max_cloud_cover_percent": max_cloud,
        "max_items": max_items,
        "max_gb": max_gb,
        "connections": connections,
        "skip_broken": skip_broken,
    }
    config: FetchConfig = parse_request(load_catalogues(catalogues), collection, bbox, dates, limits)

    def confirm(plan: Any) -> bool:
        _show_plan(plan, as_json=as_json and dry_run)
        return not dry_run and (yes or _agreed())

    summary = fetch(config, out, ConsoleReporter(), confirm=confirm)
    if not dry_run:
        show_numbers({**summary.numbers, "folder": str(out)}, as_json=as_json)
        typer.echo(f"Put the sections of {link(out / 'params-snippet.yaml')} into a parameter file.", err=True)


def _show_plan(plan: Any, *, as_json: bool) -> None:
    """What would be fetched: at a terminal or as JSON; the sizes in words beside it, where they do no harm."""
    rows = plan.table()
    if as_json:
        show_json(
            {
                "files": rows,
                "estimated_bytes": plan.estimated_bytes,
                "pixel_bytes": plan.num_bytes,
                "broken": plan.broken,
            }
        )
    elif rows:
        show_rows(rows, list(rows[0]))
    typer.echo(
        f"About {plan.estimated_bytes / 1e6:.1f} MB to transfer for {len(plan.files)} files, "
        f"at most {plan.num_bytes / 1e6:.1f} MB of pixels.",
        err=as_json,
    )
    for name, reason in plan.broken.items():
        typer.echo(f"cannot be read: {name}: {reason}", err=True)


def _agreed() -> bool:
    """Ask whoever is at the terminal.

    Raises:
        AcquisitionError: no one is.
    """
    from geokr_core.errors import AcquisitionError

    if not sys.stdin.isatty():
        raise AcquisitionError(
            "No one is at the terminal to agree to this plan: pass --yes to read it, --dry-run to only see it."
        )
    return typer.confirm("Read it?", abort=True)


def check_data(
    folder: Annotated[Path, typer.Argument(help="Folder with scenes, tasks and weights.")],
    as_json: AsJson = False,
) -> None:
    """Say which of the real sets that studies read are whole in a folder. Exit code 1 if any is not; docs/data.md tells more."""
    from dataclasses import asdict

    from geokr_core.acquisition.real_sets import check_sets

    found = check_sets(folder)
    show_rows([asdict(one) for one in found], ("folder", "state", "found"), as_json=as_json)
    incomplete = sum(one.state != "whole" for one in found)
    if not as_json:
        typer.echo(f"{len(found) - incomplete} of {len(found)} sets are whole.", err=True)
    if incomplete:
        raise typer.Exit(1)


def stac(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder that gets the collection; replaced as a whole.")],
    params: ParamsFile = None,
    overrides: Overrides = None,
    levir_kr: Annotated[
        Path | None, typer.Option("--levir-kr", help="The frozen data set.", show_default="<store>/levir_kr")
    ] = None,
    licence: Annotated[str, typer.Option("--licence", help="SPDX name, or `other`.")] = "other",
    as_json: AsJson = False,
) -> None:
    """Export the frozen Levir-KR as a STAC collection: one item a scene, its chips and proportions as GeoParquet."""
    from geokr_core.chain.params import load_params
    from geokr_core.chain.steps import Folders
    from geokr_core.levir_kr.stac_export import export_stac
    from geokr_core.step.reporter import ConsoleReporter

    folder = levir_kr or Folders(load_params(params, overrides or ()))["levir_kr"]
    numbers = export_stac(folder, out, ConsoleReporter(), licence=licence).numbers
    show_numbers({**numbers, "collection": str(out / "collection.json")}, as_json=as_json)
