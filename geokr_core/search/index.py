"""Exact search: every vector is compared with the query, by one product of a matrix and a vector.

For a million chips of 64 dimensions that takes a sixtieth of a second a core; an index library earns its place from
about five million chips on (faiss-cpu; see ``docs/search.md``).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from geokr_core.embeddings.read import Embeddings
from geokr_core.errors import EmbeddingsError


@dataclass(frozen=True)
class Index:
    """Vectors ready to be compared: standardised over the archive, then of length 1.

    Attributes:
        centre: float32 (D,), subtracted from vectors.
        scale: float32 (D,), vectors are divided by it.
        directions: float32 (N, D), of length 1.
    """

    centre: np.ndarray
    scale: np.ndarray
    directions: np.ndarray

    def direction(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors as the index compares them: float32 (B, D) of length 1."""
        standardised = (vectors - self.centre) / self.scale
        lengths = np.linalg.norm(standardised, axis=1, keepdims=True)
        directions: np.ndarray = (standardised / np.maximum(lengths, 1e-12)).astype(np.float32)
        return directions

    def similarity(self, examples: np.ndarray) -> np.ndarray:
        """Cosine of each chip to the mean direction of examples.

        Args:
            examples: float32 (B, D), vectors as the network gave them.

        Returns:
            float32 (N,), -1 to 1.

        Raises:
            EmbeddingsError: the vectors have another length than those of the archive.
        """
        if examples.shape[1] != self.directions.shape[1]:
            raise EmbeddingsError(
                f"The example has {examples.shape[1]} dimensions, the archive's vectors {self.directions.shape[1]}: "
                "embed both with one network and the same `features`."
            )
        mean = self.direction(examples).mean(axis=0)
        similarity: np.ndarray = self.directions @ (mean / max(float(np.linalg.norm(mean)), 1e-12)).astype(np.float32)
        return similarity


def build_index(found: Embeddings) -> Index:
    """Make the vectors of an archive comparable; dimensions that are the same everywhere count for nothing."""
    centre = found.vectors.mean(axis=0, dtype=np.float64)
    scale = found.vectors.std(axis=0, dtype=np.float64)
    constant = scale <= 1e-7 * np.maximum(np.abs(centre), 1e-7)
    index = Index(
        centre.astype(np.float32),
        np.where(constant, np.inf, scale).astype(np.float32),
        np.empty((0, found.vectors.shape[1]), dtype=np.float32),
    )
    return Index(index.centre, index.scale, index.direction(found.vectors))


def best(similarity: np.ndarray, allowed: np.ndarray, limit: int, without: Sequence[int] = ()) -> np.ndarray:
    """The most similar chips, the best first; equal ones in the order of the archive.

    Args:
        similarity: float (N,).
        allowed: bool (N,), chips that may be found.
        limit: how many are wanted.
        without: chips that are left out, such as the example itself.

    Returns:
        int64 (M,), at most ``limit`` positions.
    """
    usable = allowed.copy()
    usable[list(without)] = False
    candidates = np.flatnonzero(usable)
    if len(candidates) > limit:
        values = similarity[candidates]
        threshold = np.partition(values, len(values) - limit)[len(values) - limit]
        candidates = candidates[values >= threshold]
    order = np.argsort(-similarity[candidates], kind="stable")
    chosen: np.ndarray = candidates[order[:limit]]
    return chosen
