"""The cards on top of the page: one a task, a bar for each start and the verdict in a few words; and what was learnt.

A card shows a task's primary comparison (``headline.primaries``). Everything else about it stands further down.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from geokr_core.evaluation.charts import task_words
from geokr_core.evaluation.output import Judged
from geokr_core.evaluation.statistics import Estimate
from geokr_core.report.headline import Primary, fine_tuned, primaries, rows_of
from geokr_core.report.tables import Styles, estimate_of, score, signed, signed_interval

Standing = Literal["ahead", "behind", "open"]

_CONTROLS: Final = ("shuffled", "random", "imagenet")
"""The starts that what was learnt is told against, the first that was evaluated: `shuffled` differs in the land cover alone."""


@dataclass(frozen=True)
class Bar:
    """One start on a card.

    Attributes:
        name: of the start.
        label: the same in words.
        colour: as everywhere on the page.
        shape: its marker.
        mean: its score.
        low: lower end of the 95 % interval, or None where it was measured once.
        high: upper end.
        text: mean and interval as they are shown.
        length: of the bar in percent of the widest.
        whisker: start and width of the interval in percent, or None.
    """

    name: str
    label: str
    colour: str
    shape: str
    mean: float
    low: float | None
    high: float | None
    text: str
    length: float
    whisker: tuple[float, float] | None


@dataclass(frozen=True)
class Card:
    """A task at a glance.

    Attributes:
        task: its name.
        title: the same in words.
        setting: protocol, features and labels in words.
        metric: the figure that decides, in words.
        standing: of GeoKR among all starts.
        verdict: the same in some six words.
        bars: a start each, in the order of the page.
        fine_tuned: what fine-tuning says where frozen features decide, in one sentence; None: nothing.
    """

    task: str
    title: str
    setting: str
    metric: str
    standing: Standing
    verdict: str
    bars: Sequence[Bar]
    fine_tuned: str | None = None


def cards(judged: Judged, styles: Styles) -> list[Card]:
    """A card a task, in the order of the page."""
    return [_card(judged, primary, styles) for primary in primaries(judged)]


def learnt(judged: Judged, styles: Styles) -> str:
    """What the evaluation shows in one sentence with one number and one interval: the first task's primary comparison."""
    primary = primaries(judged)[0]
    return _told(judged, primary, primary.words, styles)


def _told(judged: Judged, primary: Primary, words: str, styles: Styles) -> str:
    """A comparison, called `words`, in one sentence with one number and one interval."""
    table = rows_of(judged.differences, primary).set_index("contrast")
    control = next((name for name in _CONTROLS if f"geokr - {name}" in table.index), None)
    metric = judged.metrics.of(primary.task, primary.metric)
    if control is None:
        return f"{_upper(words)}: GeoKR was compared with no start that says what the land cover taught."
    row = table.loc[f"geokr - {control}"].to_dict()
    found = estimate_of(row)
    start, difference = f"{_upper(words)}: GeoKR", signed(found.mean)
    if found.n_seeds == 1:
        return f"{start} differs from {styles[control].label} by {difference} in {metric.words}, measured once: no conclusion."
    standing = _verdict_of(_turned(found, metric.sign))
    verdict = {"ahead": "is ahead of", "behind": "is behind", "open": "is not distinguishable from"}[standing]
    interval = signed_interval(found.ci_low, found.ci_high)
    return f"{start} {verdict} {styles[control].label}: {difference} {interval} in {metric.words}."


def _card(judged: Judged, primary: Primary, styles: Styles) -> Card:
    metric = judged.metrics.of(primary.task, primary.metric)
    means = {
        name: estimate_of(rows.iloc[0].to_dict())
        for name in styles
        if not (rows := rows_of(judged.summary, primary, name)).empty
    }
    table = rows_of(judged.differences, primary)
    gains = {
        str(row["contrast"]).removeprefix("geokr - "): _turned(estimate_of(row), metric.sign)
        for row in table.to_dict("records")
        if str(row["contrast"]).startswith("geokr - ")
    }
    standing, verdict = _verdict("geokr" in means, gains, styles)
    tuned = fine_tuned(judged, primary)
    return Card(
        primary.task,
        _upper(task_words(primary.task)),
        primary.setting,
        metric.words if metric.higher_is_better else f"{metric.words} (less is better)",
        standing,
        verdict,
        _bars(means, styles),
        None if tuned is None else _told(judged, tuned, tuned.setting, styles),
    )


def _bars(means: Mapping[str, Estimate], styles: Styles) -> list[Bar]:
    widest = max((_ends(one)[1] or one.mean for one in means.values()), default=1.0) or 1.0
    bars = []
    for name, one in means.items():
        low, high = _ends(one)
        shown = score(one)
        whisker = None if low is None or high is None else (100 * low / widest, 100 * (high - low) / widest)
        bars.append(
            Bar(
                name,
                styles[name].label,
                styles[name].colour,
                styles[name].shape,
                one.mean,
                low,
                high,
                f"{shown.mean} {shown.interval}".rstrip(),
                100 * max(one.mean, 0.0) / widest,
                whisker,
            )
        )
    return bars


def _ends(estimate: Estimate) -> tuple[float | None, float | None]:
    """The interval within the range of a score; nothing where there is none."""
    if math.isnan(estimate.ci_low):
        return None, None
    return max(0.0, estimate.ci_low), min(1.0, estimate.ci_high)


def _turned(estimate: Estimate, sign: int) -> Estimate:
    """A difference as a gain: positive where the first is better."""
    if sign > 0:
        return estimate
    return Estimate(-estimate.mean, -estimate.ci_high, -estimate.ci_low, estimate.n_seeds)


def _verdict_of(gain: Estimate) -> Standing:
    if gain.ci_low > 0:
        return "ahead"
    return "behind" if gain.ci_high < 0 else "open"


def _verdict(evaluated: bool, gains: Mapping[str, Estimate], styles: Styles) -> tuple[Standing, str]:
    """Where GeoKR stands among all starts, and that in some six words."""
    if not evaluated:
        return "open", "The pretrained backbone was not evaluated"
    if not gains:
        return "open", "Evaluated alone: nothing to compare with"
    if all(gain.n_seeds == 1 for gain in gains.values()):
        return "open", "Measured once, so no conclusion yet"
    standings = {name: _verdict_of(gain) for name, gain in gains.items()}
    behind = [name for name, standing in standings.items() if standing == "behind"]
    ahead = [name for name, standing in standings.items() if standing == "ahead"]
    if behind:
        worst = min(behind, key=lambda name: gains[name].mean)
        more = f" and {len(behind) - 1} more" if len(behind) > 1 else ""
        return "behind", f"GeoKR is behind {styles[worst].label}{more}"
    if not ahead:
        return "open", "No clear difference between the starts"
    if len(ahead) == len(gains):
        return "ahead", "GeoKR is ahead of every start"
    rest = [styles[name].label for name, standing in standings.items() if standing == "open"]
    return "ahead", f"Ahead, but not clearly of {rest[0]}" + (f" and {len(rest) - 1} more" if len(rest) > 1 else "")


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def as_plain(card: Card) -> dict[str, Any]:
    """A card as JSON-able values, without what only says how it is drawn."""
    bars = [{"start": bar.name, "mean": bar.mean, "ci_low": bar.low, "ci_high": bar.high} for bar in card.bars]
    return {
        "task": card.task,
        "setting": card.setting,
        "metric": card.metric,
        "standing": card.standing,
        "verdict": card.verdict,
        "starts": bars,
        "fine_tuned": card.fine_tuned,
    }
