"""Losses compared with their formulas in float64, with golden values and with limiting cases."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nextitem.losses.bce import bce
from nextitem.losses.contrastive import contrastive
from nextitem.losses.full_softmax import full_softmax
from nextitem.losses.gbce import calibrated_logit, gbce, positive_power
from nextitem.losses.sampled_softmax import sampled_softmax

T, N, D, S = 5, 7, 4, 3


def inputs(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(T, D, generator=generator, dtype=torch.float64, requires_grad=True)
    table = torch.randn(N + 1, D, generator=generator, dtype=torch.float64, requires_grad=True)
    return hidden, table, torch.randint(1, N + 1, (T,), generator=generator)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_full_softmax_equals_the_formula_without_padding() -> None:
    hidden, table, targets = inputs()
    logits = (hidden @ table.T).tolist()
    expected = sum(
        math.log(sum(math.exp(logits[t][j]) for j in range(1, N + 1))) - logits[t][target]
        for t, target in enumerate(targets.tolist())
    )
    assert float(full_softmax(hidden, table, targets)) == pytest.approx(expected / T)


def test_sampled_softmax_over_all_items_equals_full_softmax() -> None:
    hidden, table, targets = inputs()
    all_items = torch.arange(1, N + 1)
    sampled = sampled_softmax(hidden, table, targets, negatives=all_items)
    assert float(sampled) == pytest.approx(float(full_softmax(hidden, table, targets)))


def test_sampled_softmax_excludes_the_target_and_subtracts_log_q() -> None:
    hidden, table, targets = inputs()
    negatives = torch.cat([targets[:1], torch.tensor([1, 2])])
    log_q = torch.linspace(-2, 0, N + 1, dtype=torch.float64)
    logits = (hidden @ table.T - log_q).tolist()
    expected = 0.0
    for t, target in enumerate(targets.tolist()):
        others = [j for j in negatives.tolist() if j != target]
        expected += math.log(math.exp(logits[t][target]) + sum(math.exp(logits[t][j]) for j in others))
        expected -= logits[t][target]
    actual = sampled_softmax(hidden, table, targets, negatives=negatives, log_q=log_q)
    assert float(actual) == pytest.approx(expected / T)


def test_negatives_of_a_sequence_are_used_for_its_own_positions_only() -> None:
    hidden, table, targets = inputs()
    negatives = torch.tensor([[1, 2], [6, 6], [3, int(targets[4])]])
    log_q = torch.linspace(-2, 0, N + 1, dtype=torch.float64)
    lengths = torch.tensor([2, 0, 3])
    actual = sampled_softmax(hidden, table, targets, negatives=negatives, lengths=lengths, log_q=log_q)
    parts = [
        count * sampled_softmax(hidden[part], table, targets[part], negatives=row, log_q=log_q)
        for row, part, count in zip(negatives[[0, 2]], (slice(0, 2), slice(2, 5)), (2, 3), strict=True)
    ]
    torch.testing.assert_close(actual, sum(parts) / T)


def test_negatives_may_differ_by_position() -> None:
    hidden, table, targets = inputs()
    negatives = torch.randint(1, N + 1, (T, S), generator=torch.Generator().manual_seed(2))
    negatives[0, 0] = targets[0]
    log_q = torch.linspace(-2, 0, N + 1, dtype=torch.float64)
    actual = sampled_softmax(hidden, table, targets, negatives=negatives, log_q=log_q)
    parts = [
        sampled_softmax(hidden[t : t + 1], table, targets[t : t + 1], negatives=negatives[t], log_q=log_q)
        for t in range(T)
    ]
    torch.testing.assert_close(actual, torch.stack(parts).mean())


def test_excluded_negatives_have_no_effect() -> None:
    hidden, table, targets = inputs()
    others = torch.tensor([item for item in range(1, N + 1) if item not in targets.tolist()])
    shared = torch.cat([others, torch.tensor([int(targets[0]), int(others[0])])])
    is_excluded = torch.isin(shared, others[:1])
    actual = sampled_softmax(hidden, table, targets, negatives=shared, is_excluded=is_excluded)
    torch.testing.assert_close(actual, sampled_softmax(hidden, table, targets, negatives=shared[~is_excluded]))
    rows = torch.stack([shared, shared.flip(0)])
    lengths = torch.tensor([2, 3])
    are_excluded = torch.stack([is_excluded, torch.zeros_like(is_excluded)])
    actual = sampled_softmax(hidden, table, targets, negatives=rows, lengths=lengths, is_excluded=are_excluded)
    first = sampled_softmax(hidden[:2], table, targets[:2], negatives=shared[~is_excluded])
    second = sampled_softmax(hidden[2:], table, targets[2:], negatives=shared)
    torch.testing.assert_close(actual, (2 * first + 3 * second) / T)


def test_a_position_whose_negatives_are_all_excluded_adds_nothing() -> None:
    hidden, table, targets = inputs()
    negatives = torch.stack([targets, targets], 1)
    loss = sampled_softmax(hidden, table, targets, negatives=negatives)
    loss.backward()
    assert float(loss.detach()) == 0
    assert hidden.grad is not None
    assert not bool(hidden.grad.any())


def test_log_q_makes_popularity_sampling_agree_with_full_softmax() -> None:
    hidden, table, targets = inputs()
    weights = torch.arange(N + 1, dtype=torch.float64)
    draws = 200_000
    negatives = torch.multinomial(weights, draws, replacement=True, generator=torch.Generator().manual_seed(1))
    log_q = torch.log(draws * weights / weights.sum())
    # In the loss, the column of the target replaces its expected samples. So compare with the log-sum over all items.
    logits = hidden @ table.T
    sampled = torch.logsumexp(logits[:, negatives] - log_q[negatives], 1)
    torch.testing.assert_close(sampled, torch.logsumexp(logits[:, 1:], 1), rtol=0.01, atol=0.02)
    corrected = sampled_softmax(hidden, table, targets, negatives=negatives, log_q=log_q)
    assert math.isfinite(float(corrected))


def test_bce_equals_the_formula() -> None:
    hidden, table, targets = inputs()
    negatives = torch.randint(1, N + 1, (T, S), generator=torch.Generator().manual_seed(2))
    logits = (hidden @ table.T).tolist()
    expected = 0.0
    for t, target in enumerate(targets.tolist()):
        expected -= math.log(sigmoid(logits[t][target]))
        expected -= sum(math.log(1 - sigmoid(logits[t][j])) for j in negatives[t].tolist())
    assert float(bce(hidden, table, targets, negatives=negatives)) == pytest.approx(expected / T)


def test_gbce_equals_golden_values() -> None:
    assert positive_power(0.1, 0.75) == pytest.approx(0.325)
    assert positive_power(0.1, 0.0) == pytest.approx(1.0)
    assert positive_power(0.1, 1.0) == pytest.approx(0.1)
    gamma = calibrated_logit(torch.tensor([2.0]), 0.325)
    assert float(gamma) == pytest.approx(3.1673676, abs=1e-6)
    assert math.log(sigmoid(float(gamma))) == pytest.approx(0.325 * math.log(sigmoid(2.0)))


@pytest.mark.parametrize("calibration", [0.0, 0.75, 1.0])
def test_gbce_equals_the_formula(calibration: float) -> None:
    hidden, table, targets = inputs()
    negatives = torch.randint(1, N + 1, (T, S), generator=torch.Generator().manual_seed(2))
    beta = positive_power(S / (N - 1), calibration)
    logits = (hidden @ table.T).tolist()
    expected = 0.0
    for t, target in enumerate(targets.tolist()):
        expected -= beta * math.log(sigmoid(logits[t][target]))
        expected -= sum(math.log(1 - sigmoid(logits[t][j])) for j in negatives[t].tolist())
    actual = gbce(hidden, table, targets, negatives=negatives, calibration=calibration, num_items=N)
    assert float(actual) == pytest.approx(expected / T / (S + 1), rel=1e-6)


def test_gbce_stays_finite_at_extreme_logits() -> None:
    hidden = torch.tensor([[60.0], [-60.0]], requires_grad=True)
    table = torch.tensor([[0.0], [1.0], [-1.0]])
    loss = gbce(hidden, table, torch.tensor([1, 1]), negatives=torch.tensor([[2], [2]]), calibration=0.75, num_items=2)
    loss.backward()
    assert math.isfinite(float(loss))
    assert hidden.grad is not None
    assert bool(torch.isfinite(hidden.grad).all())


def test_contrastive_equals_the_formula() -> None:
    views = torch.randn(2, T, D, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    all_views = [*views[0], *views[1]]
    expected = 0.0
    for index, view in enumerate(all_views):
        others = {number: math.exp(float(view @ other) / 0.7) for number, other in enumerate(all_views)}
        del others[index]
        expected -= math.log(others[(index + T) % (2 * T)] / sum(others.values()))
    assert float(contrastive(*views, temperature=0.7)) == pytest.approx(expected / (2 * T))


def test_contrastive_does_not_push_away_the_same_item() -> None:
    left, right = (torch.randn(3, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    views, ids = torch.cat([left, right]), [1, 2, 5, 3, 1, 6]  # the pairs (1, 3), (2, 1) and (5, 6)
    expected = 0.0
    for view, partner in enumerate([3, 4, 5, 0, 1, 2]):
        negatives = [n for n in range(6) if n != view and ids[n] not in (ids[view], ids[partner])]
        logits = torch.stack([views[view] @ views[n] / 0.5 for n in [partner, *negatives]])
        expected -= float(logits.log_softmax(0)[0])
    loss = contrastive(left, right, temperature=0.5, ids=torch.tensor(ids))
    assert float(loss) == pytest.approx(expected / 6, rel=1e-5)


def test_contrastive_of_a_single_sequence_is_zero() -> None:
    view = torch.randn(1, D, requires_grad=True)
    loss = contrastive(view, 2 * view, temperature=1.0)
    loss.backward()
    assert float(loss.detach()) == 0
    assert view.grad is not None
    assert not bool(view.grad.any())


def test_gradients_agree_with_finite_differences() -> None:
    hidden, table, targets = inputs()
    shared = torch.tensor([1, 5, 5])
    each = torch.randint(1, N + 1, (T, S), generator=torch.Generator().manual_seed(3))
    for loss in (
        lambda h, w: full_softmax(h, w, targets),
        lambda h, w: sampled_softmax(h, w, targets, negatives=shared),
        lambda h, w: sampled_softmax(h, w, targets, negatives=each[:2], lengths=torch.tensor([2, 3])),
        lambda h, w: sampled_softmax(h, w, targets, negatives=each),
        lambda h, w: contrastive(h, w[:T], temperature=0.7),
        lambda h, w: bce(h, w, targets, negatives=each),
        lambda h, w: gbce(h, w, targets, negatives=each, calibration=0.5, num_items=N),
    ):
        assert torch.autograd.gradcheck(loss, (hidden, table))
