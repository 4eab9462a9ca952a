"""A test with a known end and planned looks, which finds a smaller difference than one that may be looked at any time.

Source: Lan and DeMets, "Discrete sequential boundaries for clinical trials", Biometrika 70 (1983); the integration is
that of Armitage, McPherson and Rowe (1969).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

LOOKS = 5
"""Planned looks, evenly up to the end."""
_NORMAL = NormalDist()
_GRID = 801
_FAR = 8.0
# A share such as 3 / 5 times five is a little less than three.
_ROUNDING = 1e-9

Spending = Callable[[float, float], float]
"""Alpha spent by a share of the information, from 0 to 1."""


def obrien_fleming(share: float, alpha: float) -> float:
    """Spends little at first: an early stop needs overwhelming evidence, and the last look is nearly a usual test."""
    return 2 * (1 - _NORMAL.cdf(_NORMAL.inv_cdf(1 - alpha / 2) / math.sqrt(share)))


def pocock(share: float, alpha: float) -> float:
    """Spends evenly: looks are equally likely to end the experiment."""
    return alpha * math.log(1 + (math.e - 1) * share)


def boundaries(shares: Sequence[float], alpha: float, spending: Spending = obrien_fleming) -> list[float]:
    """One-sided bounds of the z-statistic at each look; beyond one, the candidate is better.

    Args:
        shares: information at each look as a share of the last one's, rising, the last one 1.
        alpha: chance of finding a difference that is none, over all looks.
        spending: how it is spent.

    Raises:
        ValueError: the shares do not rise to 1.
    """
    if not shares or shares[-1] != 1 or any(b <= a for a, b in zip((0.0, *shares), shares, strict=False)):
        raise ValueError(f"shares must rise from above 0 to 1, not {list(shares)}")
    found: list[float] = []
    # Density of the score process (z times the root of the share) on a grid, for experiments that have not stopped.
    grid: NDArray[np.float64] = np.zeros(1)
    density: NDArray[np.float64] = np.ones(1)
    before, spent = 0.0, 0.0
    for share in shares:
        due = min(alpha, spending(share, alpha)) - spent
        spread = math.sqrt(share - before)

        low, high = -_FAR, _FAR
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (
                (middle, high) if _beyond(middle * math.sqrt(share), grid, density, spread) > due else (low, middle)
            )
        found.append((low + high) / 2)
        top = found[-1] * math.sqrt(share)
        step = (top + _FAR * math.sqrt(share)) / (_GRID - 1)
        following = np.linspace(top - (_GRID - 1) * step, top, _GRID)
        steps = np.exp(-(((following[:, None] - grid[None, :]) / spread) ** 2) / 2) / (spread * math.sqrt(2 * math.pi))
        weights = np.full(_GRID, step)
        weights[[0, -1]] /= 2
        density = (steps @ density) * weights
        grid, before, spent = following, share, spent + due
    return found


def due_look(looks: Sequence[float], share: float) -> float | None:
    """The share of the information at which a look is due now, at most 1; None until the next planned look.

    Args:
        looks: shares of the looks until now.
        share: of the information that is there; 1 or more at the end.
    """
    done = math.floor(LOOKS * looks[-1] + _ROUNDING) if looks else 0
    return min(share, 1.0) if math.floor(LOOKS * share + _ROUNDING) > done and done < LOOKS else None


@cache
def bound_at(looks: tuple[float, ...], alpha: float) -> float:
    """The bound of the z-statistic at the last of these looks; those after it do not matter."""
    return boundaries(looks if looks[-1] == 1 else (*looks, 1.0), alpha)[len(looks) - 1]


def _beyond(bound: float, grid: NDArray[np.float64], density: NDArray[np.float64], spread: float) -> float:
    """Probability that the score goes beyond `bound` in its next step."""
    tail = np.array([1 - _NORMAL.cdf(each) for each in (bound - grid) / spread])
    return float(np.sum(density * tail))
