"""How a generator's training meets its use: accuracy with and without the true prefix, and free spelling.

Training predicts each code after the true ones; a search goes on from its own. How far the two part shows here, level
by level, on test requests with the item that was wanted.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.roles import Generator
from nextitem.decoding.beam_search import beam_search
from nextitem.decoding.constraints import Constraints
from nextitem.decoding.trie import PrefixTrie
from nextitem.decoding.unconstrained import items_of, unconstrained_search

LEVEL_FIGURES = ("teacher_forced", "free_running", "survival")
_BATCH = 128


class CodeGenerator(Generator, Protocol):
    """A model that spells items by codes of a table, and can spell what is no item."""

    trie: PrefixTrie
    codes: Tensor  # [N + 1, M] int64


def generates_codes(model: object) -> TypeGuard[CodeGenerator]:
    """Whether it is a CodeGenerator: isinstance does not find a module's parts and buffers from Python 3.12 on."""
    parts = isinstance(getattr(model, "trie", None), PrefixTrie) and isinstance(getattr(model, "codes", None), Tensor)
    return parts and isinstance(model, Generator)


def generation_report(model: CodeGenerator, requests: SequenceBatch, *, beam_width: int, k: int = 10) -> dict[str, Any]:
    """Figures over `requests`, each with its first target.

    levels              for each level: `teacher_forced`, share of requests whose likeliest legal code after the true
                        prefix is the true one; `free_running`, whose code there is the true one where each code before
                        was the likeliest, true or not; `survival`, whose true prefix is among the `beam_width` beams.
                        Training sees the first, use the others
    recall@k            of the constrained search with so many beams, by codes alone: where items share a sequence the
                        smaller number comes first, however the model tells them apart
    free_recall@k       of free spelling, what is no item dropped;  repaired_recall@k: put right by its longest prefix
    invalid@k           share of the k likeliest free sequences that are no item; invalid@2k likewise
    Free spelling knows no exclusions: what a request may not be answered with is left out of its lists afterwards.
    """
    beam_width = max(k, beam_width)  # as the search has it
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
    by_level = zip(*(means.pop(name) for name in LEVEL_FIGURES), strict=True)
    levels = [dict(zip(LEVEL_FIGURES, row, strict=True)) for row in by_level]
    return {"requests": count, "beam_width": beam_width, "levels": levels, **means}


@torch.no_grad()
def _figures(model: CodeGenerator, batch: SequenceBatch, *, beam_width: int, k: int) -> dict[str, Tensor]:
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
        "teacher_forced": _teacher_forced(model, batch, true_nodes),
        "free_running": _same_codes(paths, true_nodes, trie),
        "survival": _holds(alive, true_nodes),
        f"recall@{k}": (found == targets[:, None]).any(1),
        f"free_recall@{k}": _hit(items_of(free, trie, k=beam_width * 2, repair=False), batch, targets, k),
        f"repaired_recall@{k}": _hit(items_of(free, trie, k=beam_width * 2, repair=True), batch, targets, k),
        f"invalid@{k}": 1 - free.valid[:, :k].double().mean(1),
        f"invalid@{2 * k}": 1 - free.valid[:, : 2 * k].double().mean(1),
    }


def _teacher_forced(model: CodeGenerator, batch: SequenceBatch, true_nodes: Tensor) -> Tensor:
    """bool [B, M]: the likeliest of the legal children of the true node above is the true one."""
    trie, constraints = model.trie, Constraints(model.trie, batch)
    rows = torch.arange(batch.num_requests, device=true_nodes.device)
    state, above, codes, right = model.start(batch), torch.zeros_like(true_nodes[:, 0]), None, []
    for level, true in enumerate(true_nodes.T):
        logits, state = model.step(state, codes)
        children = trie.expand(above[:, None], depth=level).nodes[:, 0]
        there = children >= 0
        legal = there & constraints.live(rows[:, None].expand_as(children), children.clamp(min=0))
        named = trie.codes[children.clamp(min=0)].long().clamp(min=0)
        scores = logits[:, 0].gather(1, named).masked_fill(~legal, -torch.inf)
        best = scores.argmax(1, keepdim=True)
        right.append((children.gather(1, best)[:, 0] == true) & legal.gather(1, best)[:, 0])
        above, codes = true, trie.codes[true].long()[:, None]
    return torch.stack(right, dim=1)


def _same_codes(paths: list[Tensor], true_nodes: Tensor, trie: PrefixTrie) -> Tensor:
    """bool [B, M]: the code of each level of a greedy path is the true one; a path that has died has none."""
    own = [trie.codes[path.clamp(min=0)].masked_fill(path < 0, -1) for path in paths]
    return _holds(own, trie.codes[true_nodes])


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
