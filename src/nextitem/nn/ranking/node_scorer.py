"""NodeScorer: a network that predicts a user's interest in the items below a node of a tree.

Zhu et al., Learning Tree-based Deep Model (TDM), arXiv 1801.02294, figure 2, and the authors' code. The history is cut
into windows, the newest of which is the shortest. Each window becomes the mean of its items, weighted by their
relevance to the node. A small network reads the windows and the node.

Shapes: B requests, L history, K nodes of each request, D width, V windows.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

_HIDDEN = 36  # number of units in the hidden layer of the activation unit, as in the authors' code


class NodeScorer(nn.Module):
    """Network that returns a logit for each node, given a history.

    `windows` are the lengths of the V windows, oldest first. Their sum is the number of events that are read. `hidden`
    are the widths of the hidden layers of the network that reads windows and node.
    """

    def __init__(self, width: int, *, windows: tuple[int, ...], hidden: tuple[int, ...]) -> None:
        super().__init__()
        # First layer of the activation unit on [e_b, e_b * e_n, e_n], in its three parts: the first is computed once
        # for each history item, the last once for each node.
        self.of_item = nn.Linear(width, _HIDDEN)
        self.of_product = nn.Linear(width, _HIDDEN, bias=False)
        self.of_node = nn.Linear(width, _HIDDEN, bias=False)
        self.unit = nn.Sequential(nn.PReLU(), nn.Linear(_HIDDEN, 1))
        layers: list[nn.Module] = []
        inputs = (len(windows) + 1) * width
        for size in hidden:
            layers += [nn.Linear(inputs, size), nn.BatchNorm1d(size), nn.PReLU()]
            inputs = size
        self.layers = nn.Sequential(*layers, nn.Linear(inputs, 1))
        window = torch.cat([torch.full((size,), number) for number, size in enumerate(windows)]).flip(0)
        weights = torch.tensor([1 / size for size in windows])[window]
        # [positions from the newest, V]: weight of a position in the mean of its window.
        pooling = torch.zeros(len(window), len(windows)).scatter_(1, window[:, None], weights[:, None])
        self.register_buffer("pooling", pooling, persistent=False)

    @property
    def synchronised(self) -> dict[str, Literal["sum", "mean"]]:
        """The running statistics of the layers (roles.Synchronised)."""
        norms = [name for name, layer in self.layers.named_children() if isinstance(layer, nn.BatchNorm1d)]
        return {f"layers.{name}.{statistic}": "mean" for name in norms for statistic in ("running_mean", "running_var")}

    def forward(self, history_BLD: Tensor, lengths_B: Tensor, nodes_BKD: Tensor, real_BK: Tensor) -> Tensor:
        """Return the logits [B, K] of nodes for right-padded histories, the newest item last.

        `real_BK` is False for padding among the nodes, whose logits are 0.
        """
        L = history_BLD.shape[1]
        hidden = self.of_product(history_BLD[:, None] * nodes_BKD[:, :, None])  # [B, K, L, _HIDDEN]
        hidden = hidden + self.of_item(history_BLD)[:, None] + self.of_node(nodes_BKD)[:, :, None]
        weight_BKL = self.unit(hidden)[..., 0]  # not normalised
        place = lengths_B[:, None] - 1 - torch.arange(L, device=lengths_B.device)
        pooling_BLV = self.pooling[place.clamp(min=0)] * (place >= 0)[..., None]  # type: ignore[index]
        # Windows do not overlap, so one product with the items arranged window by window computes all of them.
        by_window = (pooling_BLV[..., None] * history_BLD[:, :, None]).flatten(2)  # [B, L, V D]
        inputs_BKE = torch.cat([weight_BKL @ by_window, nodes_BKD], dim=2)
        # Only real nodes are passed on, so that they alone decide the batch statistics.
        logits = inputs_BKE.new_zeros(real_BK.shape)
        logits[real_BK] = self.layers(inputs_BKE[real_BK])[:, 0]
        return logits
