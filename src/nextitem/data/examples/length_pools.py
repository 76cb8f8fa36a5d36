"""Batches of examples of similar length: examples are shuffled, then sorted by length within pools of some batches.

Little work is wasted on padding, and an example is still combined with different ones in every epoch.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

POOL_BATCHES = 50  # number of batches whose examples are sorted by length together


def order_by_length(
    lengths: NDArray[np.int64], batch_size: int, rng: np.random.Generator, *, count: int | None = None
) -> NDArray[np.int64]:
    """Return the indices of `count` examples (None: all), shuffled and then sorted by length within each pool.

    A pool consists of the next POOL_BATCHES * batch_size of the shuffled examples.
    """
    shuffled = rng.permutation(len(lengths))[:count]
    pool = np.arange(len(shuffled)) // (POOL_BATCHES * batch_size)
    order: NDArray[np.int64] = shuffled[np.lexsort((lengths[shuffled], pool))]
    return order


def batches_by_length(
    lengths: NDArray[np.int64], batch_size: int, *, epoch: int, seed: int, start: int = 0, count: int | None = None
) -> Iterator[NDArray[np.int64]]:
    """Yield the indices of the examples in each of the batches `start`, `start + 1`, ... of an epoch, [B].

    Args:
        lengths: length of each example.
        batch_size: number of examples in a batch.
        epoch: number of the epoch; with `seed` it determines the order.
        seed: seed of the order.
        start: number of the first batch.
        count: number of examples in an epoch, sampled without replacement; None: all.

    """
    rng = np.random.default_rng([seed, epoch])
    order = order_by_length(lengths, batch_size, rng, count=count)
    for number in rng.permutation(-(-len(order) // batch_size))[start:]:
        yield order[number * batch_size : (number + 1) * batch_size]


def even_batches(
    lengths: NDArray[np.int64], batch_size: int, *, epoch: int, seed: int, start: int = 0
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield the numbers `start`, `start + 1`, ... of an epoch's batches, and the indices of the examples in each.

    All batches have about the same sum of lengths, so that every event has the same weight in training; `batch_size` is
    the mean number of examples. Within a batch, lengths are similar. The other arguments are those of
    `batches_by_length`.
    """
    rng = np.random.default_rng([seed, epoch])
    order = order_by_length(lengths, batch_size, rng)
    size = POOL_BATCHES * batch_size
    begins = []
    for first in range(0, len(order), size):
        pool = lengths[order[first : first + size]]
        begins.append(first + _even_cuts(pool, -(-len(pool) // batch_size)))
    bounds = np.concatenate([*begins, [len(order)]])
    batch_order = rng.permutation(len(bounds) - 1)
    for number in range(start, len(batch_order)):
        yield number, order[bounds[batch_order[number]] : bounds[batch_order[number] + 1]]


def batch_seed(seed: int, epoch: int, number: int) -> int:
    """Return the seed of the random samples of a batch, below 2 ** 63."""
    return int(np.random.SeedSequence([seed, epoch, number]).generate_state(1, np.uint64)[0] >> 1)


def _even_cuts(lengths: NDArray[np.int64], parts: int) -> NDArray[np.int64]:
    """Return the index at which each of `parts` parts of the examples begins, [parts].

    All parts have about the same sum of lengths, and none is empty.
    """
    total = lengths.sum()
    cuts = np.searchsorted(lengths.cumsum() - lengths / 2, total * np.arange(parts) / parts)
    ranks = np.arange(parts)
    cuts = np.maximum.accumulate(cuts - ranks) + ranks
    bounded_cuts: NDArray[np.int64] = np.minimum(cuts, len(lengths) - parts + ranks)
    return bounded_cuts
