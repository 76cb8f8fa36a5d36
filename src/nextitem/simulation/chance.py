"""Chance of simulated customers: uniform numbers that are a function of seed, purpose, customer and visit.

So a customer meets the same chance whatever the others do, in whatever order customers are asked, and whoever makes the
lists. All numbers of a batch are computed at once, by the mixing function of SplitMix64 (Steele et al. 2014).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nextitem.data.shop.truth import Floats, Ints

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FACTORS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def uniform_numbers(seed: int, purpose: int, customers: Ints, visits: Ints, *, count: int) -> Floats:
    """Return numbers in [0, 1), [B, count].

    Args:
        seed: seed of the world.
        purpose: what the numbers decide; other purposes have independent numbers.
        customers: numbers of the customers, [B].
        visits: numbers of their visits, [B].
        count: amount of numbers for each visit.

    """
    with np.errstate(over="ignore"):
        state = _mixed(np.full(len(customers), seed % 2**64, np.uint64) + _STEP)
        for part in (np.full(len(customers), purpose), customers, visits):
            state = _mixed((state ^ np.asarray(part).astype(np.uint64)) + _STEP)
        places = np.arange(1, count + 1, dtype=np.uint64) * _STEP
        bits = _mixed(state[:, None] + places)
    result: Floats = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return result


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    values = (values ^ (values >> np.uint64(30))) * _FACTORS[0]
    values = (values ^ (values >> np.uint64(27))) * _FACTORS[1]
    return values ^ (values >> np.uint64(31))
