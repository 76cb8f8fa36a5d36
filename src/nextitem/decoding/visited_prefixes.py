"""What a beam search visits in training: the prefixes that the true one has to beat.

OTM (Zhuo et al., ICML 2020) trains a tree on the nodes that the present model's beam visits. For code sequences the
same: at each depth the search keeps its beams. Where the true prefix has been lost it takes the place of the worst, so
that a search that fails early still teaches the later codes; at the depth of the loss itself it is alone. Set among
likelier ones there, it would teach that these are wrong more often than they are, and draw down all that is popular.

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
    """For each depth 1..M the nodes [B, W + 1]: the true one of `items [B]` first, then the others; -1: no more.

    Where the search did not keep the true one by itself there are no others.

    Nothing is excluded: the target may be in the history.
    """
    free = replace(batch, allowed=None, excluded=None)
    search = Search(trie, Constraints(trie, free), beam_width, "sum", False)
    beams, state = Beams.at_root(batch.num_requests, items.device), generator.start(free)
    positions, visited = trie.positions[items].long(), []
    before = torch.zeros_like(items)
    for depth in range(trie.num_levels):
        if beams.codes is not None:
            state = state.reorder(beams.parents)
        logits, state = generator.step(state, beams.codes)
        true = trie.ancestors(positions, depth=depth + 1)
        found = search.enter_children(beams, trie.expand(beams.nodes, depth=depth), logits, depth)
        parent = (beams.nodes == before[:, None]).int().argmax(1)
        lost = (found.nodes != true[:, None]).all(1)
        beams = _with(found, true, trie.codes[true].long(), parent, _score(beams, logits, parent, trie.codes[true]))
        others = beams.nodes.masked_fill((beams.nodes == true[:, None]) | lost[:, None], -1)
        visited.append(torch.cat([true[:, None], others], dim=1))
        before = true
    return visited


def _score(beams: Beams, logits: Tensor, parent: Tensor, codes: Tensor) -> Tensor:
    """Of the children that `codes [B]` lead to from the beams `parent [B]`."""
    rows = torch.arange(len(parent), device=parent.device)
    return beams.scores[rows, parent] + logits[rows, parent].float().log_softmax(1)[rows, codes.long()]


def _with(beams: Beams, true: Tensor, codes: Tensor, parent: Tensor, scores: Tensor) -> Beams:
    """The beams with the true one, in the worst one's place where it is not among them."""
    lost = (beams.nodes != true[:, None]).all(1).nonzero()[:, 0]
    assert beams.codes is not None
    parts = {name: getattr(beams, name).clone() for name in ("nodes", "scores", "keys", "codes", "parents")}
    for name, value in (("nodes", true), ("scores", scores), ("keys", scores), ("codes", codes), ("parents", parent)):
        parts[name][lost, -1] = value[lost].to(parts[name].dtype)
    return replace(beams, **parts)


def listwise_loss(
    visited: Sequence[Tensor], trie: PrefixTrie, codes: Tensor, log_probs: Callable[[Tensor], Tensor]
) -> Tensor:
    """-log softmax of the true prefix among the `visited`, mean over targets and depths; differentiable.

    `codes [N + 1, M]` are the items'; `log_probs` gives the log-probabilities [B, W] of prefixes [B, W, depth].
    """
    losses = []
    for depth, nodes in enumerate(visited, start=1):
        some_item = trie.items[trie.item_ranges(nodes.clamp(min=0))[0]].long()
        shown = log_probs(codes[some_item][..., :depth]).masked_fill(nodes < 0, -torch.inf)
        losses.append(F.cross_entropy(shown, torch.zeros_like(some_item[:, 0])))
    return torch.stack(losses).mean()
