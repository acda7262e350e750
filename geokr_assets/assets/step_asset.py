"""What all assets share: one asset is one step of the chain, with its name, its inputs and its code version."""

import warnings
from collections.abc import Callable
from typing import Any

import dagster as dg

from geokr_assets import checks
from geokr_assets.automation import condition_of, freshness_of
from geokr_assets.forms import form_of, overrides_of
from geokr_assets.materialise import Materialised, handling_of, take
from geokr_assets.partitions import PARTITIONED, SCENES
from geokr_assets.resources import ParamsFile, StepConfig
from geokr_core import __version__
from geokr_core.chain.params import Params
from geokr_core.chain.steps import STEPS, Folders, source_folder, upstream_of
from geokr_core.step.explain import section_of

OWNERS = ["team:geokr"]

Body = Callable[..., Materialised]
"""The function of an asset: takes a context and resources, returns what Dagster shall know."""

RAW = {"scenes": "raw_scenes", "land_cover": "raw_land_cover", "evaluation": "labelled_sets"}
"""Asset keys of raw data by the section of the parameter file that points at them, where they are not generated."""


def given_sources(params: Params, step: str) -> list[str]:
    """Sources of ``step`` (sections of the parameter file) that lie outside the generated world."""
    sources = STEPS[step].sources if STEPS[step].is_wanted(params) else ()
    if params.world is None:
        return list(sources)
    return [name for name in sources if not source_folder(params, name).is_relative_to(params.world.folder)]


def deps_of(params: Params, step: str) -> list[dg.AssetDep]:
    """Dagster dependencies of a step: exactly those of the chain, and the raw data that it reads.

    A step for the whole archive depends on every scene of a partitioned one.
    """
    # Raw data have no step behind them; without a box of their own the graph would begin in the air.
    names = [*upstream_of(params, STEPS[step]), *(RAW[name] for name in given_sources(params, step))]
    return [
        dg.AssetDep(name, partition_mapping=dg.AllPartitionMapping())
        if name in PARTITIONED and step not in PARTITIONED
        else dg.AssetDep(name)
        for name in names
    ]


def declare(
    params: Params, step: str, *, group: str, kinds: set[str], description: str
) -> Callable[[Body], dg.AssetsDefinition]:
    """Decorator that makes the asset of a step out of the function that runs it.

    Args:
        params: the parameter file.
        step: name of the step and key of the asset.
        group: group in the browser.
        kinds: at most three.
        description: Markdown; what a person needs who meets this asset for the first time.
    """
    return dg.asset(
        name=step,
        deps=deps_of(params, step),
        group_name=group,
        kinds=kinds,
        owners=OWNERS,
        tags=_tags(step),
        description=_described(step, description),
        metadata=_metadata(params, step),
        code_version=_code_version(step),
        freshness_policy=freshness_of(step),
        automation_condition=condition_of(step),
        pool=handling_of(step).pool,
        check_specs=checks.specs_of(step, params),
    )


def step_asset(params: Params, step: str, *, group: str, kinds: set[str], description: str) -> dg.AssetsDefinition:
    """The asset of a step that runs once for the whole archive; arguments as for `declare`."""

    def asset(
        context: dg.AssetExecutionContext, config: StepConfig, params_file: ParamsFile, pipes: dg.PipesSubprocessClient
    ) -> Materialised:
        return take(context, params_file.laid_over(overrides_of(step, config)), pipes, step, force=config.force)

    asset.__annotations__["config"] = form_of(step)  # Dagster makes the Launchpad's form from it
    return declare(params, step, group=group, kinds=kinds, description=description)(asset)


def scene_spec(params: Params, step: str, *, group: str, kinds: set[str], description: str) -> dg.AssetSpec:
    """The asset of a step that runs scene by scene; arguments as for `declare`.

    Dagster must not report it by itself (``skippable``): the op reports each scene when it is done.
    """
    return dg.AssetSpec(
        step,
        deps=deps_of(params, step),
        group_name=group,
        kinds=kinds,
        owners=OWNERS,
        tags=_tags(step),
        description=_described(step, description),
        metadata=_metadata(params, step),
        code_version=_code_version(step),
        partitions_def=SCENES,
        skippable=True,
    )


def _described(step: str, description: str) -> str:
    definition = STEPS[step]
    return f"{definition.purpose}\n\n{description.strip()}\n\nCommand line: `geokr {definition.command}`"


def _tags(step: str) -> dict[str, str]:
    """Tags to search and filter by."""
    return {"command": STEPS[step].command, "pool": handling_of(step).pool or "none"}


def _code_version(step: str) -> str:
    """The package's version and, by section, the versions of code that are raised when a step gives another output."""
    sections = [section_of(Params, name) for name in STEPS[step].sections]
    return "-".join([__version__, *(str(getattr(section, "code_version", 1)) for section in sections)])


def _metadata(params: Params, step: str) -> dict[str, Any]:
    """Where its output lies, and the function that makes it."""
    run = STEPS[step].run
    code = getattr(run, "__code__", None)
    found: dict[str, Any] = {"output": dg.MetadataValue.path(str(Folders(params)[step]))}
    if code is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", dg.BetaWarning)  # in Dagster 1.13
            place = dg.LocalFileCodeReference(
                file_path=code.co_filename, line_number=code.co_firstlineno, label=f"geokr {STEPS[step].command}"
            )
            found["dagster/code_references"] = dg.CodeReferencesMetadataValue(code_references=[place])
    return found
