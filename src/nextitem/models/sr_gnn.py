"""SR-GNN: a gated graph network on the graph of a session's item transitions predicts the next item.

Wu et al., Session-based Recommendation with Graph Neural Networks, arXiv 1811.00855. The distinct items of a session
are nodes, its transitions are edges. Every node reads its predecessors and its successors and is updated by a gated
unit. The last item's state and an attention over all events, joined by a linear map, score every item.

Notable
- The graphs of a batch form one graph of V nodes and E transitions, with sums by index; nothing is padded. On a CPU
  that takes less time than dense [B, n, n] matrices, at any session length: the linear maps dominate.
- A transition weighs its occurrences over those of all transitions from its start (outgoing) or to its end (incoming),
  as the paper says. The authors' code counts a repeated transition once.
- The attention sums over events: an item's node counts as often as it occurs. Some ports sum over distinct items.
- The gated unit is that of the authors' code, and of torch: the reset gate acts after the matrix of the candidate
  state, and the update gate is one minus the paper's.
- The bias after aggregation (equation 1) is omitted: the biases of the gates absorb it. Each direction has a bias
  before aggregation, as in the authors' code, which distinguishes nodes without an edge.
- Attention weights are not normalised, as in the paper.
- Examples are all prefixes of all sessions, as in the authors' data.

Shapes: B sessions, T events, V nodes, E transitions, D width, N items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from nextitem.core import config as configs
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.dataset import Dataset
from nextitem.core.jagged import Jagged
from nextitem.core.roles import LossTerms
from nextitem.core.vector_model import VectorModel
from nextitem.data.examples.next_target import NextTargets
from nextitem.losses.full_softmax import full_softmax
from nextitem.nn.tables.kinds import DenseRows, GrowingRows, HashedRows
from nextitem.nn.tables.tables import item_table


class SRGNNConfig(configs.Config):
    """Settings of SRGNN."""

    width: int = Field(100, ge=1)
    """Width of the vectors (D)."""
    table: DenseRows | GrowingRows | HashedRows = Field(DenseRows(), discriminator="kind")
    """Kind of the table of item vectors: dense, growing with the ids that training meets, or hashed."""
    steps: int = Field(1, ge=1)
    """Number of rounds of messages along the transitions, all with the same weights."""
    max_history_length: int = Field(50, ge=1)
    """Maximum number of most recent events that the model reads."""


@dataclass(frozen=True, eq=False)
class SessionGraphs:
    """The graphs of B sessions, side by side.

    Attributes:
        items: [V] item of each node: the distinct items of the first session in ascending order, then the second's.
        sessions: [V] the session, 0..B - 1, of each node.
        occurrences: [V] number of events of the session with this item.
        last: [B] the node of each session's last event.
        starts: [E] the node that each transition leaves; a transition that occurs twice is contained twice.
        ends: [E] the node that each transition enters.

    """

    items: Tensor
    sessions: Tensor
    occurrences: Tensor
    last: Tensor
    starts: Tensor
    ends: Tensor

    @classmethod
    def from_histories(cls, histories: Jagged) -> SessionGraphs:
        """Return the graphs of histories (item ids), each of at least one event."""
        rows = histories.row_ids()
        key_base = int(histories.values.max()) + 1
        keys, node = torch.unique(rows * key_base + histories.values, return_inverse=True)
        is_within_session = rows[1:] == rows[:-1]
        return cls(
            keys % key_base,
            keys // key_base,
            torch.bincount(node, minlength=len(keys)),
            node[histories.offsets[1:] - 1],
            node[:-1][is_within_session],
            node[1:][is_within_session],
        )


class GatedGraphStep(nn.Module):
    """One round of messages from predecessors and successors, and a gated update (equations 1 to 5)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.incoming = nn.Linear(width, width)
        self.outgoing = nn.Linear(width, width)
        self.cell = nn.GRUCell(2 * width, width)

    def forward(self, state_VD: Tensor, graphs: SessionGraphs) -> Tensor:
        """Return the states of the nodes after one round, [V, D]."""
        received = _mean_along(self.incoming(state_VD), graphs.starts, graphs.ends)
        sent = _mean_along(self.outgoing(state_VD), graphs.ends, graphs.starts)
        updated_VD: Tensor = self.cell(torch.cat([received, sent], dim=1), state_VD)
        return updated_VD


class SRGNN(VectorModel):
    """A recommender that ranks items by the inner product with the session's vector."""

    Config = SRGNNConfig
    config: SRGNNConfig
    known_answers: ClassVar[tuple[str, ...]] = ("cycle",)

    def __init__(self, config: SRGNNConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        self.items = item_table(config.table, catalog, config.width)
        self.graph_step = GatedGraphStep(config.width)
        self.attend_last = nn.Linear(config.width, config.width, bias=False)  # W1
        self.attend_node = nn.Linear(config.width, config.width)  # W2 and c
        self.attention = nn.Linear(config.width, 1, bias=False)  # q
        self.join = nn.Linear(2 * config.width, config.width)  # W3
        self._initialise()

    def examples(self, train: Dataset) -> NextTargets:
        """Return every target with the events before it."""
        return NextTargets(train.interactions, max_length=self.config.max_history_length)

    def training_loss(self, batch: SequenceBatch) -> LossTerms:
        """Return the cross-entropy of the next item over the catalogue."""
        assert batch.targets is not None
        self.items.observe(torch.cat([batch.items.values, batch.targets.values]))
        return LossTerms(full_softmax(self.user_vectors(batch), self.item_vectors(), batch.targets.values))

    def user_vectors(self, batch: SequenceBatch) -> Tensor:
        """Return W3 [last item's state; attention over the events] of each session, [B, D] (equations 6 and 7)."""
        graphs = SessionGraphs.from_histories(batch.items.last(self.config.max_history_length))
        state_VD = self._node_states(graphs)
        last_BD = state_VD[graphs.last]
        gate_VD = torch.sigmoid(self.attend_last(last_BD)[graphs.sessions] + self.attend_node(state_VD))
        weight_V1 = self.attention(gate_VD) * graphs.occurrences[:, None]
        overall_BD = torch.zeros_like(last_BD).index_add(0, graphs.sessions, weight_V1 * state_VD)
        return self.join(torch.cat([last_BD, overall_BD], dim=1))  # type: ignore[no-any-return]

    def item_vectors(self) -> Tensor:
        """Return the output table, [N + 1, D]."""
        return self.items.all_vectors()

    def _node_states(self, graphs: SessionGraphs) -> Tensor:
        """Return the states of the nodes after all rounds, [V, D]."""
        state_VD: Tensor = self.items(graphs.items)
        for _ in range(self.config.steps):
            state_VD = self.graph_step(state_VD, graphs)
        return state_VD

    def _initialise(self) -> None:
        """Initialise all weights uniformly within 1 / sqrt(width), as the authors do."""
        bound = self.config.width**-0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)
        with torch.no_grad():
            self.items.weight[0] = 0


def _mean_along(message_VD: Tensor, source_E: Tensor, target_E: Tensor) -> Tensor:
    """Return the mean of the messages to each node along edges from `source_E` to `target_E`; 0 if there are none."""
    total_VD = torch.zeros_like(message_VD).index_add(0, target_E, message_VD[source_E])
    degree_V = torch.bincount(target_E, minlength=len(message_VD)).clamp(min=1)
    return total_VD / degree_V[:, None]
