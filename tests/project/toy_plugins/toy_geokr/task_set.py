"""The set behind the kind of task. It imports torch, so it is imported only when a set is opened."""

from collections.abc import Mapping, Sequence

import torch

from geokr_core.evaluation.cells import RGB, Cell, Measurement, Score, Start
from geokr_core.networks.network import build


class ToyTask:
    """Scores a network on images of plain colours."""

    budget: Mapping[str, object] = {}
    notes: Sequence[str] = ()
    bands = RGB
    data_version = "0" * 32

    def __init__(self, task, evaluation) -> None:
        """Open the set."""
        self.name = task.name

    def settings(self, cell: Cell) -> Mapping[str, object]:
        """Nothing but the data and the start."""
        return {}

    def require(self, cell: Cell) -> None:
        """Every cell can be measured."""

    def measure(self, cell: Cell, start: Start) -> Measurement:
        """The share of features that differ between black and white."""
        torch.manual_seed(start.seed)
        network = build(start.architecture, 3).eval()
        with torch.inference_mode():
            black, white = network(torch.stack([torch.zeros(3, 64, 64), torch.ones(3, 64, 64)]))
        spread = float((black != white).float().mean())
        return Measurement((Score("spread", spread, 0.0, 1.0),), 2, 1.0, ("black", "white"), ())
