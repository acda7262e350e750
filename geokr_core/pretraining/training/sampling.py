"""How often each training chip is seen: classes, sensors or resolutions in balance, and not too many chips of one class.

Not here: drawing an epoch by these shares (``networks.batch_order``).
"""

from typing import Final

import numpy as np
import pandas as pd

from geokr_core.pretraining.recipe import Recipe

PURE_FRACTION: Final = 0.95
"""A chip is of one class where that class covers so much of its known ground."""


def shares_of(catalogue: pd.DataFrame, proportions: np.ndarray, recipe: Recipe) -> np.ndarray | None:
    """Expected share of each training chip among those that are seen.

    With ``balance`` a group of n chips has a weight of n^(1 − ``balance_power``): at 0 chips count alike, at 1 groups do.
    Groups are the largest class of the chip, its sensor, or its ground sampling distance to the nearest power of two. Then
    chips of one class (`PURE_FRACTION`) are scaled down to ``max_pure_fraction`` of all that is seen, where they are more.

    Args:
        catalogue: training chips; columns ``sensor`` and ``gsd_m`` where they are balanced.
        proportions: float (N, K) of the same chips.
        recipe: what is balanced and capped.

    Returns:
        float64 (N,), sum 1; None where all chips count alike.
    """
    if recipe.balance == "none" and recipe.max_pure_fraction == 1:
        return None
    weights: np.ndarray = np.ones(len(proportions))
    if recipe.balance != "none":
        groups = _groups(catalogue, proportions, recipe.balance)
        _, group, counts = np.unique(groups, return_inverse=True, return_counts=True)
        weights = counts[group] ** -recipe.balance_power
    shares: np.ndarray = weights / weights.sum()
    pure = proportions.max(axis=1) >= PURE_FRACTION
    share = float(shares[pure].sum())
    # Nothing but pure chips: there is no other ground to show in their place.
    if recipe.max_pure_fraction < share < 1:
        shares[pure] *= recipe.max_pure_fraction / share
        shares[~pure] *= (1 - recipe.max_pure_fraction) / (1 - share)
    return shares


def _groups(catalogue: pd.DataFrame, proportions: np.ndarray, balance: str) -> np.ndarray:
    groups: np.ndarray
    if balance == "class":
        groups = proportions.argmax(axis=1)
    elif balance == "sensor":
        groups = catalogue["sensor"].fillna("").astype(str).to_numpy()
    else:
        groups = np.round(np.log2(catalogue["gsd_m"].to_numpy(np.float64)))
    return groups
