"""Tests of SR-GNN: the paper's example graph, a naive computation by session, and results that batching preserves."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.jagged import Jagged
from nextitem.models.sr_gnn import SRGNN, SessionGraphs, SRGNNConfig, _mean_along
from nextitem.testing.known_answers import build

NUM_ITEMS = 9
SESSIONS = st.lists(st.lists(st.integers(1, NUM_ITEMS), min_size=1, max_size=8), min_size=1, max_size=5)


@cache
def catalog() -> Catalog:
    return build([[1, 2, 3]], [f"t{n}" for n in range(NUM_ITEMS)], name="tiny").catalog


def model_of(**fields: object) -> SRGNN:
    torch.manual_seed(0)
    return SRGNN(SRGNNConfig(**{"width": 6, **fields}), catalog()).double().eval()


def requests(histories: list[list[int]], targets: list[int] | None = None) -> SequenceBatch:
    target_rows = None if targets is None else Jagged.from_rows([[target] for target in targets])
    return SequenceBatch(Jagged.from_rows(histories), targets=target_rows)


def naive_matrices(session: list[int], nodes: list[int]) -> tuple[Tensor, Tensor]:
    """Return incoming and outgoing matrix [n, n]: occurrences of transitions over the total of their end or start."""
    counts = torch.zeros(len(nodes), len(nodes), dtype=torch.float64)
    for first, second in pairwise(session):
        counts[nodes.index(first), nodes.index(second)] += 1
    incoming = torch.stack([column / max(1.0, float(column.sum())) for column in counts.T])
    outgoing = torch.stack([row / max(1.0, float(row.sum())) for row in counts])
    return incoming, outgoing


def naive_vector(model: SRGNN, session: list[int]) -> Tensor:
    """Return a session's vector [D] by dense matrices, with gates and attention over events computed by hand."""
    step, cell = model.graph_step, model.graph_step.cell
    nodes = list(dict.fromkeys(session))  # by first occurrence: the order of nodes must not matter
    incoming, outgoing = naive_matrices(session, nodes)
    state = model.items.weight[torch.tensor(nodes)]
    for _ in range(model.config.steps):
        messages = torch.cat([incoming @ step.incoming(state), outgoing @ step.outgoing(state)], dim=1)
        from_messages = (messages @ cell.weight_ih.T + cell.bias_ih).chunk(3, dim=1)
        from_state = (state @ cell.weight_hh.T + cell.bias_hh).chunk(3, dim=1)
        reset = torch.sigmoid(from_messages[0] + from_state[0])
        keep = torch.sigmoid(from_messages[1] + from_state[1])
        candidate = torch.tanh(from_messages[2] + reset * from_state[2])
        state = (1 - keep) * candidate + keep * state
    events = [state[nodes.index(item)] for item in session]
    overall = torch.zeros(model.config.width, dtype=torch.float64)
    for event in events:
        gate = torch.sigmoid(model.attend_last.weight @ events[-1] + model.attend_node(event))
        overall = overall + (model.attention.weight[0] @ gate) * event
    vector: Tensor = model.join(torch.cat([events[-1], overall]))
    return vector


def matrix(graphs: SessionGraphs, sources: Tensor, targets: Tensor) -> list[list[float]]:
    """Return the weights [V, V] with which each node (row) reads each other node."""
    return _mean_along(torch.eye(len(graphs.items)), sources, targets).tolist()


def test_the_matrices_are_those_of_the_paper_s_example() -> None:
    """Figure 2: the session v1, v2, v3, v2, v4."""
    graphs = SessionGraphs.from_histories(Jagged.from_rows([[1, 2, 3, 2, 4]]))
    assert graphs.items.tolist() == [1, 2, 3, 4]
    assert matrix(graphs, graphs.ends, graphs.starts) == [  # outgoing
        [0, 1, 0, 0],
        [0, 0, 0.5, 0.5],
        [0, 1, 0, 0],
        [0, 0, 0, 0],
    ]
    assert matrix(graphs, graphs.starts, graphs.ends) == [  # incoming
        [0, 0, 0, 0],
        [0.5, 0, 0.5, 0],
        [0, 1, 0, 0],
        [0, 1, 0, 0],
    ]


def test_a_repeated_transition_counts_as_often_as_it_occurs() -> None:
    # 1 -> 2 occurs twice, 1 -> 3 once, 3 -> 3 once.
    graphs = SessionGraphs.from_histories(Jagged.from_rows([[1, 2, 1, 2, 1, 3, 3]]))
    third = pytest.approx(1 / 3)
    assert matrix(graphs, graphs.ends, graphs.starts)[0] == [0, pytest.approx(2 / 3), third]
    assert matrix(graphs, graphs.starts, graphs.ends)[2] == [0.5, 0, 0.5]


def test_repeated_items_share_a_node_and_sessions_do_not() -> None:
    graphs = SessionGraphs.from_histories(Jagged.from_rows([[7, 2, 7], [2], [2, 2, 5]]))
    assert graphs.items.tolist() == [2, 7, 2, 2, 5]
    assert graphs.sessions.tolist() == [0, 0, 1, 2, 2]
    assert graphs.occurrences.tolist() == [1, 2, 1, 2, 1]
    assert graphs.last.tolist() == [1, 2, 4]
    assert list(zip(graphs.starts.tolist(), graphs.ends.tolist(), strict=True)) == [(1, 0), (0, 1), (3, 3), (3, 4)]


@settings(max_examples=40, deadline=None)
@given(sessions=SESSIONS, steps=st.integers(1, 3), seed=st.integers(0, 99))
def test_a_batch_equals_the_naive_computation_forward_and_backward(
    sessions: list[list[int]], steps: int, seed: int
) -> None:
    model = model_of(steps=steps)
    targets = torch.randint(1, NUM_ITEMS + 1, (len(sessions),), generator=torch.Generator().manual_seed(seed))
    losses = []
    for session, target in zip(sessions, targets, strict=True):
        logits = model.items.weight[1:] @ naive_vector(model, session)
        losses.append(logits.logsumexp(0) - logits[target - 1])
    expected = torch.stack(losses).mean()
    expected.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    total = model.training_loss(requests(sessions, targets.tolist())).total
    total.backward()
    torch.testing.assert_close(total, expected)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], msg=(name + ": {}").format)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), sessions=SESSIONS)
def test_the_order_of_sessions_in_a_batch_changes_nothing(data: st.DataObject, sessions: list[list[int]]) -> None:
    model = model_of()
    order = torch.tensor(data.draw(st.permutations(range(len(sessions)))))
    vectors = model.user_vectors(requests(sessions))
    moved = model.user_vectors(requests(sessions).select(order))
    torch.testing.assert_close(moved, vectors[order])


def test_a_session_of_one_item_has_no_messages() -> None:
    model = model_of(steps=2)
    alone = model.user_vectors(requests([[4]]))[0]
    torch.testing.assert_close(alone, naive_vector(model, [4]))
    graphs = SessionGraphs.from_histories(Jagged.from_rows([[4]]))
    assert len(graphs.starts) == 0
    answer = model.float().recommend(requests([[4]]), NUM_ITEMS)
    assert sorted(answer.item_ids[0].tolist()) == list(range(1, NUM_ITEMS + 1))


def test_initial_weights_are_within_one_over_the_root_of_the_width() -> None:
    model = SRGNN(SRGNNConfig(width=25), catalog())
    for name, parameter in model.named_parameters():
        largest = float(parameter.detach().abs().max())
        assert 0.1 < largest <= 0.2, name
    assert not model.items.weight[0].any()
