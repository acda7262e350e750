"""Fine-tuning for cells: it begins as the probe, cells turn with their chips, statistics stay, and what has no label teaches nothing."""

import numpy as np
import pytest
import torch
from torch import nn

from geokr_core.errors import EvaluationError
from geokr_core.evaluation.protocols.cell_tuning import CellBudget, CellClassifier, fine_tune_cells
from geokr_core.evaluation.protocols.fine_tuning import predict
from geokr_core.evaluation.protocols.probe import LinearClassifier
from geokr_core.networks.architectures import feature_dim
from geokr_core.networks.network import build, cell_features
from geokr_core.networks.normalisation import Normalisation
from geokr_core.networks.runtime import Runtime

RUNTIME = Runtime(torch.device("cpu"), bf16=False)
NORMALISATION = Normalisation(torch.full((3,), 0.5), torch.full((3,), 0.25))
SIZE_PX, CELLS = 64, 4


def network(name: str = "squeezenet1_1") -> nn.Module:
    torch.manual_seed(0)
    return build(name, 3).eval()


def probe(dim: int, num_classes: int = 2, seed: int | None = None) -> LinearClassifier:
    """One that knows nothing (None), or one drawn by chance."""
    rng = np.random.default_rng(seed)
    weight = np.zeros((num_classes, dim)) if seed is None else rng.normal(size=(num_classes, dim))
    centre, scale = (np.zeros(dim), np.ones(dim)) if seed is None else (rng.normal(size=dim), rng.uniform(1, 2, dim))
    return LinearClassifier(centre, scale, weight.astype(np.float32), np.zeros(num_classes, np.float32), 1.0)


def bright_and_dark(number: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Chips whose cells are dark and of class 0, or bright and of class 1, in no order: their place says nothing."""
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 2, (number, CELLS, CELLS))
    width = SIZE_PX // CELLS
    brightness = (180 * classes).repeat(width, axis=1).repeat(width, axis=2)
    images = rng.integers(0, 60, (number, SIZE_PX, SIZE_PX, 3)) + brightness[..., None]
    return images.astype(np.uint8), classes


def tuned(
    classes: np.ndarray, budget: CellBudget, start: LinearClassifier | None = None, seed: int = 0
) -> CellClassifier:
    images, _ = bright_and_dark(len(classes))
    first = start or probe(feature_dim("squeezenet1_1", "multi"))
    return fine_tune_cells(network(), first, images, classes, NORMALISATION, budget, seed, RUNTIME)


def test_before_it_learns_it_maps_as_the_probe_does() -> None:
    images, classes = bright_and_dark()
    dim = feature_dim("squeezenet1_1", "multi")
    given = probe(dim, num_classes=3, seed=1)
    model = tuned(classes, CellBudget(1, 4, 1e-12), given)
    with torch.inference_mode():
        features = cell_features(network(), NORMALISATION(torch.from_numpy(images)), CELLS).numpy()

    expected = given.predict(features.reshape(-1, dim)).reshape(len(images), CELLS, CELLS)
    assert np.array_equal(predict(model, images, NORMALISATION, RUNTIME), expected)
    assert len(np.unique(expected)) > 1


def test_cells_are_turned_as_their_chip_is() -> None:
    images, classes = bright_and_dark()
    model = tuned(classes, CellBudget(40, 12, 3e-3))
    with torch.inference_mode():
        shares = model(NORMALISATION(torch.from_numpy(images))).softmax(dim=-1).numpy()

    # Cells that stayed while chips turn would contradict each other every second time: nothing could be sure of them.
    assert np.take_along_axis(shares, classes[..., None], axis=3).mean() > 0.9


def test_backbone_and_head_learn_and_statistics_and_scales_do_not() -> None:
    images, classes = bright_and_dark()
    first, changed = network("resnet18"), network("resnet18")
    dim = feature_dim("resnet18", "multi")
    model = fine_tune_cells(changed, probe(dim), images, classes, NORMALISATION, CellBudget(2, 4, 1e-2), 0, RUNTIME)
    before, after = first.state_dict(), model.network.state_dict()
    of_batchnorm = {
        f"{name}.{key}"
        for name, layer in first.named_modules()
        if isinstance(layer, nn.BatchNorm2d)
        for key in layer.state_dict()
    }

    assert all(torch.equal(before[key], after[key]) for key in of_batchnorm)
    assert not any(torch.equal(before[key], after[key]) for key in before.keys() - of_batchnorm)
    assert model.head.weight.abs().max() > 0


def test_cells_without_a_label_teach_nothing() -> None:
    _, classes = bright_and_dark()
    some = classes.copy()
    some[1::2] = -1
    none = tuned(np.full_like(classes, -1), CellBudget(3, 12, 1e-2))
    half = tuned(some, CellBudget(3, 12, 1e-2))

    assert torch.count_nonzero(none.head.weight) == 0, "without a label there is no gradient"
    assert torch.count_nonzero(half.head.weight) > 0


def test_the_seed_decides_what_is_seen_when() -> None:
    _, classes = bright_and_dark()
    budget = CellBudget(3, 4, 1e-3)
    one, again, other = (tuned(classes, budget, seed=seed).head.weight for seed in (0, 0, 1))

    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_what_is_not_finite_is_refused() -> None:
    images, classes = bright_and_dark()
    model = tuned(classes, CellBudget(1, 4, 1e-4))
    with torch.no_grad():
        model.head.bias.fill_(torch.nan)

    with pytest.raises(EvaluationError, match=r"not finite.*fine_tune_learning_rate"):
        predict(model, images, NORMALISATION, RUNTIME)
