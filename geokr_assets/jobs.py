"""Jobs: what is started together.

``whole_chain``
    One click for a newcomer: everything from raw data to champion, in one run. Dagster gives a run one partition or
    none, so a job of assets cannot cut all scenes *and* freeze the data set. This job therefore consists of ops, one a
    step, which call the same functions as the assets and report the same materialisations (one a scene, where a step
    runs scene by scene) and checks. A blocking check that fails ends the run.
``chips_and_proportions``
    Chips and proportions, scene by scene. Its page offers the backfill over all scenes, or over those that are missing.
    A run takes up to ``$GEOKR_SCENES_PER_RUN`` scenes one after another, and one bad scene spoils nothing. Afterwards
    materialise ``levir_kr`` and onwards.
``take_inventory``
    The asset ``scenes``, as the sensor starts it.
``reevaluate``
    Evaluation, report and promotion, as the schedule starts them.
``pretrain_again``
    Training and all that follows it, as the schedule `monthly_pretraining` starts it.
``approve_pretraining``
    Does nothing: its run is a person's word that the schedule may train once.
"""

from collections.abc import Iterator

import dagster as dg

from geokr_assets import checks
from geokr_assets.forms import form_of, overrides_of
from geokr_assets.materialise import event_of, handling_of, record_if_complete, reported, take, take_scene
from geokr_assets.partitions import PARTITIONED
from geokr_assets.resources import ParamsFile, StepConfig
from geokr_core.chain.params import Params
from geokr_core.chain.steps import Step, steps_of, upstream_of

chips_and_proportions = dg.define_asset_job(
    "chips_and_proportions",
    selection=dg.AssetSelection.assets(*PARTITIONED),
    description="Cut one scene into chips and count the land cover under each. Backfill it for many scenes at once.",
)

take_inventory_again = dg.define_asset_job(
    "take_inventory",
    selection=dg.AssetSelection.assets("scenes"),
    description="Look at every raw scene again; each usable one becomes a partition. Started by the sensor `scene_folder`.",
)

reevaluate = dg.define_asset_job(
    "reevaluate",
    selection=dg.AssetSelection.assets("evaluation", "report", "champion"),
    description="Judge the backbone again, write the report, and let the better one of challenger and champion win.",
)

pretrain_again = dg.define_asset_job(
    "pretrain_again",
    selection=dg.AssetSelection.assets("pretraining", "backbone", "evaluation", "report", "champion"),
    description="Train on Levir-KR as it is now, bundle, judge, report, and let the better one win. Hours of computing.",
)


@dg.op(description="Note that the next monthly training may run.")
def approve(context: dg.OpExecutionContext) -> None:
    """Note who approved: the run itself is the approval."""
    context.log.info("The schedule `monthly_pretraining` may train once, at its next tick.")


@dg.job(
    name="approve_pretraining",
    description="Launch this to let the schedule `monthly_pretraining` train once. Look at the checks of `levir_kr` first.",
)
def approve_pretraining() -> None:
    """The gate: a run of this job is a person's word."""
    approve()


def build_whole_chain(params: Params) -> dg.JobDefinition:
    """The job ``whole_chain`` for a parameter file."""
    steps = steps_of(params)
    ops = {step.name: _op(params, step) for step in steps}

    @dg.job(
        name="whole_chain",
        description="Everything, from raw data to champion, in one run. Steps that are up to date are skipped.",
    )
    def whole_chain() -> None:
        # A step of the chain follows all others it reads from; nothing but the order passes between the ops.
        done: dict[str, object] = {}
        for step in steps:
            inputs = {name: done[name] for name in upstream_of(params, step)}
            done[step.name] = ops[step.name](**inputs)

    return whole_chain


def _op(params: Params, step: Step) -> dg.OpDefinition:
    def _run(
        context: dg.OpExecutionContext, config: StepConfig, params_file: ParamsFile, pipes: dg.PipesSubprocessClient
    ) -> Iterator[dg.AssetMaterialization]:
        file = params_file.laid_over(overrides_of(step.name, config))
        for event in _materialise(context, file, pipes, step.name, config.force):
            # Yielded and not logged: what is made is reported at once, and not lost if its check ends the run.
            yield event
            _judge(context, file.load(), step.name, event.partition or "")

    _run.__annotations__["config"] = form_of(step.name)  # Dagster makes the Launchpad's form from it
    return dg.op(
        name=f"run_{step.name}",
        description=step.purpose,
        ins={name: dg.In(dg.Nothing) for name in upstream_of(params, step)},
        out=dg.Out(dg.Nothing),
        pool=handling_of(step.name).pool,
    )(_run)


def _materialise(
    context: dg.OpExecutionContext, params_file: ParamsFile, pipes: dg.PipesSubprocessClient, step: str, force: bool
) -> Iterator[dg.AssetMaterialization]:
    if step not in PARTITIONED:
        yield reported(step, take(context, params_file, pipes, step, force=force))
        return
    usable = params_file.usable_scenes()
    for scene_id in usable:
        yield event_of(take_scene(context, params_file, step, scene_id, usable), scene_id)
    record_if_complete(context, params_file, step)


def _judge(context: dg.OpExecutionContext, params: Params, step: str, scene_id: str) -> None:
    for evaluation in checks.evaluations_of(step, params, scene_id):
        event = dg.DagsterEvent(
            event_type_value=dg.DagsterEventType.ASSET_CHECK_EVALUATION.value,
            job_name=context.job_name,
            step_key=context.op_handle.name,
            event_specific_data=evaluation,
        )
        # `log_event` takes no checks, and without a run a check of a partition can be reported only once.
        context.instance.report_dagster_event(event, run_id=context.run.run_id)
        if evaluation.passed:
            continue
        where = f"{evaluation.check_name} of {step}{f' ({scene_id})' if scene_id else ''}"
        if evaluation.blocking:
            raise dg.Failure(description=f"Check {where} failed: {evaluation.description}", allow_retries=False)
        context.log.warning(f"Check {where}: {evaluation.description}")
