"""Depth networks: rows that share states and vectors equal rows with copies of them."""

from __future__ import annotations

import pytest
import torch

from nextitem.nn.depth_network import DEPTH_NETWORKS


@pytest.mark.parametrize("name", DEPTH_NETWORKS)
def test_shared_states_and_vectors_equal_their_copies(name: str) -> None:
    torch.manual_seed(0)
    network = DEPTH_NETWORKS[name](6, levels=3, hidden=10, dropout=0.0)
    states, vectors = network.start(torch.randn(4, 6)), torch.randn(3, 6)
    rows, nodes = torch.tensor([0, 0, 3, 1, 2, 3]), torch.tensor([2, 0, 0, 1, 2, 0])
    shared = network(states, vectors, level=1, rows=rows, nodes=nodes)
    torch.testing.assert_close(shared, network(states[rows], vectors[nodes], level=1))


def test_the_mlp_reads_the_former_state_and_the_vector() -> None:
    torch.manual_seed(0)
    network = DEPTH_NETWORKS["mlp"](6, levels=2, hidden=10, dropout=0.0)
    state, vector = torch.randn(2, 1, 6), torch.randn(2, 6)
    hidden = network.networks[0](torch.cat([state[:, 0], vector], dim=1))  # type: ignore[index, operator]
    expected = network.norms[0](state[:, 0] + hidden)  # type: ignore[index, operator]
    torch.testing.assert_close(network(state, vector, level=1)[:, 0], expected)
