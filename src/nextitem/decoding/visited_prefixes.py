"""Prefixes that a beam search visits in training: the true prefix has to beat them.

OTM (Zhuo et al., ICML 2020) trains a tree on the nodes that the current model's beam visits. Here the same is done for
code sequences: at each depth the search keeps its beams. If the true prefix has been lost, it replaces the worst beam,
so that a search that fails early still teaches the later codes. At the depth of the loss itself it stands alone. Among
likelier prefixes it would teach that these are wrong more often than they are, and would lower the scores of all
popular ones.

Shapes: B targets, W beams, M levels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from nextitem.core.batch import SequenceBatch
from nextitem.core.roles import Generator
from nextitem.decoding.beam_search import Beams, Search
from nextitem.decoding.constraints import Constraints
from nextitem.decoding.trie import PrefixTrie


@torch.no_grad()
def visited_prefixes(
    generator: Generator, batch: SequenceBatch, trie: PrefixTrie, items: Tensor, *, beam_width: int
) -> list[Tensor]:
    """Return the nodes that a beam search for the targets `items [B]` visits, for each depth 1..M.

    Each entry is [B, W + 1] int64: the true node first, then the others; -1 if there are no more. If the search did not
    keep the true node by itself, there are no others. Nothing is excluded, as the target may be in the history.
    """
    free = replace(batch, allowed=None, excluded=None)
    search = Search(trie, Constraints(trie, free), beam_width, "sum", False)
    beams, state = Beams.at_root(batch.num_requests, items.device), generator.start(free)
    positions, visited = trie.positions[items].long(), []
    true_parents = torch.zeros_like(items)
    for depth in range(trie.num_levels):
        if beams.codes is not None:
            state = state.reorder(beams.parents)
        logits, state = generator.step(state, beams.codes)
        true_nodes = trie.ancestors(positions, depth=depth + 1)
        entered = search.enter_children(beams, trie.expand(beams.nodes, depth=depth), logits, depth)
        parent = (beams.nodes == true_parents[:, None]).int().argmax(1)
        is_lost = (entered.nodes != true_nodes[:, None]).all(1)
        true_scores = _score(beams, logits, parent, trie.codes[true_nodes])
        beams = _with_true_nodes(entered, true_nodes, trie.codes[true_nodes].long(), parent, true_scores)
        others = beams.nodes.masked_fill((beams.nodes == true_nodes[:, None]) | is_lost[:, None], -1)
        visited.append(torch.cat([true_nodes[:, None], others], dim=1))
        true_parents = true_nodes
    return visited


def _score(beams: Beams, logits: Tensor, parent: Tensor, codes: Tensor) -> Tensor:
    """Return the scores [B] of the children to which `codes [B]` lead from the beams `parent [B]`."""
    rows = torch.arange(len(parent), device=parent.device)
    return beams.scores[rows, parent] + logits[rows, parent].float().log_softmax(1)[rows, codes.long()]


def _with_true_nodes(beams: Beams, true_nodes: Tensor, codes: Tensor, parent: Tensor, scores: Tensor) -> Beams:
    """Return the beams with the true node of each request; it replaces the worst beam if it is not among them."""
    lost_rows = (beams.nodes != true_nodes[:, None]).all(1).nonzero()[:, 0]
    assert beams.codes is not None
    parts = {name: getattr(beams, name).clone() for name in ("nodes", "scores", "sort_keys", "codes", "parents")}
    for name, value in (
        ("nodes", true_nodes),
        ("scores", scores),
        ("sort_keys", scores),
        ("codes", codes),
        ("parents", parent),
    ):
        parts[name][lost_rows, -1] = value[lost_rows].to(parts[name].dtype)
    return replace(beams, **parts)


def listwise_loss(
    visited: Sequence[Tensor], trie: PrefixTrie, codes: Tensor, log_probs: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return -log softmax of the true prefix among the visited ones, mean over targets and depths; differentiable.

    Args:
        visited: the nodes of each depth, as `visited_prefixes` returns them.
        trie: the code sequences of the catalogue.
        codes: [N + 1, M], the codes of the items.
        log_probs: returns the log-probabilities [B, W] of prefixes [B, W, depth].

    """
    losses = []
    for depth, nodes in enumerate(visited, start=1):
        some_item = trie.items[trie.item_ranges(nodes.clamp(min=0))[0]].long()
        logits = log_probs(codes[some_item][..., :depth]).masked_fill(nodes < 0, -torch.inf)
        losses.append(F.cross_entropy(logits, torch.zeros_like(some_item[:, 0])))
    return torch.stack(losses).mean()


def prefix_log_probs(logits: Sequence[Tensor], codes_BWS: Tensor) -> Tensor:
    """Return the log-probabilities [B, W] of prefixes, the sums over their codes; `logits` are [B * W, C] a level."""
    parts = [
        F.cross_entropy(level_logits, codes.flatten(), reduction="none")
        for level_logits, codes in zip(logits, codes_BWS.unbind(2), strict=True)
    ]
    return -torch.stack(parts).sum(0).view(codes_BWS.shape[:2])
