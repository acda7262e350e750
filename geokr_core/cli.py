"""The command line: one command a step, ``run`` for the whole chain, ``download`` for the delivered backbone.

Only argument handling lives here, and it imports nothing heavy before a command runs, so that ``--help`` is quick.
"""

import errno
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from geokr_core import __version__
from geokr_core.chain.steps import STEPS, Step
from geokr_core.errors import GeoKRError


class _Commands(TyperGroup):
    """The commands, each with its whole first sentence; click cuts it to one line."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, command.get_short_help_str(limit=sys.maxsize)) for name, command in self.commands.items()]
            )


app = typer.Typer(
    cls=_Commands,
    rich_markup_mode=None,  # loading rich takes longer than all the rest of `--help`
    help="Pretrain a remote-sensing backbone from unlabelled scenes and a land-cover product, and judge it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ParamsFile = Annotated[
    Path | None, typer.Option("--params", "-p", help="Parameter file [default: $GEOKR_PARAMS or params.yaml].")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", "-s", help="Override a value: section.key=value (repeatable).")
]
Deep = Annotated[bool, typer.Option("--deep", help="Read every byte, also of files that have not been touched.")]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON.")]
Force = Annotated[bool, typer.Option("--force", "-f", help="Run even if the output is up to date.")]


def _run(names: list[str] | None, params_file: Path | None, overrides: list[str] | None, force: bool) -> None:
    from geokr_core.chain.params import load_params
    from geokr_core.chain.run import run
    from geokr_core.step.reporter import ConsoleReporter

    params = load_params(params_file, overrides or ())
    outcomes = run(params, ConsoleReporter(), steps=names, force=force)
    if names is None:
        _farewell(params)
    else:
        for outcome in outcomes:
            _show(outcome.summary.numbers)


def _show(numbers: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None)
    for key, value in numbers.items():
        table.add_row(key, str(value))
    Console().print(table)


def _farewell(params: Any) -> None:
    """Say what came out, where it lies and what to do next."""
    from geokr_core.chain.steps import Folders, steps_of
    from geokr_core.step.files import read_json

    folders, made = Folders(params), {step.name for step in steps_of(params)}
    lines = [f"Backbone   {folders['backbone']}  (MODEL_CARD.md says how to load it)"]
    if "report" in made:
        lines.insert(0, f"Report     {folders['report'] / 'report.html'}  (open it in a browser)")
    if "champion" in made:
        typer.echo(f"\n{read_json(folders['champion'] / 'decision.json')['reason']}", err=True)
        lines.append(f"Registry   geokr download {params.backbone.model_name}@champion --to my-backbone")
    lines += [
        "Next       make ui            the same chain in the Dagster UI",
        "           mlflow ui          parameters, curves and the registry",
        "           edit params.yaml   to point it at your own scenes, land cover and tasks",
    ]
    typer.echo("\n" + "\n".join(lines))


@app.command()
def run(params: ParamsFile = None, overrides: Overrides = None, force: Force = False) -> None:
    """Run the whole chain: raw scenes to a registered, evaluated backbone. Steps that are up to date are passed over."""
    _run(None, params, overrides, force)


@app.command()
def status(params: ParamsFile = None, overrides: Overrides = None, deep: Deep = False, as_json: AsJson = False) -> None:
    """Show what the next run will do, and why; nothing is run."""
    from geokr_core.chain import status as chain_status
    from geokr_core.chain.params import load_params

    found = chain_status.status(load_params(params, overrides or ()), deep=deep)
    rows = [
        {
            "step": one.step,
            "state": one.state,
            "why": "\n".join(one.reasons if as_json else _shortened(one.reasons)),
            "output": str(one.output),
        }
        for one in found
    ]
    _show_rows(rows, ("step", "state", "why", "output"), as_json=as_json)


def _shortened(reasons: Sequence[str]) -> Sequence[str]:
    return reasons if len(reasons) <= 3 else (*reasons[:2], f"… and {len(reasons) - 2} more reasons")


@app.command()
def verify(params: ParamsFile = None, overrides: Overrides = None, deep: Deep = False, as_json: AsJson = False) -> None:
    """Compare every file of the store with what was recorded of it, and name each that is damaged. Exit code 1 if any is."""
    from geokr_core.chain import status as chain_status
    from geokr_core.chain.params import load_params

    found = chain_status.verify(load_params(params, overrides or ()), deep=deep)
    rows = [{"file": str(one.path), "fault": one.fault, "remedy": one.remedy} for one in found]
    if rows or as_json:
        _show_rows(rows, ("file", "fault", "remedy"), as_json=as_json)
    if not as_json:
        typer.echo(
            f"{len(rows)} file(s) are not what was written." if rows else "Every file is what was written.", err=True
        )
    if rows:
        raise typer.Exit(1)


def _show_rows(rows: Sequence[Mapping[str, str]], columns: Sequence[str], *, as_json: bool = False) -> None:
    """A table at a terminal, CSV where the output goes to a file or a program, or JSON: nothing is ever cut off there."""
    import csv
    import json

    if as_json:
        typer.echo(json.dumps(list(rows), indent=2, ensure_ascii=False))
    elif sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(*columns)
        for row in rows:
            table.add_row(*(Text(row[column], overflow="fold") for column in columns))
        Console().print(table)
    else:
        writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


@app.command(help=STEPS["world"].purpose)
def world(
    params: ParamsFile = None,
    overrides: Overrides = None,
    force: Force = False,
    out: Annotated[Path | None, typer.Option("--out", help="Write here instead of `world.folder`.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Another seed gives another world.")] = None,
) -> None:
    """Generate a small world in the project's place, or with other options elsewhere."""
    if out is None and seed is None:
        _run(["world"], params, overrides, force)
        return
    from geokr_core.chain.params import load_params
    from geokr_core.errors import ConfigError
    from geokr_core.step.reporter import ConsoleReporter
    from geokr_core.world.config import WorldConfig
    from geokr_core.world.generate import generate_world

    try:
        base = load_params(params, overrides or ()).world or WorldConfig()
    except ConfigError:
        if params is not None:
            raise
        base = WorldConfig()  # outside a project the defaults do
    config = base.model_copy(update={k: v for k, v in (("folder", out), ("seed", seed)) if v is not None})
    _show(generate_world(config, config.folder, ConsoleReporter()).numbers)


def _step_command(step: Step) -> None:
    def invoke(params: ParamsFile = None, overrides: Overrides = None, force: Force = False) -> None:
        _run([step.name], params, overrides, force)

    app.command(step.command, help=step.purpose)(invoke)


for _step in STEPS.values():
    if _step.command != "world":  # has more options
        _step_command(_step)


@app.command()
def quarantine(params: ParamsFile = None, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """List every quarantined scene with the step and the reason."""
    from geokr_core.chain.params import load_params
    from geokr_core.chain.steps import Folders
    from geokr_core.scenes.quarantine import COLUMNS, quarantined

    folders = Folders(load_params(params, overrides or ()))
    later = [folders[step.name] for step in STEPS.values() if step.scenes is not None]
    _show_rows(quarantined(folders["scenes"], *later), COLUMNS, as_json=as_json)


@app.command()
def alignment(params: ParamsFile = None, overrides: Overrides = None) -> None:
    """Measure how each scene and its land cover lie on each other, as CSV. Needs `geokr scenes` and `geokr land-cover`."""
    import csv

    from geokr_core.chain.params import load_params
    from geokr_core.chain.steps import Folders
    from geokr_core.proportions.alignment import alignments
    from geokr_core.step.reporter import ConsoleReporter

    checked = load_params(params, overrides or ())
    folders = Folders(checked)
    writer = None
    for found in alignments(
        checked.alignment,
        checked.chips.bands,
        checked.scenes.folder,
        folders["scenes"],
        checked.land_cover.folder,
        folders["land_cover"],
        ConsoleReporter(),
    ):
        row = found.row(checked.alignment.tolerance_px)
        if writer is None:
            writer = csv.DictWriter(sys.stdout, list(row), lineterminator="\n")
            writer.writeheader()
        writer.writerow(row)


@app.command()
def download(
    reference: Annotated[str, typer.Argument(help="MODEL@ALIAS or MODEL/VERSION, e.g. geokr-resnet18@champion.")],
    to: Annotated[Path, typer.Option("--to", help="Folder that gets the bundle.")],
) -> None:
    """Download a backbone from the MLflow registry and verify its golden features."""
    from geokr_core.registry import versions

    folder = versions.download(reference, to)
    typer.echo(f"{reference} verified → {folder}; MODEL_CARD.md in there says how to load it.")


@app.command()
def rollback(
    model: Annotated[str, typer.Argument(help="Registered model, e.g. geokr-resnet18.")],
    because: Annotated[str, typer.Option("--because", help="Why; kept in the registry.")],
    to: Annotated[int | None, typer.Option("--to", help="Version to return to [default: the one replaced].")] = None,
) -> None:
    """Make the previous champion champion again, and keep the present one from winning a second time."""
    from geokr_core.registry import champion
    from geokr_core.step.reporter import ConsoleReporter

    champion.rollback(model, because, to, ConsoleReporter())


@app.command()
def compare(
    first: Annotated[str, typer.Argument(help="MODEL@ALIAS or MODEL/VERSION.")],
    second: Annotated[str, typer.Argument(help="The one it is compared with.")],
    params: ParamsFile = None,
    overrides: Overrides = None,
) -> None:
    """Score two registered backbones alike by the criteria of section `champion`, and show the differences."""
    from rich.console import Console
    from rich.table import Table

    from geokr_core.chain.calls import need
    from geokr_core.chain.params import load_params
    from geokr_core.chain.steps import Folders
    from geokr_core.registry import champion
    from geokr_core.step.reporter import ConsoleReporter

    loaded = load_params(params, overrides or ())
    cells = Folders(loaded).checkpoints / "evaluation"
    rule, evaluation = need(loaded.champion, "champion"), need(loaded.evaluation, "evaluation")
    summary = champion.compare((first, second), rule, evaluation, cells, ConsoleReporter())
    table = Table(*summary.table[0])
    for row in summary.table:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)
    typer.echo(
        f"By the rule of promotion, {first} would {'' if summary.numbers['would_be_promoted'] else 'not '}replace "
        f"{second}: {summary.numbers['reason']}."
    )


@app.command()
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
) -> None:
    """Fetch scenes and the land cover of the same ground from a STAC catalogue.

    Searches the catalogue, reads the headers, shows what would be read and how large it is, asks, and reads only the
    pixels of the box, as they are. Run the same command again after an interruption: finished files are kept.

    geokr fetch -c params/catalogues.yaml --collection sentinel2_l2a --bbox=-112.9,37.1,-112.7,37.3
    --dates 2021-06-01/2021-08-31 --max-cloud 10 --out data/zion --dry-run

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
    summary = fetch(config, out, ConsoleReporter(), confirm=lambda plan: _agree(plan, dry_run=dry_run, yes=yes))
    if not dry_run:
        _show(summary.numbers)
        typer.echo(f"→ {out}; put the sections of {out / 'params-snippet.yaml'} into a parameter file.")


def _agree(plan: Any, *, dry_run: bool, yes: bool) -> bool:
    """Show what would be fetched and ask."""
    from rich.console import Console
    from rich.table import Table

    from geokr_core.errors import AcquisitionError

    rows = plan.table()
    table = Table(*rows[0]) if rows else Table()
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)
    typer.echo(
        f"About {plan.estimated_bytes / 1e6:.1f} MB to transfer for {len(plan.files)} files, "
        f"at most {plan.num_bytes / 1e6:.1f} MB of pixels."
    )
    for name, reason in plan.broken.items():
        typer.echo(f"cannot be read: {name}: {reason}", err=True)
    if dry_run:
        return False
    if yes:
        return True
    if not sys.stdin.isatty():
        raise AcquisitionError(
            "No one is at the terminal to agree to this plan: pass --yes to read it, --dry-run to only see it."
        )
    return typer.confirm("Read it?", abort=True)


@app.command()
def stac(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder that gets the collection; replaced as a whole.")],
    params: ParamsFile = None,
    overrides: Overrides = None,
    levir_kr: Annotated[
        Path | None, typer.Option("--levir-kr", help="The frozen data set (default: <store>/levir_kr).")
    ] = None,
    licence: Annotated[str, typer.Option("--licence", help="SPDX name, or `other`.")] = "other",
) -> None:
    """Export the frozen Levir-KR as a STAC collection: one item a scene, its chips and proportions as GeoParquet."""
    from geokr_core.chain.params import load_params
    from geokr_core.chain.steps import Folders
    from geokr_core.levir_kr.stac_export import export_stac
    from geokr_core.step.reporter import ConsoleReporter

    folder = levir_kr or Folders(load_params(params, overrides or ()))["levir_kr"]
    _show(export_stac(folder, out, ConsoleReporter(), licence=licence).numbers)
    typer.echo(f"→ {out / 'collection.json'}")


@app.command()
def bench(
    name: Annotated[
        str, typer.Argument(help="ingest, align, scale, loader, pretrain, evaluate, startup, or all.")
    ] = "all",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on the last line.")] = False,
) -> None:
    """Measure speed as ratios within one run, so that the figures hold on any machine."""
    from geokr_core.bench.run import run_bench

    run_bench(name, as_json=as_json)


@app.command()
def parameters() -> None:
    """Print what each key of the parameter file means, as Markdown."""
    from geokr_core.chain.parameters_reference import parameters_reference

    typer.echo(parameters_reference(), nl=False)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def main() -> None:
    """Entry point: errors made on purpose become one clear message and exit code 2."""
    # Threads of torch that wait by spinning fight with any other busy process: ten times slower on a shared machine.
    # Must be set before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except GeoKRError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO):
            raise
        where = error.filename or "the output folder"
        typer.echo(
            f"error: {where}: {error.strerror}. Nothing half-written was left in place of earlier results; "
            "free some space or mend the permissions and run the same command again: finished work is kept.",
            err=True,
        )
        sys.exit(2)


if __name__ == "__main__":
    main()
