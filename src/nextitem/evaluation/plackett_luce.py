"""Probabilities of lists that are sampled slot by slot without replacement, in proportion to weights (Plackett-Luce).

Gumbel noise on log weights and a sort sample the same lists. So do clocks: item i rings after an exponential time of
rate w_i, and the list is the order of the rings. That is how `slot_probabilities` sums over all orders of the
items above a slot: given the time of a ring, the number of earlier rings is a sum of independent coins.

Shapes: B lists, K slots, C candidates, T times.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Step of the trapezoid rule in log time, for one slot; its error falls as exp(-pi^2 / step). The time of the k-th ring
# varies by about 1 / sqrt(k) of itself, so the step is divided by sqrt(k).
LOG_STEP = 0.25
LARGEST_HAZARD = 800.0  # rate times time after which every clock has rung
SMALLEST_HAZARD = 1e-17  # rate times time before which none has


def plackett_luce(scores: Floats, places: Ints) -> tuple[Floats, Floats]:
    """Return the probabilities with which a list is sampled without replacement, by the softmax of scores.

    Args:
        scores: scores of the candidates over the temperature, [B, C]; -inf: none.
        places: place of each slot's item among the candidates, [B, K].

    Returns:
        The probability of each item given those above, [B, K], and that of every candidate, [B, K, C].

    """
    rows, rest = np.arange(len(scores)), scores.astype(np.float64)
    distributions = np.empty((*places.shape, scores.shape[1]))
    for slot in range(places.shape[1]):
        powers = np.exp(rest - rest.max(1, keepdims=True))
        distributions[:, slot] = powers / powers.sum(1, keepdims=True)
        rest[rows, places[:, slot]] = -np.inf
    return np.take_along_axis(distributions, places[..., None], axis=2)[..., 0], distributions


def slot_probabilities(weights: Floats, num_slots: int) -> Floats:
    """Return the probability that a candidate is in a slot, over all lists, [B, K, C].

    They add up to 1 over the candidates of a slot, and to at most 1 over the slots of a candidate. If a request has
    fewer candidates with a weight than slots, the last slots are empty: all their probabilities are 0.

    Args:
        weights: weights of the candidates, at least 0, [B, C].
        num_slots: number of slots (K).

    """
    result = np.zeros((len(weights), num_slots, weights.shape[1]))
    for row, values in enumerate(np.asarray(weights, dtype=np.float64)):
        is_candidate = values > 0
        if is_candidate.any():
            result[row][:, is_candidate] = _ring_probabilities(values[is_candidate] / values.sum(), num_slots)
    return result


def _ring_probabilities(rates: Floats, num_slots: int) -> Floats:
    """Return the probability that the clock with each of the rates [C] is the first, second, ... to ring, [K, C].

    The integral over the time t of rate * exp(-rate * t) * P(k - 1 other clocks have rung) is taken in log t, where the
    trapezoid rule converges exponentially.
    """
    first, last = np.log(SMALLEST_HAZARD / rates.max()), np.log(LARGEST_HAZARD / rates.min())
    step = LOG_STEP / num_slots**0.5
    times = np.exp(np.arange(first, last + step, step))
    hazards = np.outer(rates, times)  # [C, T]
    has_rung, has_not = -np.expm1(-hazards), np.exp(-hazards)
    before = _numbers_of_rings(has_rung, has_not, num_slots)
    after = _numbers_of_rings(has_rung[::-1], has_not[::-1], num_slots)[::-1]
    density = hazards * has_not * step
    result = np.empty((num_slots, len(rates)))
    for slot in range(num_slots):
        num_others = sum(before[:, part] * after[:, slot - part] for part in range(slot + 1))
        result[slot] = (density * num_others).sum(1)
    return result


def _numbers_of_rings(has_rung: Floats, has_not: Floats, num_slots: int) -> Floats:
    """Return the probability that 0, 1, ... K - 1 of the clocks before each one have rung, [C, K, T]."""
    result = np.zeros((len(has_rung), num_slots, has_rung.shape[1]))
    result[0, 0] = 1.0
    for clock in range(1, len(has_rung)):
        former = result[clock - 1]
        result[clock] = former * has_not[clock - 1]
        result[clock, 1:] += former[:-1] * has_rung[clock - 1]
    return result
