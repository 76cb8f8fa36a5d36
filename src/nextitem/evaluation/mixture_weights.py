"""Weights of a mixture of item scorers, chosen by NDCG@k on validation requests over the full catalogue.

A mixture scores an item by sum_m w_m u_m(i), in which u_m are the terms of part m (probabilities or their logarithms).
An item is ahead of a target if sum_m w_m (u_m(i) - u_m(target)) is above 0. The sign of most of these sums does not
depend on the weights: all parts agree. If all of them place k items ahead of the target, no weights bring it into the
list. What remains, the contenders of the other targets, is about one score in a hundred. So one pass over the
catalogue is enough to rank every target exactly under any weights.

The weights are searched by coordinate ascent along lines between two parts, from several starts. NDCG is a step
function of the weights, so a grid serves as well as a gradient. Then parts that do not help beyond noise get the weight
0.

Shapes: B requests of a block, R requests in all, N items, P parts, T open targets, E contenders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from nextitem.core.batch import SequenceBatch

Terms = Sequence[Sequence[Tensor]]  # part -> option -> terms of all items [B, N + 1]; rows of which it knows nothing: 0

CHUNK_SCORES = 2**22  # scores of a part that are compared at a time: 16 MiB
STEPS = 20  # grid of a line between two parts: multiples of 1 / STEPS ...
FINE_STEPS = 100  # ... and around its best point, multiples of 1 / FINE_STEPS
MAX_ROUNDS = 3  # passes over the parts that have several options
TOLERANCE = 1e-12  # smallest increase of the mean that counts


@dataclass(frozen=True)
class TargetRanks:
    """Ranks of the targets of validation requests under any mixture of parts.

    Attributes:
        k: cutoff of NDCG.
        ideal: discounted gain of the ideal list of each request, [R] float64; NaN without targets.
        requests: request of each open target, [T]. A target is open if some mixture may list it.
        num_ahead: number of items that are ahead of the target in all parts, [T].
        popular_rank: rank of the target by popularity, which answers if no part with a weight knows the request, [T].
        is_known: whether each part knows the request, bool [T, P].
        targets: open target of each contender, [E].
        is_smaller: whether the contender's item number is smaller than the target's, which decides ties, bool [E].
        differences: part -> option -> term of the contender minus that of the target, [E].

    """

    k: int
    ideal: Tensor
    requests: Tensor
    num_ahead: Tensor
    popular_rank: Tensor
    is_known: Tensor
    targets: Tensor
    is_smaller: Tensor
    differences: tuple[tuple[Tensor, ...], ...]

    def ndcg(self, weights: Sequence[float], options: Sequence[int]) -> Tensor:
        """Return NDCG@k of each request under a mixture, [R] float64; NaN for a request without targets.

        Args:
            weights: weight of each part, P numbers of at least 0, not all 0.
            options: option of each part, P numbers.

        """
        difference = torch.zeros(len(self.targets))
        for weight, option, terms in zip(weights, options, self.differences, strict=True):
            if weight > 0:
                difference.add_(terms[option], alpha=weight)
        is_ahead = (difference > 0) | ((difference == 0) & self.is_smaller)
        rank = 1 + self.num_ahead + torch.bincount(self.targets[is_ahead], minlength=len(self.requests))
        is_answered = (self.is_known & (torch.tensor(weights, dtype=torch.float64) > 0)).any(1)
        rank = torch.where(is_answered, rank, self.popular_rank)
        gain = torch.where(rank <= self.k, 1 / torch.log2(rank.double() + 1), 0.0)
        return torch.zeros_like(self.ideal).index_add_(0, self.requests, gain) / self.ideal


def target_ranks(
    blocks: Iterable[tuple[SequenceBatch, Terms]], popularity: Tensor, *, num_parts: int, k: int = 10
) -> TargetRanks:
    """Return the ranks of all targets under any mixture.

    Args:
        blocks: requests with targets, exclusions and allow-lists, with the terms of all items in each part. The order
            of two items has to be the same under all options of a part.
        popularity: number of training events of each item, [N + 1].
        num_parts: number of parts (P).
        k: cutoff of NDCG.

    """
    parts: list[TargetRanks] = []
    num_requests = num_targets = 0
    discounts = 1 / torch.log2(torch.arange(2, k + 2, dtype=torch.float64))
    ideal_gains = torch.cat([torch.full((1,), torch.nan, dtype=torch.float64), discounts.cumsum(0)])
    for requests, terms in blocks:
        assert requests.targets is not None, "requests must have targets"
        assert len(terms) == num_parts
        ideal = ideal_gains[requests.targets.lengths.clamp(max=k).cpu()]
        for number, chunk in enumerate(_chunks(requests, terms, popularity, k=k)):
            chunk_ideal = ideal if number == 0 else ideal[:0]
            rows, targets = chunk.requests + num_requests, chunk.targets + num_targets
            parts.append(TargetRanks(**{**vars(chunk), "ideal": chunk_ideal, "requests": rows, "targets": targets}))
            num_targets += len(rows)
        num_requests += requests.num_requests
    columns = [name for name in vars(parts[0]) if name not in ("k", "differences")]
    differences = tuple(
        tuple(torch.cat(column) for column in zip(*(part.differences[number] for part in parts), strict=True))
        for number in range(num_parts)
    )
    joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in columns}
    return TargetRanks(k=k, differences=differences, **joined)


def _chunks(requests: SequenceBatch, terms: Terms, popularity: Tensor, *, k: int) -> Iterator[TargetRanks]:
    """Yield the open targets of a block, some targets at a time; `requests` are rows of the block, `ideal` is empty."""
    assert requests.targets is not None
    num_items = len(popularity) - 1
    legal = requests.legal(num_items)
    if legal is None:
        legal = torch.arange(num_items + 1, device=popularity.device)[None] > 0
    legal = legal.expand(requests.num_requests, -1)
    is_known = torch.stack([(options[0] != 0).any(1) for options in terms], 1)
    size = max(1, CHUNK_SCORES // (num_items + 1))
    targets = requests.targets
    for rows, items in zip(targets.row_ids().split(size), targets.values.split(size), strict=True):
        yield _open_targets(rows, items[:, None], legal, is_known, terms, popularity, k)


def _open_targets(
    rows: Tensor, items: Tensor, legal: Tensor, is_known: Tensor, terms: Terms, popularity: Tensor, k: int
) -> TargetRanks:
    """Return the open ones of some targets, which are in the rows `rows [T]` of a block and have the `items [T, 1]`."""
    is_smaller = torch.arange(legal.shape[1], device=items.device) < items
    legal_rows = legal[rows]
    lowest = highest = None  # of the differences between an item and the target in each part
    for options in terms:
        difference = options[0][rows]
        difference -= difference.gather(1, items)
        lowest = difference if lowest is None else torch.minimum(lowest, difference)
        highest = difference if highest is None else torch.maximum(highest, difference)
    assert lowest is not None
    assert highest is not None
    is_always_ahead = legal_rows & ((lowest > 0) | ((lowest == 0) & is_smaller))
    num_ahead = is_always_ahead.sum(1)
    popular_rank = torch.full_like(num_ahead, k + 1)
    if not bool(is_known[rows].all()):
        is_ahead_by_popularity = (popularity > popularity[items]) | ((popularity == popularity[items]) & is_smaller)
        popular_rank = 1 + (legal_rows & is_ahead_by_popularity).sum(1)
    is_open = (num_ahead < k) | ((popular_rank <= k) & ~is_known[rows].all(1))
    selected = (is_open & legal_rows.gather(1, items)[:, 0]).nonzero()[:, 0]
    can_be_ahead = (highest > 0) | ((highest == 0) & is_smaller)
    is_contender = (legal_rows & can_be_ahead & ~is_always_ahead)[selected]
    targets, columns = is_contender.nonzero(as_tuple=True)
    target_rows, target_items = rows[selected], items[selected, 0]
    differences = tuple(
        tuple(
            (option[target_rows[targets], columns] - option[target_rows, target_items][targets]).float().cpu()
            for option in options
        )
        for options in terms
    )
    return TargetRanks(
        k=k,
        ideal=torch.zeros(0, dtype=torch.float64),
        requests=target_rows.cpu(),
        num_ahead=num_ahead[selected].cpu(),
        popular_rank=popular_rank[selected].cpu(),
        is_known=is_known[target_rows].cpu(),
        targets=targets.cpu(),
        is_smaller=is_smaller[selected][targets, columns].cpu(),
        differences=differences,
    )


@dataclass(frozen=True)
class MixtureChoice:
    """Chosen weights and options of the parts, and the NDCG of each validation request under them, [R] float64."""

    weights: tuple[float, ...]
    options: tuple[int, ...]
    values: Tensor

    @property
    def ndcg(self) -> float:
        """Mean NDCG over the requests with targets."""
        return float(self.values.nanmean())


def choose_mixture(ranks: TargetRanks, fixed_weights: Sequence[float | None]) -> MixtureChoice:
    """Return the weights and options with the highest mean NDCG, and as few parts as noise allows. Deterministic.

    An option other than the first is chosen if the mean rises by more than one standard error of the paired difference.
    A part gets the weight 0 if the best mixture without it is worse than the best with it by at most that.

    Args:
        ranks: the ranks of the validation targets.
        fixed_weights: weight of each part, or None if it is to be chosen; the chosen ones and the others sum to 1.

    """
    free = [number for number, weight in enumerate(fixed_weights) if weight is None]
    options = [0] * len(fixed_weights)
    weights = _best_weights(ranks, options, fixed_weights, free)
    for _ in range(MAX_ROUNDS):
        before = options
        for number in range(len(options)):
            weights, options = _with_best_option(ranks, options, fixed_weights, weights, number)
        if options == before:
            break
    weights = _without_useless_parts(ranks, options, fixed_weights, weights)
    return MixtureChoice(tuple(weights), tuple(options), ranks.ndcg(weights, options))


def _with_best_option(
    ranks: TargetRanks,
    options: list[int],
    fixed_weights: Sequence[float | None],
    weights: list[float],
    number: int,
) -> tuple[list[float], list[int]]:
    """Return weights and options with the best option of part `number`, or the same ones if none is clearly better."""
    free = [part for part, weight in enumerate(fixed_weights) if weight is None]
    reference, best_gain, best = ranks.ndcg(weights, options), 0.0, (weights, options)
    for option in range(len(ranks.differences[number])):
        trial = [*options[:number], option, *options[number + 1 :]]
        if trial != options:
            trial_weights = _best_weights(ranks, trial, fixed_weights, free)
            gain, error = _paired_mean(ranks.ndcg(trial_weights, trial), reference)
            if gain > max(error, best_gain):
                best_gain, best = gain, (trial_weights, trial)
    return best


def _without_useless_parts(
    ranks: TargetRanks, options: Sequence[int], fixed_weights: Sequence[float | None], weights: list[float]
) -> list[float]:
    """Return the best weights of as few parts as noise allows, of parts whose weight is not fixed."""
    best_values = ranks.ndcg(weights, options)
    free = [number for number, weight in enumerate(fixed_weights) if weight is None and weights[number] > 0]
    while len(free) > 1:
        trials = []
        for number in reversed(free):  # of parts that are equally useless, the last is dropped
            others = [other for other in free if other != number]
            trial_weights = _best_weights(ranks, options, fixed_weights, others)
            trials.append((*_paired_mean(best_values, ranks.ndcg(trial_weights, options)), trial_weights, others))
        loss, error, trial_weights, others = min(trials, key=lambda trial: trial[0])
        if loss > error:
            break
        weights, free = trial_weights, others
    return weights


def _best_weights(
    ranks: TargetRanks, options: Sequence[int], fixed_weights: Sequence[float | None], free: Sequence[int]
) -> list[float]:
    """Return the weights with the highest mean NDCG, in which only the parts `free` share what is not fixed."""
    rest = 1 - sum(weight for weight in fixed_weights if weight is not None)
    fixed = [0.0 if weight is None else weight for weight in fixed_weights]
    if not free:
        return fixed

    def start(shares: dict[int, float]) -> list[float]:
        return [weight + rest * shares.get(number, 0.0) for number, weight in enumerate(fixed)]

    means: dict[tuple[float, ...], float] = {}

    def mean(weights: Sequence[float]) -> float:
        key = tuple(round(weight, 9) for weight in weights)
        if key not in means:
            means[key] = float(ranks.ndcg(weights, options).nanmean())
        return means[key]

    starts = [start({number: 1 / len(free) for number in free})]
    if len(free) > 2:  # with two parts, one line has all mixtures
        starts += [start({number: 1.0}) for number in free]
    best = max((_ascend(mean, weights, free, _coarse_grid) for weights in starts), key=mean)  # the first of equal ones
    return [round(weight, 6) for weight in _ascend(mean, best, free, _fine_grid)]


def _ascend(
    mean: Callable[[Sequence[float]], float],
    weights: list[float],
    free: Sequence[int],
    grid: Callable[[float], Iterable[float]],
) -> list[float]:
    """Return the weights after searches along the lines between any two parts, until none raises the mean.

    Args:
        mean: function to maximise.
        weights: weights to start from.
        free: parts whose weights change; their sum stays.
        grid: function of a part's share of the two weights that returns the shares to try.

    """
    value = mean(weights)
    while True:
        value_before = value
        for first, second in combinations(free, 2):
            total = weights[first] + weights[second]
            for share in grid(weights[first] / total) if total > 0 else ():
                trial = list(weights)
                trial[first], trial[second] = total * share, total * (1 - share)
                if mean(trial) > value + TOLERANCE:
                    weights, value = trial, mean(trial)
        if value == value_before:
            return weights


def _coarse_grid(share: float) -> list[float]:
    """Return evenly spaced shares from 0 to 1."""
    return [step / STEPS for step in range(STEPS + 1)]


def _fine_grid(share: float) -> list[float]:
    """Return shares around `share`, closer than those of the coarse grid."""
    width = FINE_STEPS // STEPS
    near = [share + step / FINE_STEPS for step in range(1 - width, width)]
    return [min(1.0, max(0.0, each)) for each in near]


def _paired_mean(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Return the mean of a - b over the requests with both, and its standard error."""
    difference = (a - b)[~(a.isnan() | b.isnan())]
    error = float(difference.std(correction=0)) / max(1, len(difference)) ** 0.5 if len(difference) else 0.0
    return float(difference.mean()) if len(difference) else 0.0, error
