"""One level of a trie walk: the children of a batch of beams, and their logits.

Two layouts return the same results. `listed` pads the children of each beam to the largest degree among the beams: it
is faster if nodes have few of the possible codes. `dense` looks up whole rows of a table over all codes: it is faster
if nodes have many of them, as the codes then need no gathering. Both read only the children of the beams, so the cost
of a step does not depend on the size of the catalogue.

Shapes: B requests, W beams, C codes of the level, D children per beam (C in the dense layout).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Children:
    """Child nodes of a batch of beams, with the codes that lead to them.

    Attributes:
        nodes: [B, W, D] int64; -1 is padding: the beam has fewer than D children, or is dead (parent -1).
        codes: [B, W, D] int64, undefined if the node is -1; None in the dense layout, where entry c has code c.

    """

    nodes: Tensor
    codes: Tensor | None


def listed_children(parents: Tensor, first_child: Tensor, codes: Tensor) -> Children:
    """Return the children of the nodes `parents [B, W]` (-1: dead beam), padded to the largest degree among them.

    Node v has the children first_child[v] .. first_child[v + 1] - 1, and `codes[v]` is the code that leads to v.
    """
    is_alive = parents >= 0
    valid_parents = parents.clamp(min=0)
    first = first_child[valid_parents].long()
    degree = (first_child[valid_parents + 1] - first).masked_fill(~is_alive, 0)
    numbers = torch.arange(int(degree.max()) if degree.numel() else 0, device=parents.device)
    is_child = numbers < degree[..., None]
    nodes = torch.where(is_child, first[..., None] + numbers, -1)
    return Children(nodes, codes[nodes].long())


def dense_children(parents: Tensor, table: Tensor, first_node: int) -> Children:
    """Return the children of the nodes `parents [B, W]` (-1: dead beam), looked up in a dense table.

    `table [nodes of the level, C]` contains the child node for each node and code, or -1. Its row 0 belongs to the node
    `first_node`.
    """
    nodes = table[(parents - first_node).clamp(min=0)].long()
    return Children(nodes.masked_fill_((parents < 0)[..., None], -1), None)


def children_logits(logits: Tensor, children: Children) -> Tensor:
    """Return the entries of `logits [B, W, C]` that belong to the children, [B, W, D]; -inf for padding."""
    child_logits = logits.clone() if children.codes is None else logits.gather(2, children.codes.clamp(min=0))
    return child_logits.masked_fill_(children.nodes < 0, -torch.inf)


def logits_by_code(child_logits: Tensor, children: Children, num_codes: int) -> Tensor:
    """Return the logits of children, [B, W, D], as logits of codes, [B, W, C]; -inf for codes without a child."""
    child_logits = child_logits.masked_fill(children.nodes < 0, -torch.inf)
    if children.codes is None:
        return child_logits
    # The last column is for padding.
    by_code = child_logits.new_full((*child_logits.shape[:2], num_codes + 1), -torch.inf)
    columns = torch.where(children.nodes >= 0, children.codes, num_codes)
    return by_code.scatter_(2, columns, child_logits)[..., :num_codes]


def children_logits_reference(
    logits: Tensor, parents: Tensor, first_child: Tensor, codes: Tensor
) -> list[list[dict[int, float]]]:
    """Return the logits of the children of each beam as code -> logit, computed in plain Python."""
    answer: list[list[dict[int, float]]] = []
    for row, nodes in enumerate(parents.tolist()):
        answer.append([])
        for beam, node in enumerate(nodes):
            child_nodes = range(0) if node < 0 else range(int(first_child[node]), int(first_child[node + 1]))
            child_codes = [int(codes[child]) for child in child_nodes]
            answer[-1].append({code: float(logits[row, beam, code]) for code in child_codes})
    return answer
