"""Tests of weights of mixtures: ranks equal those of the whole lists, and known best mixtures are chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.jagged import Jagged
from nextitem.core.top_items import top_items
from nextitem.evaluation import mixture_weights
from nextitem.evaluation.metrics import accuracy
from nextitem.evaluation.mixture_weights import TargetRanks, choose_mixture, target_ranks

N = 25


def plain_ndcg(batch: SequenceBatch, terms: Sequence[Tensor], weights: Sequence[float], popularity: Tensor) -> Tensor:
    """Return NDCG@10 of each request by ordering the whole catalogue."""
    assert batch.targets is not None
    total = torch.stack([weight * term for weight, term in zip(weights, terms, strict=True)]).sum(0)
    has_terms = [(term != 0).any(1) for weight, term in zip(weights, terms, strict=True) if weight > 0]
    scores = torch.where(torch.stack(has_terms).any(0)[:, None], total, popularity)
    return accuracy.ndcg(top_items(scores, batch, 10).item_ids, batch.targets, 10)


def random_requests(seed: int, *, count: int = 40) -> SequenceBatch:
    """Return requests with none to three targets, exclusions and, for odd seeds, allow-lists."""
    generator = torch.Generator().manual_seed(seed)

    def lists(lengths: Sequence[int]) -> Jagged:
        numbers = torch.randint(len(lengths), (count,), generator=generator).tolist()
        return Jagged.from_rows(
            [(torch.randperm(N, generator=generator)[: lengths[number]] + 1).tolist() for number in numbers]
        )

    allowed = torch.rand(count, N + 1, generator=generator) < 0.8 if seed % 2 else None
    return SequenceBatch(lists([1]), targets=lists([1, 1, 0, 3, 13]), excluded=lists([0, 2, 5]), allowed=allowed)


def random_terms(seed: int, *, count: int = 40) -> Tensor:
    """Return terms with many ties, and some rows of zeros."""
    generator = torch.Generator().manual_seed(seed)
    terms = torch.randint(4, (count, N + 1), generator=generator).float() / 4
    return terms * (torch.rand(count, 1, generator=generator) > 0.2)


def ranks_of(batch: SequenceBatch, terms: Sequence[Tensor], popularity: Tensor, *, block: int = 7) -> TargetRanks:
    rows = torch.arange(batch.num_requests).split(block)
    blocks = [(batch.select(part), [[term[part]] for term in terms]) for part in rows]
    return target_ranks(blocks, popularity, num_parts=len(terms))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    weights=st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=4).filter(lambda each: sum(each) > 0),
)
def test_ndcg_equals_that_of_the_whole_lists(seed: int, weights: list[float]) -> None:
    batch, popularity = random_requests(seed), (7 * torch.arange(N + 1) % 11).float()
    terms = [random_terms(10_000 * part + seed) for part in range(len(weights))]
    actual = ranks_of(batch, terms, popularity).ndcg(weights, [0] * len(weights))
    torch.testing.assert_close(actual, plain_ndcg(batch, terms, weights, popularity), equal_nan=True)


def test_few_items_are_compared_again_and_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, popularity = random_requests(3), torch.ones(N + 1)
    shared = random_terms(1)
    terms = [shared + 0.1 * random_terms(2), shared + 0.1 * random_terms(3)]
    ranks = ranks_of(batch, terms, popularity)
    assert batch.targets is not None
    assert 0 < len(ranks.targets) < 0.3 * len(batch.targets.values) * N
    monkeypatch.setattr(mixture_weights, "CHUNK_SCORES", 3 * N)
    other = ranks_of(batch, terms, popularity, block=40)
    for weights in ([0.5, 0.5], [0.2, 0.8]):
        torch.testing.assert_close(ranks.ndcg(weights, [0, 0]), other.ndcg(weights, [0, 0]), equal_nan=True)


def planted(
    shares: Sequence[Sequence[float]], *, count: int = 600, excluded: bool = False
) -> tuple[SequenceBatch, list[Tensor]]:
    """Return requests with one target and the probabilities of parts that rank the target first for some requests.

    Part m is right about a request of kind j with probability shares[m][j]; kinds take turns. Otherwise it prefers a
    random item, half as strongly.
    """
    generator = torch.Generator().manual_seed(4)
    targets = torch.randint(1, N + 1, (count, 1), generator=generator)
    terms = []
    for part in shares:
        chances = torch.tensor(part)[torch.arange(count) % len(part)]
        is_right = torch.rand(count, generator=generator) < chances
        noise = 0.01 * torch.rand(count, N + 1, generator=generator)
        wrong = torch.randint(1, N + 1, (count, 1), generator=generator)
        noise.scatter_(1, torch.where(is_right[:, None], targets, wrong), torch.where(is_right, 0.8, 0.4)[:, None])
        terms.append(noise)
    items = Jagged.from_rows([[1]] * count)
    return SequenceBatch(items, targets=Jagged.from_rows(targets.tolist())), terms


PERFECT, HALF, OTHER_HALF, USELESS = (1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0)


@pytest.mark.parametrize(
    ("parts", "helpful"),
    [
        ([PERFECT, USELESS], [True, False]),
        ([USELESS, PERFECT], [False, True]),
        ([HALF, OTHER_HALF], [True, True]),
        ([HALF, USELESS, OTHER_HALF], [True, False, True]),
        ([USELESS, HALF, USELESS, OTHER_HALF], [False, True, False, True]),
        ([HALF, PERFECT, OTHER_HALF], [False, True, False]),
    ],
)
def test_parts_that_help_have_a_weight_and_the_others_none(
    parts: list[tuple[float, float]], helpful: list[bool]
) -> None:
    batch, terms = planted(parts)
    choice = choose_mixture(ranks_of(batch, terms, torch.ones(N + 1)), [None] * len(parts))
    assert [weight > 0 for weight in choice.weights] == helpful
    assert sum(choice.weights) == pytest.approx(1, abs=1e-5)
    expected = plain_ndcg(batch, terms, choice.weights, torch.ones(N + 1))
    torch.testing.assert_close(choice.values, expected)
    assert choice.ndcg > 0.95


def test_two_weights_are_the_best_of_a_fine_grid() -> None:
    batch, terms = planted([(0.7, 0.2), (0.1, 0.5)])
    ranks = ranks_of(batch, terms, torch.ones(N + 1))
    choice = choose_mixture(ranks, [None, None])
    grid = [float(ranks.ndcg([step / 100, 1 - step / 100], [0, 0]).mean()) for step in range(101)]
    assert choice.ndcg == pytest.approx(max(grid), abs=2e-3)
    assert choice.ndcg > max(grid[0], grid[-1]) + 0.01
    assert choose_mixture(ranks, [None, None]).weights == choice.weights


def test_of_equal_parts_the_first_remains() -> None:
    batch, (term,) = planted([HALF])
    ranks = ranks_of(batch, [term, term.clone(), term.clone()], torch.ones(N + 1))
    assert choose_mixture(ranks, [None] * 3).weights == (1.0, 0.0, 0.0)


def test_fixed_weights_stay_and_the_others_share_the_rest() -> None:
    batch, terms = planted([USELESS, HALF, OTHER_HALF])
    ranks = ranks_of(batch, terms, torch.ones(N + 1))
    choice = choose_mixture(ranks, [0.2, None, None])
    assert choice.weights[0] == 0.2
    assert all(weight > 0 for weight in choice.weights)
    assert sum(choice.weights) == pytest.approx(1, abs=1e-5)
    assert choose_mixture(ranks, [0.5, 0.5, 0.0]).weights == (0.5, 0.5, 0.0)
    assert choose_mixture(ranks, [0.4, 0.0, None]).weights == pytest.approx((0.4, 0.0, 0.6))


def test_another_option_is_chosen_only_if_it_is_clearly_better() -> None:
    """Sharper probabilities matter if a part's certainty tells when it is right; otherwise the first option stays."""
    batch, (half, other) = planted([HALF, OTHER_HALF])
    flat, sharp = half**0.05, half**2
    blocks = [(batch, [[flat, sharp], [other]])]
    choice = choose_mixture(target_ranks(blocks, torch.ones(N + 1), num_parts=2), [None, None])
    assert choice.options == (1, 0)
    blocks = [(batch, [[half, half**1.001], [other]])]
    assert choose_mixture(target_ranks(blocks, torch.ones(N + 1), num_parts=2), [None, None]).options == (0, 0)


def test_excluded_targets_count_as_missed() -> None:
    batch, terms = planted([PERFECT])
    batch = replace(batch, excluded=batch.targets)
    assert float(ranks_of(batch, terms, torch.ones(N + 1)).ndcg([1.0], [0]).max()) == 0
