"""Softmax over the children of given nodes, compared with the plain computation row by row."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.trie_cases import problem, vectors_of
from torch import Tensor

from nextitem.ops import trie_softmax as trie_softmax_module
from nextitem.ops.trie_softmax import ChildRanges, child_logits, trie_softmax, trie_softmax_reference


def assert_same(left: Tensor, right: Tensor, hidden: Tensor, vectors: Tensor) -> None:
    """Assert equal values, and equal gradients of a weighted sum of them."""
    torch.testing.assert_close(left, right)
    weights = torch.linspace(-1, 2, len(left), dtype=left.dtype)
    left_grads = torch.autograd.grad((left * weights).sum(), (hidden, vectors), retain_graph=True)
    right_grads = torch.autograd.grad((right * weights).sum(), (hidden, vectors), allow_unused=True, retain_graph=True)
    for actual, expected in zip(left_grads, right_grads, strict=True):
        torch.testing.assert_close(actual, torch.zeros_like(actual) if expected is None else expected)


@pytest.fixture(params=[0, 2**15], ids=["groups", "few logits"])
def _way_of_logits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `child_logits` divide the rows into groups, or read the children of each row."""
    monkeypatch.setattr(trie_softmax_module, "_FEW_LOGITS", request.param)


@pytest.mark.usefixtures("_way_of_logits")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    counts=st.lists(st.integers(0, 9) | st.just(40), min_size=1, max_size=12).filter(any),
    num_rows=st.integers(0, 40),
    seed=st.integers(0, 99),
)
def test_values_and_gradients_equal_the_plain_computation(counts: list[int], num_rows: int, seed: int) -> None:
    children, targets, num_nodes = problem(counts, num_rows, seed=seed)
    hidden, vectors = vectors_of(len(targets), int(num_nodes), seed=seed)
    expected = trie_softmax_reference(hidden, vectors, children, targets)
    assert_same(trie_softmax(hidden, vectors, children, targets), expected, hidden, vectors)
    if len(targets):
        logits = child_logits(hidden, vectors, children)
        assert_same(
            logits.log_softmax(1).gather(1, (targets - children.starts)[:, None])[:, 0], expected, hidden, vectors
        )


@pytest.mark.usefixtures("_way_of_logits")
def test_nodes_can_share_vectors() -> None:
    children, targets, num_nodes = problem([3, 4, 2], 20)
    rows = torch.tensor([0, 2, 1, 1, 3, 0, 2, 2, 1])
    assert len(rows) == num_nodes
    hidden, vectors = vectors_of(len(targets), 4)
    expected = trie_softmax_reference(hidden, vectors, children, targets, vector_rows=rows)
    assert_same(trie_softmax(hidden, vectors, children, targets, vector_rows=rows), expected, hidden, vectors)
    logits = child_logits(hidden, vectors, children, vector_rows=rows)
    torch.testing.assert_close(logits.log_softmax(1).gather(1, (targets - children.starts)[:, None])[:, 0], expected)


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(1, 9) | st.just(40), min_size=1, max_size=12),
    num_rows=st.integers(1, 20),
    seed=st.integers(0, 99),
)
def test_targets_can_share_a_softmax(counts: list[int], num_rows: int, seed: int) -> None:
    children, targets, num_nodes = problem(counts, num_rows, seed=seed)
    hidden, vectors = vectors_of(len(targets), int(num_nodes), seed=seed)
    random = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(targets), (2 * num_rows,), generator=random)  # some rows have several targets, some none
    places = torch.randint(1000, rows.shape, generator=random) % children.counts[rows]
    shared = children.starts[rows] + places
    expected = trie_softmax_reference(hidden, vectors, children, shared, rows=rows)
    assert_same(trie_softmax(hidden, vectors, children, shared, rows=rows), expected, hidden, vectors)
    copies = ChildRanges(children.starts[rows], children.counts[rows])
    torch.testing.assert_close(trie_softmax_reference(hidden[rows], vectors, copies, shared), expected)


def test_known_probabilities() -> None:
    vectors = torch.log(torch.tensor([[1.0], [3.0], [2.0], [5.0]]))
    children = ChildRanges(torch.tensor([0, 2, 2]), torch.tensor([2, 2, 2]))
    log_probs = trie_softmax(torch.ones(3, 1), vectors, children, torch.tensor([1, 2, 3]))
    torch.testing.assert_close(log_probs.exp(), torch.tensor([3 / 4, 2 / 7, 5 / 7]))


def test_a_single_child_is_certain_and_has_no_gradient() -> None:
    hidden, vectors = vectors_of(3, 5)
    children = ChildRanges(torch.tensor([4, 4, 2]), torch.tensor([1, 1, 1]))
    log_probs = trie_softmax(hidden, vectors, children, children.starts)
    assert log_probs.tolist() == [0, 0, 0]
    grads = torch.autograd.grad(log_probs.sum(), (hidden, vectors))
    assert not grads[0].any()
    assert not grads[1].any()


@pytest.mark.usefixtures("_way_of_logits")
def test_logits_of_rows_without_children_are_padding() -> None:
    hidden, vectors = vectors_of(2, 3)
    logits = child_logits(hidden, vectors, ChildRanges(torch.tensor([0, 0]), torch.tensor([3, 0])))
    assert logits.shape == (2, 3)
    assert logits[1].tolist() == [-torch.inf] * 3
    torch.testing.assert_close(logits[0], vectors @ hidden[0])


def test_the_same_input_gives_the_same_result() -> None:
    children, targets, num_nodes = problem([30, 2, 17, 5], 300)
    hidden, vectors = (part.detach().float().requires_grad_() for part in vectors_of(len(targets), int(num_nodes)))
    results = []
    for _ in range(2):
        log_probs = trie_softmax(hidden, vectors, children, targets)
        results.append((log_probs, *torch.autograd.grad(log_probs.sum(), (hidden, vectors))))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("num_parents", [1, 8])
def test_rows_of_one_parent_share_a_product(num_parents: int) -> None:
    parents = torch.arange(64) % num_parents
    children = ChildRanges(parents * 10, torch.full_like(parents, 10))
    (group,) = children.competing
    assert group.rows.numel() == 64  # no padding
    assert len(group.rows) == num_parents
