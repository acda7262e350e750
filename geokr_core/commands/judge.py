"""Commands after an audit: ``audit-sample`` draws chips for people to judge, ``audit-estimate`` says how accurate the map is."""

from pathlib import Path
from typing import Annotated

import typer

from geokr_core.commands.options import USE, AsJson, Overrides, ParamsFile, add
from geokr_core.commands.output import link, show_rows


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    add(
        app,
        draw,
        USE,
        name="audit-sample",
        reads="<store>/map_audit, <store>/chips, <store>/proportions",
        section="map_audit",
        writes="the sample, and the page to judge it on",
        example="geokr audit-sample sample.parquet --page judge.html --per-class 50",
    )
    add(
        app,
        estimate,
        USE,
        name="audit-estimate",
        reads="a sample and its judgements, as the page saves them",
        writes="nothing",
        example="geokr audit-estimate sample.parquet judgements.parquet",
    )


def draw(
    sample: Annotated[Path, typer.Argument(help="GeoParquet file that gets the sample.")],
    page: Annotated[Path, typer.Option("--page", help="HTML file to judge the sample on, without a server.")],
    params: ParamsFile = None,
    overrides: Overrides = None,
    per_class: Annotated[int, typer.Option("--per-class", "-n", help="Chips of each class of the map.")] = 50,
    seed: Annotated[int, typer.Option("--seed", help="Another seed draws other chips.")] = 0,
) -> None:
    """Draw a stratified random sample of the audited chips, and write the page to judge it on. Also: `geokr audit sample`."""
    from geokr_core.audit.judging_page import write_judging_page
    from geokr_core.audit.sample import draw_sample, write_sample
    from geokr_core.chain.params import load_params
    from geokr_core.chain.steps import Folders
    from geokr_core.scenes.scene_outputs import LEGEND_FILE
    from geokr_core.step.files import read_json

    folders = Folders(load_params(params, overrides or ()))
    drawn = draw_sample(folders["map_audit"], per_class, seed)
    colours = tuple(str(colour) for colour in read_json(folders["proportions"] / LEGEND_FILE)["colours"])
    write_sample(drawn, sample)
    write_judging_page(drawn, folders["chips"], colours, page)
    typer.echo(f"{len(drawn.chips)} chips → {sample}; judge them on {link(page)}", err=True)


def estimate(
    sample: Annotated[Path, typer.Argument(help="The sample that was judged.")],
    judgements: Annotated[Path, typer.Argument(help="GeoParquet file that was saved from the page.")],
    against: Annotated[
        Path | None,
        typer.Option("--against", help="Folder of proportions of the same chips by another map: which one is better?"),
    ] = None,
    confidence: Annotated[float, typer.Option("--confidence", help="Of the intervals.", min=0.5, max=0.999)] = 0.95,
    as_json: AsJson = False,
) -> None:
    """Estimate the map's accuracy by class from a judged sample, with intervals. Also: `geokr audit estimate`."""
    from geokr_core.audit import estimate as estimating
    from geokr_core.audit.sample import read_sample

    drawn = read_sample(sample)
    labels = estimating.read_judgements(judgements, drawn)
    rows = estimating.as_rows(drawn, estimating.estimate(drawn, labels, confidence))
    if against is not None:
        rows += estimating.comparison_rows(estimating.compare(drawn, labels, against, confidence))
    show_rows(rows, ("of", "measure", "estimate", "low", "high", "standard_error"), as_json=as_json)
    unsure = int((labels == estimating.UNSURE).sum())
    typer.echo(
        f"{len(labels)} chips judged, {unsure} of them without a class (cannot tell); these are left out.", err=True
    )
