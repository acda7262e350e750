"""The operator's page as text: a line a matter."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from geokr_core.chain.status import StepStatus
    from geokr_core.operation.overview import Champion, LastRun, Overview

_WIDTH: Final = 12
_NAMED_FOLDERS: Final = 4


def lines_of(found: "Overview") -> Iterator[str]:
    """The page, a line at a time."""
    for name, text in _entries(found):
        first, *rest = text.splitlines() or [""]
        yield f"{name:<{_WIDTH}}{first}"
        yield from (f"{'':<{_WIDTH}}{line}" for line in rest)


def _entries(found: "Overview") -> Iterator[tuple[str, str]]:
    yield "Next run", _next_run(found.steps)
    yield "Scenes", _scenes(found)
    yield (
        "Data set",
        "none yet" if found.data_version is None else f"{found.data_version}, {found.last['levir_kr'].ended}",
    )
    yield "Training", _training(found.last.get("pretraining"))
    yield "Evaluation", found.last["evaluation"].ended if "evaluation" in found.last else "none yet"
    yield "Champion", _champion(found.champion)
    yield "MLflow", f"{found.waiting_for_mlflow} run(s) wait to be handed over"
    yield "Disk", _disk(found)
    if found.disk.held:
        yield "At work", "\n".join(f"process {process} holds {path}" for path, process in found.disk.held.items())
    yield "Stuck", "\n".join(found.stuck) or "nothing"


def _next_run(steps: "Sequence[StepStatus]") -> str:
    """What is to do, how much of the rest hangs on it, and what cannot go on."""
    named = {state: [one.step for one in steps if one.state == state] for state in ("to do", "follows", "blocked")}
    if not any(named.values()):
        return "nothing to do"
    told = [f"to do: {', '.join(named['to do'])}"] if named["to do"] else []
    if named["follows"]:
        told.append(
            f"{len(named['follows'])} step(s) only follow, and stay as they are if what they read comes out as it was"
        )
    if named["blocked"]:
        told.append(f"blocked: {', '.join(named['blocked'])}")
    return "\n".join(told)


def _scenes(found: "Overview") -> str:
    scenes = found.scenes
    if scenes is None:
        return "no inventory yet"
    refused = ", ".join(f"{step} {number}" for step, number in scenes.quarantined.items() if number) or "none"
    made = f"{scenes.seen} seen, {scenes.usable} usable, {scenes.cut} cut, {scenes.counted} counted"
    return f"{made}; quarantined: {refused}"


def _training(run: "LastRun | None") -> str:
    if run is None:
        return "none yet"
    told = [run.ended, f"{run.numbers['seconds']} s", *_speed(run.numbers)]
    return ", ".join(told) + (f"\n{run.mlflow_url}" if run.mlflow_url else "")


def _speed(numbers: Mapping[str, Any]) -> Iterator[str]:
    if "mean_images_per_s" in numbers:
        yield f"{numbers['mean_images_per_s']} images/s, {numbers['mean_data_wait_fraction']:.1%} of the time waiting for data"


def _champion(champion: "Champion | None") -> str:
    if champion is None:
        return "none yet"
    version = "no champion" if champion.version is None else f"version {champion.version}"
    lines = [f"{champion.model_name} {version}", champion.reason]
    lines += [f"{name}: {score:.4f}" for name, score in champion.scores.items()]
    if champion.evidence:
        lines.append(f"evidence: {champion.evidence}")
    return "\n".join(lines)


def _disk(found: "Overview") -> str:
    largest = sorted(found.disk.by_folder.items(), key=lambda item: -item[1])[:_NAMED_FOLDERS]
    named = ", ".join(f"{name} {_size(size)}" for name, size in largest)
    return f"{_size(found.disk.num_bytes)} in the store{f' ({named})' if named else ''}, {_size(found.free_bytes)} free"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"
