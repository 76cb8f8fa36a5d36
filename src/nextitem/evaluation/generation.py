"""How a generator's training meets its use: accuracy with and without the true prefix, and free spelling.

Training predicts each code after the true ones; a search goes on from its own. Where the two part shows here, level by
level, on test requests with the item that was wanted.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.roles import Generator
from nextitem.decoding.beam_search import beam_search
from nextitem.decoding.trie import PrefixTrie
from nextitem.decoding.unconstrained import items_of, unconstrained_search

_BATCH = 128


@runtime_checkable
class Speller(Generator, Protocol):
    """A model that spells items by codes of a table, and can spell what is no item."""

    trie: PrefixTrie
    codes: Tensor  # [N + 1, M] int64


def generation_report(model: Speller, requests: SequenceBatch, *, beam_width: int = 20, k: int = 10) -> dict[str, Any]:
    """Figures over `requests`, each with its first target.

    levels              for each level: `teacher_forced`, share of requests whose likeliest code after the true prefix
                        is the true one; `free_running`, whose greedy path has been true so far; `survival`, whose true
                        prefix is among the `beam_width` beams
    recall@k            of the constrained search with so many beams
    free_recall@k       of free spelling, what is no item dropped;  repaired_recall@k: put right by its longest prefix
    invalid@k           share of the k likeliest free sequences that are no item; invalid@2k likewise
    Free spelling knows no exclusions: what a request may not be answered with is left out of its lists afterwards.
    """
    sums: dict[str, Tensor] = {}
    count = 0
    for batch in requests.split(_BATCH):
        assert batch.targets is not None
        asked = batch.select((batch.targets.lengths > 0).nonzero()[:, 0])
        if asked.num_requests == 0:
            continue
        for name, values in _figures(model, asked, beam_width=beam_width, k=k).items():
            sums[name] = sums.get(name, torch.zeros(())) + values.double().sum(0)
        count += asked.num_requests
    means = {name: (total / max(1, count)).tolist() for name, total in sums.items()}
    names = ("teacher_forced", "free_running", "survival")
    levels = [dict(zip(names, row, strict=True)) for row in zip(*(means.pop(name) for name in names), strict=True)]
    return {"requests": count, "beam_width": beam_width, "levels": levels, **means}


@torch.no_grad()
def _figures(model: Speller, batch: SequenceBatch, *, beam_width: int, k: int) -> dict[str, Tensor]:
    """One row a request; the first three by level."""
    assert batch.targets is not None
    targets, trie = batch.targets.values[batch.targets.offsets[:-1]], model.trie
    places = trie.positions[targets].long()
    depths = range(1, trie.num_levels + 1)
    true_nodes = torch.stack([trie.ancestors(places, depth=depth) for depth in depths], dim=1)
    kept: dict[int, Tensor] = {}
    greedy: dict[int, Tensor] = {}
    found = beam_search(model, batch, trie, k=k, beam_width=beam_width, watch=kept.__setitem__).item_ids
    beam_search(model, batch, trie, k=1, beam_width=1, watch=greedy.__setitem__)
    # Beams that died leave fewer columns, or no entry at all.
    alive = [kept.get(depth, true_nodes[:, :0]) for depth in depths]
    paths = [greedy.get(depth, true_nodes[:, :0]) for depth in depths]
    free = unconstrained_search(model, batch, trie, beam_width=2 * max(k, beam_width))
    return {
        "teacher_forced": _teacher_forced(model, batch, model.codes[targets]),
        "free_running": _holds(paths, true_nodes),
        "survival": _holds(alive, true_nodes),
        f"recall@{k}": (found == targets[:, None]).any(1),
        f"free_recall@{k}": _hit(items_of(free, trie, k=beam_width * 2, repair=False), batch, targets, k),
        f"repaired_recall@{k}": _hit(items_of(free, trie, k=beam_width * 2, repair=True), batch, targets, k),
        f"invalid@{k}": 1 - free.valid[:, :k].double().mean(1),
        f"invalid@{2 * k}": 1 - free.valid[:, : 2 * k].double().mean(1),
    }


def _teacher_forced(model: Speller, batch: SequenceBatch, codes: Tensor) -> Tensor:
    state, right = model.start(batch), []
    for level in range(codes.shape[1]):
        logits, state = model.step(state, codes[:, level - 1 : level] if level else None)
        right.append(logits[:, 0].argmax(1) == codes[:, level])
    return torch.stack(right, dim=1)


def _holds(nodes: list[Tensor], true_nodes: Tensor) -> Tensor:
    return torch.stack([(part == true[:, None]).any(1) for part, true in zip(nodes, true_nodes.T, strict=True)], dim=1)


def _hit(items: Tensor, batch: SequenceBatch, targets: Tensor, k: int) -> Tensor:
    """Whether the target is among the first k items that the request may be answered with."""
    legal = items > 0
    if batch.allowed is not None:
        legal &= batch.allowed.expand(len(items), -1).gather(1, items)
    if batch.excluded is not None:
        left_out = batch.excluded.to_padded()
        legal &= ~(items[:, :, None] == left_out[:, None, :]).any(2)
    return ((items == targets[:, None]) & legal & (legal.cumsum(1) <= k)).any(1)
