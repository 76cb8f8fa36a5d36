"""One level of a trie walk: the children of a batch of beams, and what the generator gives them.

Two layouts give the same answers. `listed` pads each beam's children to the largest degree among the beams: right
where nodes have few of the possible codes. `dense` looks whole rows up in a table over all codes: right where
they have many, as the codes then need no gathering. Neither looks at more than the beams' own children, so the
cost of a step does not depend on the size of the catalogue.

Shapes: B requests, W beams, C codes of the level, D children per beam (C in the dense layout).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Children:
    """Children of beams.

    nodes  [B, W, D] int64; -1 where a beam has fewer than D children, or is dead (parent -1)
    codes  [B, W, D] int64, anything where nodes is -1; None in the dense layout: slot c is code c
    """

    nodes: Tensor
    codes: Tensor | None


def listed_children(parents: Tensor, first_child: Tensor, codes: Tensor) -> Children:
    """Children of `parents [B, W]` (-1: dead), padded to the largest degree among them.

    Node v has the children first_child[v] .. first_child[v + 1] - 1, and `codes[v]` is the code that leads to v.
    """
    alive = parents >= 0
    safe = parents.clamp(min=0)
    first = first_child[safe].long()
    degree = (first_child[safe + 1] - first).masked_fill(~alive, 0)
    slots = torch.arange(int(degree.max()) if degree.numel() else 0, device=parents.device)
    exists = slots < degree[..., None]
    nodes = torch.where(exists, first[..., None] + slots, -1)
    return Children(nodes, codes[nodes].long())


def dense_children(parents: Tensor, table: Tensor, first_node: int) -> Children:
    """Children of `parents [B, W]` (-1: dead) by `table [nodes of the level, C]`: a child's node, or -1.

    `first_node` is the node that row 0 of the table stands for.
    """
    nodes = table[(parents - first_node).clamp(min=0)].long()
    return Children(nodes.masked_fill_((parents < 0)[..., None], -1), None)


def children_logits(logits: Tensor, children: Children) -> Tensor:
    """The entries of `logits [B, W, C]` that belong to the children, [B, W, D]; -inf where there is none."""
    found = logits.clone() if children.codes is None else logits.gather(2, children.codes.clamp(min=0))
    return found.masked_fill_(children.nodes < 0, -torch.inf)


def children_logits_reference(
    logits: Tensor, parents: Tensor, first_child: Tensor, codes: Tensor
) -> list[list[dict[int, float]]]:
    """The same in plain Python: for each beam, code -> logit over its children."""
    answer: list[list[dict[int, float]]] = []
    for row, nodes in enumerate(parents.tolist()):
        answer.append([])
        for beam, node in enumerate(nodes):
            span = range(0) if node < 0 else range(int(first_child[node]), int(first_child[node + 1]))
            legal = [int(codes[child]) for child in span]
            answer[-1].append({code: float(logits[row, beam, code]) for code in legal})
    return answer
