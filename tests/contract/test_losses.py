"""Tests of every registered loss: it falls along its gradient and ignores the padding row and the order of examples."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nextitem.core.registry import LOSSES

T, N, D, S = 6, 9, 4, 5


def arguments(loss: Callable[..., Tensor]) -> dict[str, object]:
    """Return the keyword arguments that this loss requires."""
    generator = torch.Generator().manual_seed(1)
    names = inspect.signature(loss).parameters
    shape = (S,) if getattr(loss, "__name__", "") == "sampled_softmax" else (T, S)
    available = {
        "negatives": torch.randint(1, N + 1, shape, generator=generator),
        "calibration": 0.5,
        "num_items": N,
    }
    return {name: value for name, value in available.items() if name in names}


ON_SCORES = {name for name, entry in LOSSES.items() if "scores" in inspect.signature(entry.load()).parameters}


@pytest.mark.parametrize("name", sorted(ON_SCORES))
def test_a_loss_on_scores_falls_along_its_gradient(name: str) -> None:
    """The positives are on the diagonal of the scores."""
    loss = LOSSES[name].load()
    scores = torch.randn(T, T + S, generator=torch.Generator().manual_seed(0)).requires_grad_()
    value = loss(scores)
    assert value.shape == ()
    value.backward()
    assert scores.grad is not None
    assert bool((scores.grad.diagonal() < 0).all())  # a higher positive is a lower loss
    assert float(loss(scores - 0.05 * scores.grad)) < float(value)
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    columns = torch.cat([order, torch.arange(T, T + S)])
    assert float(loss(scores[order][:, columns])) == pytest.approx(float(value), rel=1e-5)


def scores_items(name: str) -> bool:
    return "targets" in inspect.signature(LOSSES[name].load()).parameters


def has_argument(name: str, argument: str) -> bool:
    return argument in inspect.signature(LOSSES[name].load()).parameters


def test_every_loss_is_of_a_kind_that_is_tested() -> None:
    kinds = ("scores", "targets", "temperature", "column_items")
    assert all(sum(has_argument(name, kind) for kind in kinds) >= 1 for name in LOSSES)


@pytest.mark.parametrize("name", [name for name in LOSSES if has_argument(name, "column_items")])
def test_a_loss_over_columns_with_shared_items_falls_along_its_gradient(name: str) -> None:
    loss = LOSSES[name].load()
    generator = torch.Generator().manual_seed(0)
    hidden, vectors = torch.randn(T, D, generator=generator), torch.randn(N, D, generator=generator)
    biases, place = torch.randn(N, generator=generator), torch.randint(N, (T + S,), generator=generator)
    log_q = torch.randn(T + S, generator=generator)

    def value(moved: Tensor) -> Tensor:
        total: Tensor = loss(moved, vectors, biases, place, log_q, collisions=True)
        return total

    moved = hidden.clone().requires_grad_()
    value(moved).backward()
    assert moved.grad is not None
    assert float(value(hidden - 0.05 * moved.grad)) < float(value(hidden))
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    columns = torch.cat([order, torch.arange(T, T + S)])
    other = loss(hidden[order], vectors, biases, place[columns], log_q[columns], collisions=True)
    assert float(other) == pytest.approx(float(value(hidden)), rel=1e-5)


@pytest.mark.parametrize(
    "name", [name for name in LOSSES if has_argument(name, "temperature") and not scores_items(name)]
)
def test_a_loss_between_two_views_falls_along_its_gradient(name: str) -> None:
    loss = LOSSES[name].load()
    left, right = torch.randn(2, T, D, generator=torch.Generator().manual_seed(0))
    value = loss(left, right, temperature=0.7)
    assert value.shape == ()
    moved = left.clone().requires_grad_()
    loss(moved, right, temperature=0.7).backward()
    assert float(loss(left - 0.05 * moved.grad, right, temperature=0.7)) < float(value)
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    assert float(loss(left[order], right[order], temperature=0.7)) == pytest.approx(float(value), rel=1e-5)
    assert float(loss(left, left, temperature=0.7)) < float(loss(left, left[order], temperature=0.7))


@pytest.mark.parametrize("name", [name for name in LOSSES if scores_items(name)])
def test_a_loss_over_items_falls_along_its_gradient_and_ignores_padding(name: str) -> None:
    loss = LOSSES[name].load()
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(T, D, generator=generator)
    table = torch.randn(N + 1, D, generator=generator)
    targets = torch.arange(1, T + 1)
    extra = arguments(loss)
    value = loss(hidden, table, targets, **extra)
    assert value.shape == ()
    assert bool(torch.isfinite(value))
    hidden_param = hidden.clone().requires_grad_()
    loss(hidden_param, table, targets, **extra).backward()
    assert hidden_param.grad is not None
    better = loss(hidden - 0.05 * hidden_param.grad, table, targets, **extra)
    assert float(better) < float(value)
    changed = table.clone()
    changed[0] = 100.0
    assert float(loss(hidden, changed, targets, **extra)) == pytest.approx(float(value))
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    moved = {key: v[order] if isinstance(v, Tensor) and v.dim() == 2 else v for key, v in extra.items()}
    assert float(loss(hidden[order], table, targets[order], **moved)) == pytest.approx(float(value), rel=1e-5)
