"""Exploration: lists that are sampled from the best items of a model, with the exact probability of each choice.

The head of a model's list has n items. The item of rank r (from 1) has the weight r**(-1 / temperature), and a list is
sampled slot by slot without replacement in proportion to the weights (the Plackett-Luce model). Sampling adds Gumbel
noise to the log weights and sorts, which is the same. At temperature 1 the second item is half as likely as the first;
towards 0 the list is the head itself; towards infinity every order is equally likely.

Weights depend on ranks, not on scores, as scores of different models have different scales: inner products,
log-probabilities, counts of neighbours; and a re-ranked list is not in the order of its scores at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from nextitem.pipeline.recommend import RecommendationList

MIN_TEMPERATURE = 1e-6  # below it weights are not finite, and the list is the head itself all the same
MIN_HEAD = 100  # items that a list is sampled from, if it has at most a quarter of this


def head_size(k: int) -> int:
    """Return the number of best items from which a list of k is sampled."""
    return max(4 * k, MIN_HEAD)


def sampled_list(
    head: RecommendationList, *, k: int, temperature: float, seed: str
) -> tuple[RecommendationList, list[float]]:
    """Return a list of at most k items that is sampled from the head, and the propensity of each slot.

    Args:
        head: the best items of the model.
        k: number of items.
        temperature: how much is left to chance, above 0.
        seed: text that determines the list: the same head and seed have the same list.

    """
    generator = np.random.default_rng(int.from_bytes(hashlib.sha256(seed.encode()).digest(), "big"))
    logits = log_weights(len(head), temperature)
    # random() is in [0, 1); 1 - random() is in (0, 1], and -log(-log) of it is Gumbel noise
    noise = -np.log(np.maximum(-np.log1p(-generator.random(len(head))), np.finfo(float).tiny))
    order = np.argsort(-(logits + noise), kind="stable")[:k]
    return _selected(head, order.tolist()), propensities(order, head_size=len(head), temperature=temperature).tolist()


def propensities(
    order: Sequence[int] | NDArray[np.int64], *, head_size: int, temperature: float
) -> NDArray[np.float64]:
    """Return the probability with which each item is chosen for its slot given the items of the slots above.

    Their product is the probability of the whole list.

    Args:
        order: places (from 0) of the items in the head, [K], all different.
        head_size: number of items of the head (n).
        temperature: as in `sampled_list`.

    Returns:
        Probabilities, [K].

    """
    logits, places = log_weights(head_size, temperature), np.asarray(order, dtype=np.int64)
    is_left = np.ones(head_size, dtype=np.bool_)
    is_left[places] = False
    # Weights that are left before each slot: those of no slot, and those of this slot and the slots below. Adding them
    # from the last slot on loses no digit, as subtracting from the sum of all would.
    of_no_slot = np.logaddexp.reduce(logits[is_left]) if is_left.any() else -np.inf
    sums = np.logaddexp.accumulate(np.concatenate([[of_no_slot], logits[places][::-1]]))
    result: NDArray[np.float64] = np.exp(logits[places] - sums[1:][::-1])
    return result


def log_weights(size: int, temperature: float) -> NDArray[np.float64]:
    """Return the logarithms of the weights of the ranks 1 to `size`."""
    weights: NDArray[np.float64] = -np.log(np.arange(1, size + 1)) / max(temperature, MIN_TEMPERATURE)
    return weights


def _selected(head: RecommendationList, places: Sequence[int]) -> RecommendationList:
    """Return a list of the items at some places of the head, in this order."""
    return replace(
        head,
        item_ids=[head.item_ids[place] for place in places],
        scores=[head.scores[place] for place in places],
        titles=[head.titles[place] for place in places],
        channels=tuple(head.channels[place] for place in places) if head.channels else (),
    )
