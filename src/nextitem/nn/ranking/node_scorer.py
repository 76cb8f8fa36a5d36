"""NodeScorer: how much a user wants what lies below a node of a tree.

Zhu et al., Learning Tree-based Deep Model (TDM), arXiv 1801.02294, figure 2, and the authors' code. The history is cut
into windows, the newest the shortest; each is summed up by how its items go with the node; a small network reads the
windows and the node.

Shapes: B requests, L history, K nodes of a request, D width, V windows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_HIDDEN = 36  # units of the activation unit's hidden layer, in the authors' code


class NodeScorer(nn.Module):
    """Logits of nodes. `windows`: lengths of the V windows, oldest first; together the history that is read."""

    def __init__(self, width: int, *, windows: tuple[int, ...], hidden: tuple[int, ...]) -> None:
        super().__init__()
        # The activation unit's first layer on [e_b, e_b * e_n, e_n], in its three parts: the first and the last are
        # made once a history item and once a node.
        self.of_item = nn.Linear(width, _HIDDEN)
        self.of_product = nn.Linear(width, _HIDDEN, bias=False)
        self.of_node = nn.Linear(width, _HIDDEN, bias=False)
        self.unit = nn.Sequential(nn.PReLU(), nn.Linear(_HIDDEN, 1))
        layers: list[nn.Module] = []
        before = (len(windows) + 1) * width
        for size in hidden:
            layers += [nn.Linear(before, size), nn.BatchNorm1d(size), nn.PReLU()]
            before = size
        self.layers = nn.Sequential(*layers, nn.Linear(before, 1))
        window = torch.cat([torch.full((size,), number) for number, size in enumerate(windows)]).flip(0)
        share = torch.tensor([1 / size for size in windows])[window]
        # [positions from the newest, V]: the share that a position has in its window's mean.
        pooling = torch.zeros(len(window), len(windows)).scatter_(1, window[:, None], share[:, None])
        self.register_buffer("pooling", pooling, persistent=False)

    def forward(self, history_BLD: Tensor, lengths_B: Tensor, nodes_BKD: Tensor, real_BK: Tensor) -> Tensor:
        """Logits [B, K] of nodes for right-padded histories, the newest item last; 0 where a node is not real."""
        L = history_BLD.shape[1]
        hidden = self.of_product(history_BLD[:, None] * nodes_BKD[:, :, None])  # [B, K, L, _HIDDEN]
        hidden = hidden + self.of_item(history_BLD)[:, None] + self.of_node(nodes_BKD)[:, :, None]
        weight_BKL = self.unit(hidden)[..., 0]  # not normalised
        place = lengths_B[:, None] - 1 - torch.arange(L, device=lengths_B.device)
        share_BLV = self.pooling[place.clamp(min=0)] * (place >= 0)[..., None]  # type: ignore[index]
        # Windows do not overlap, so all of them are one product with the items laid out window by window.
        laid_out = (share_BLV[..., None] * history_BLD[:, :, None]).flatten(2)  # [B, L, V D]
        read_BKE = torch.cat([weight_BKL @ laid_out, nodes_BKD], dim=2)
        # Only real nodes, so that batch statistics are theirs.
        logits = read_BKE.new_zeros(real_BK.shape)
        logits[real_BK] = self.layers(read_BKE[real_BK])[:, 0]
        return logits
