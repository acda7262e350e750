"""Commands about registered backbones: ``download``, ``compare``, ``rollback``."""

from pathlib import Path
from typing import Annotated

import typer

from geokr_core.commands.options import REGISTRY, AsJson, Overrides, ParamsFile, add
from geokr_core.commands.output import link, show_json, show_rows


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    add(
        app,
        download,
        REGISTRY,
        reads="the registry at $MLFLOW_TRACKING_URI, else mlflow.db of this folder",
        writes="the bundle: weights, preprocessing, loader, model card",
        example="geokr download geokr-resnet18@champion --to my-backbone",
    )
    add(
        app,
        compare,
        REGISTRY,
        reads="both bundles from the registry, evaluation.folder",
        section="champion, evaluation",
        example="geokr compare geokr-resnet18/2 geokr-resnet18@champion",
    )
    add(
        app,
        rollback,
        REGISTRY,
        writes="aliases and tags of the registry; no version is deleted",
        example='geokr rollback geokr-resnet18 --because "clouds in the training scenes"',
    )


def download(
    reference: Annotated[str, typer.Argument(help="MODEL@ALIAS or MODEL/VERSION, e.g. geokr-resnet18@champion.")],
    to: Annotated[Path, typer.Option("--to", help="Folder that gets the bundle.")],
    as_json: AsJson = False,
) -> None:
    """Download a backbone from the MLflow registry and verify its golden features."""
    from geokr_core.backbone.bundle import MODEL_CARD
    from geokr_core.registry import versions

    folder = versions.download(reference, to)
    if as_json:
        show_json({"reference": reference, "folder": str(folder), "verified": True})
        return
    scored, plain = folder / versions.CARD, folder / MODEL_CARD
    what, card = ("How to load it, and its scores", scored) if scored.is_file() else ("How to load it", plain)
    typer.echo(f"{reference} verified → {link(folder)}\n{what}: {link(card)}")


def compare(
    first: Annotated[str, typer.Argument(help="MODEL@ALIAS or MODEL/VERSION.")],
    second: Annotated[str, typer.Argument(help="The one it is compared with.")],
    params: ParamsFile = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Score two registered backbones alike by the criteria of section `champion`, and show the differences."""
    from geokr_core.chain.calls import need
    from geokr_core.chain.params import load_params
    from geokr_core.chain.steps import Folders
    from geokr_core.registry import champion
    from geokr_core.step.reporter import ConsoleReporter

    loaded = load_params(params, overrides or ())
    cells = Folders(loaded).checkpoints / "evaluation"
    rule, evaluation = need(loaded.champion, "champion"), need(loaded.evaluation, "evaluation")
    summary = champion.compare((first, second), rule, evaluation, cells, ConsoleReporter())
    if as_json:
        show_json({"criteria": [dict(row) for row in summary.table], **summary.numbers})
        return
    show_rows(summary.table, list(summary.table[0]))
    typer.echo(
        f"By the rule of promotion, {first} would {'' if summary.numbers['would_be_promoted'] else 'not '}replace "
        f"{second}: {summary.numbers['reason']}.",
        err=True,
    )


def rollback(
    model: Annotated[str, typer.Argument(help="Registered model, e.g. geokr-resnet18.")],
    because: Annotated[str, typer.Option("--because", help="Why; kept in the registry.")],
    to: Annotated[
        int | None, typer.Option("--to", help="Version to return to.", show_default="the one that was replaced")
    ] = None,
) -> None:
    """Make the previous champion champion again, and keep the present one from winning a second time."""
    from geokr_core.registry import champion
    from geokr_core.step.reporter import ConsoleReporter

    champion.rollback(model, because, to, ConsoleReporter())
