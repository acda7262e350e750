"""Commands about GeoKR itself: ``parameters``, ``bench``, ``version``."""

from typing import Annotated

import typer

from geokr_core import __version__
from geokr_core.bench.names import BENCHMARKS
from geokr_core.commands.options import ABOUT, add


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    add(
        app,
        parameters,
        ABOUT,
    )
    add(
        app,
        bench,
        ABOUT,
        example="geokr bench loader --json",
    )
    add(
        app,
        version,
        ABOUT,
    )


def parameters() -> None:
    """Print what each key of the parameter file means, as Markdown."""
    from geokr_core.chain.parameters_reference import parameters_reference

    typer.echo(parameters_reference(), nl=False)


def bench(
    name: Annotated[str, typer.Argument(help=f"{', '.join(BENCHMARKS)}, or all.")] = "all",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on the last line.")] = False,
) -> None:
    """Measure speed as ratios within one run, so that the figures hold on any machine."""
    from geokr_core.bench.run import run_bench

    run_bench(name, as_json=as_json)


def version() -> None:
    """Print the version."""
    typer.echo(__version__)
