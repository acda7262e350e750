"""One look for all charts: colours, sizes, legends and how they are encoded."""

import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

import matplotlib as mpl
from matplotlib.figure import Figure

INITIALISATION_COLOURS: Final[Mapping[str, str]] = {
    "geokr": "#0b6e4f",
    "shuffled": "#8e3b7a",
    "random": "#7a7f87",
    "imagenet": "#0072b2",
    "colour_histogram": "#e69f00",
}
"""They differ for colour-blind readers too, which a test computes; so do `_KNOWN_MARKERS`."""
_KNOWN_MARKERS: Final[Mapping[str, str]] = {
    "geokr": "o",
    "shuffled": "s",
    "random": "^",
    "imagenet": "D",
    "colour_histogram": "v",
}
INITIALISATION_NAMES: Final[Mapping[str, str]] = {
    "geokr": "GeoKR",
    "shuffled": "shuffled land cover",
    "random": "random weights",
    "imagenet": "ImageNet weights",
    "colour_histogram": "colour histogram",
}

_OTHER_COLOURS: Final = ("#cc6677", "#332288", "#44aa99", "#999933", "#882255", "#88ccee")
"""Those of Paul Tol's "muted" scheme (SRON/EPS/TN/09-002), safe for the colour-blind, that are none of the five above."""
LineStyle = Literal["solid", "dashed", "dotted", "dashdot"]
"""How matplotlib draws a line."""

_SHAPES: Final[Mapping[str, tuple[str, LineStyle]]] = {
    "o": ("●", "solid"),
    "s": ("■", "dashed"),
    "^": ("▲", "dotted"),
    "D": ("◆", "dashdot"),
    "v": ("▼", "dashed"),
}
"""Once the colours repeat: marker in a chart, the same in a text, and how its lines are drawn."""

WIDTH_INCHES: Final = 7.2

_LEGEND_ROW_INCHES: Final = 0.19
_PNG_DPI: Final = 110

Format = Literal["png", "svg"]


@dataclass(frozen=True)
class Style:
    """How an initialisation is named and distinguished, alike in every chart and table of a page.

    Attributes:
        label: its name in words.
        colour: as ``#rrggbb``.
        marker: matplotlib's.
    """

    label: str
    colour: str
    marker: str = "o"

    @property
    def shape(self) -> str:
        """The marker as a character."""
        return _SHAPES[self.marker][0]

    @property
    def line(self) -> LineStyle:
        """Matplotlib's line style."""
        return _SHAPES[self.marker][1]


def initialisation_styles(names: Iterable[str]) -> dict[str, Style]:
    """Order, names and looks of initialisations.

    Args:
        names: initialisations or variants of pretraining, repeated or not.

    Returns:
        A style by name: `geokr` first, then the other variants in order of appearance, then the controls and starts
        that are well known, these always with the same colour.
    """
    given = dict.fromkeys(names)
    others = [name for name in given if name not in INITIALISATION_NAMES]
    styles = {
        name: Style(INITIALISATION_NAMES[name], INITIALISATION_COLOURS[name], _KNOWN_MARKERS[name])
        for name in INITIALISATION_COLOURS
        if name in given
    }
    markers = list(_SHAPES)
    for index, name in enumerate(others):
        turn, colour = divmod(index, len(_OTHER_COLOURS))
        # Two starts side by side are named by both.
        words = " + ".join(INITIALISATION_NAMES.get(part, part.replace("_", " ")) for part in name.split("+"))
        styles[name] = Style(words, _OTHER_COLOURS[colour], markers[turn % len(markers)])
    known = [name for name in INITIALISATION_COLOURS if name != "geokr"]
    return {name: styles[name] for name in ("geokr", *others, *known) if name in styles}


@contextmanager
def chart_style() -> Iterator[None]:
    """Matplotlib settings of all charts, for the time of the block."""
    with mpl.rc_context(
        {
            "svg.hashsalt": "geokr",  # element ids that do not change from run to run
            "svg.fonttype": "path",
            "font.size": 9.0,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": "#9aa1a9",
            "axes.titlesize": 10.0,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#e6e8eb",
            "grid.linewidth": 0.8,
            "legend.frameon": False,
            "text.parse_math": False,  # names of sets may hold a dollar sign
        }
    ):
        yield


def legend_handle(style: Style, **looks: Any) -> Any:
    """The entry of a style in a legend."""
    return mpl.lines.Line2D([], [], label=style.label, color=style.colour, marker=style.marker, **looks)


def chart_legend(figure: Figure, handles: Sequence[Any]) -> None:
    """A legend above the panels, in as many columns as their longest name allows; the figure grows by its rows."""
    longest = max(len(handle.get_label()) for handle in handles)
    columns = max(1, min(len(handles), int(WIDTH_INCHES / (0.45 + 0.07 * longest))))
    figure.set_figheight(figure.get_figheight() + _LEGEND_ROW_INCHES * math.ceil(len(handles) / columns))
    figure.legend(handles=handles, loc="outside upper center", ncols=columns)


def encode_chart(figure: Figure, form: Format) -> bytes:
    """The picture without date or program name inside."""
    buffer = io.BytesIO()
    metadata = {"Software": None} if form == "png" else dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format=form, dpi=_PNG_DPI, metadata=metadata)
    return buffer.getvalue()
