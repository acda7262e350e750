"""The head on cells: what is noise in single cells must not become ground of a class that the window does not show."""

import numpy as np
import pytest

from geokr_core.embeddings.regression import Linear, as_shares
from geokr_core.land_cover_shares.head import Head

CLASSES = 6


def noisy_windows(number: int = 20) -> tuple[Head, np.ndarray, np.ndarray]:
    """A head that gives a vector's own parts, windows of 8 x 8 cells with noise as large as any share, and the shares that they are of."""
    rng = np.random.default_rng(0)
    true = rng.dirichlet(np.full(CLASSES, 0.2), number)
    noise = rng.normal(0, 0.3, (number, 8, 8, CLASSES))
    noise -= noise.mean(axis=(1, 2), keepdims=True)
    vectors = (true[:, None, None] + noise).astype(np.float32)
    linear = Linear(np.eye(CLASSES, dtype=np.float32), np.zeros(CLASSES, dtype=np.float32))
    return Head(linear, np.zeros(CLASSES), {}), vectors, true


def test_the_cells_of_a_window_give_the_window() -> None:
    head, vectors, true = noisy_windows()
    cells = head.cell_shares(vectors)
    assert cells.shape == vectors.shape
    assert cells.dtype == np.float32
    assert (cells >= 0).all()
    assert cells.sum(axis=-1) == pytest.approx(np.ones(vectors.shape[:3]), abs=1e-5)
    given = cells.mean(axis=(1, 2))
    assert np.abs(given - true).sum(axis=1).max() < 0.005
    cut_off = as_shares(head.linear(vectors)).mean(axis=(1, 2))
    assert np.abs(cut_off - true).sum(axis=1).mean() > 0.3, "what cutting off cell by cell would give"


def test_cells_differ_the_way_their_vectors_do() -> None:
    head, vectors, _ = noisy_windows(1)
    vectors[0, :, :4, 0] += 1.0
    vectors[0, :, 4:, 1] += 1.0
    cells = head.cell_shares(vectors)[0]
    assert cells[:, :4, 0].mean() > cells[:, 4:, 0].mean() + 0.1
    assert cells[:, 4:, 1].mean() > cells[:, :4, 1].mean() + 0.1
