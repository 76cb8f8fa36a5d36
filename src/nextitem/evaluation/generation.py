"""Generation quality: accuracy of codes with and without the true prefix, and unconstrained generation.

Training predicts each code after the true codes of the earlier levels; a search continues from the codes that it
generated itself. This report measures how far the two differ, level by level, on test requests with their target.

A guided generator is measured with its guide, as it searches; `without_guide` returns the generator alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.roles import Generator
from nextitem.decoding.beam_search import Level, beam_search
from nextitem.decoding.constraints import Constraints
from nextitem.decoding.guidance import GuidedRecommender
from nextitem.decoding.guide import Guide, NodeGuide
from nextitem.decoding.trie import PrefixTrie
from nextitem.decoding.unconstrained import items_of, unconstrained_search

LEVEL_FIGURES = ("teacher_forced", "free_running", "survival")
_BATCH_SIZE = 128


class CodeGenerator(Generator, Protocol):
    """A model that generates codes of a table, and can generate sequences that belong to no item."""

    trie: PrefixTrie
    codes: Tensor  # [N + 1, M]


def generates_codes(model: object) -> TypeGuard[CodeGenerator]:
    """Return whether a model is a CodeGenerator.

    isinstance cannot decide it: from Python 3.12 on, it does not find the submodules and buffers of a module.
    """
    has_parts = isinstance(getattr(model, "trie", None), PrefixTrie) and isinstance(
        getattr(model, "codes", None), Tensor
    )
    return has_parts and isinstance(model, Generator)


def generation_report(model: CodeGenerator, requests: SequenceBatch, *, beam_width: int, k: int = 10) -> dict[str, Any]:
    """Return the generation quality over `requests`, measured on the first target of each.

    Unconstrained generation ignores exclusions and allow-lists: items that a request excludes or does not allow are
    dropped from its list afterwards. It has no guide, as a guide knows nothing of sequences of no item.

    Args:
        model: the model that generates codes.
        requests: requests with targets. Requests without a target are skipped.
        beam_width: number of beams, at least `k`.
        k: length of the lists.

    Returns:
        JSON values with these keys.

        * requests, beam_width: number of measured requests; number of beams.
        * guided: whether a guide steers the search.
        * levels: for each level, three shares of requests. Training optimises the first; inference depends on the
          others.
          `teacher_forced`: the best legal code after the true prefix is the true code.
          `free_running`: the greedy code is the true code, after a prefix of greedy codes, true or not.
          `survival`: the true prefix is among the beams.
        * recall@k: of the constrained search, by codes alone. If items share a sequence, the smaller item number comes
          first, even if the model can tell them apart.
        * free_recall@k: of unconstrained generation, sequences of no item dropped.
        * repaired_recall@k: of unconstrained generation, sequences of no item replaced by the items below their longest
          existing prefix.
        * invalid@k, invalid@2k: share of sequences that belong to no item, among the k or 2k likeliest of unconstrained
          generation.

    """
    beam_width = max(k, beam_width)  # as in the search

    def figures(batch: SequenceBatch) -> dict[str, Tensor]:
        targets, trie = _targets(batch), model.trie
        survival, items = _survival(model, batch, beam_width=beam_width, k=k)
        free = unconstrained_search(model, batch, trie, beam_width=2 * beam_width)
        return {
            **_without_beams(model, batch),
            "survival": survival,
            f"recall@{k}": (items == targets[:, None]).any(1),
            f"free_recall@{k}": _has_hit(items_of(free, trie, k=beam_width * 2, repair=False), batch, targets, k),
            f"repaired_recall@{k}": _has_hit(items_of(free, trie, k=beam_width * 2, repair=True), batch, targets, k),
            f"invalid@{k}": 1 - free.valid[:, :k].double().mean(1),
            f"invalid@{2 * k}": 1 - free.valid[:, : 2 * k].double().mean(1),
        }

    num_requests, means = _means(figures, requests)
    by_level = zip(*(means.pop(name) for name in LEVEL_FIGURES), strict=True)
    levels = [dict(zip(LEVEL_FIGURES, row, strict=True)) for row in by_level]
    facts = {"requests": num_requests, "beam_width": beam_width, "guided": _is_guided(model)}
    return {**facts, "levels": levels, **means}


def prefix_survival(model: CodeGenerator, requests: SequenceBatch, *, beam_widths: Sequence[int]) -> dict[str, Any]:
    """Return, for each level, how often the true prefix survives in searches of several widths.

    Measured on the first target of each request; requests without a target are skipped.

    Args:
        model: the model that generates codes.
        requests: requests with targets.
        beam_widths: numbers of beams.

    Returns:
        JSON values: `requests`, the number of measured requests; `guided`, whether a guide steers the search;
        `teacher_forced` and `free_running`, one share of requests for each level, as in `generation_report`; and
        `survival`, the same for each number of beams.

    """

    def figures(batch: SequenceBatch) -> dict[str, Tensor]:
        searches = {str(width): _survival(model, batch, beam_width=width, k=1)[0] for width in beam_widths}
        return {**_without_beams(model, batch), **searches}

    num_requests, means = _means(figures, requests)
    survival = {width: means.pop(str(width)) for width in beam_widths}
    return {"requests": num_requests, "guided": _is_guided(model), **means, "survival": survival}


def _means(
    figures: Callable[[SequenceBatch], dict[str, Tensor]], requests: SequenceBatch
) -> tuple[int, dict[str, Any]]:
    """Return the number of requests with a target, and the mean of each figure over them.

    `figures` returns the values of a batch of such requests, [B] or by level [B, M].
    """
    sums: dict[str, Tensor] = {}
    num_requests = 0
    for batch in requests.split(_BATCH_SIZE):
        assert batch.targets is not None
        judged = batch.select((batch.targets.lengths > 0).nonzero()[:, 0])
        if judged.num_requests == 0:
            continue
        with torch.no_grad():
            for name, values in figures(judged).items():
                sums[name] = sums.get(name, torch.zeros(())) + values.double().sum(0)
        num_requests += judged.num_requests
    return num_requests, {name: (total / max(1, num_requests)).tolist() for name, total in sums.items()}


def _targets(batch: SequenceBatch) -> Tensor:
    """Return the first target of each request, [B]."""
    assert batch.targets is not None
    return batch.targets.values[batch.targets.offsets[:-1]]


def _true_nodes(batch: SequenceBatch, trie: PrefixTrie) -> Tensor:
    """Return the node of the target at each depth from 1 on, [B, M]."""
    positions = trie.positions[_targets(batch)].long()
    return torch.stack([trie.ancestors(positions, depth=depth) for depth in range(1, trie.num_levels + 1)], dim=1)


def _is_guided(model: CodeGenerator) -> bool:
    """Return whether a guide steers the searches of a model."""
    return isinstance(model, GuidedRecommender) and model.is_guided


def _guide(model: CodeGenerator, batch: SequenceBatch) -> Guide | None:
    """Return the guide that steers the search for these requests; None without one."""
    return model.guidance.guide(batch) if isinstance(model, GuidedRecommender) and model.guidance is not None else None


def _searched(model: CodeGenerator, batch: SequenceBatch, *, beam_width: int, k: int) -> tuple[list[Tensor], Tensor]:
    """Return the nodes of the beams after each level, M times [B, W], and the items that are found, [B, k].

    Beams that died leave fewer columns.
    """
    levels: list[Level] = []
    guide = _guide(model, batch)
    answer = beam_search(model, batch, model.trie, k=k, beam_width=beam_width, guide=guide, watch=levels.append)
    nodes = {level.depth: level.selected.nodes for level in levels}
    nothing = answer.item_ids[:, :0]
    return [nodes.get(depth, nothing) for depth in range(1, model.trie.num_levels + 1)], answer.item_ids


def _survival(model: CodeGenerator, batch: SequenceBatch, *, beam_width: int, k: int) -> tuple[Tensor, Tensor]:
    """Return whether the true prefix is among the beams, bool [B, M], and the items that the search finds, [B, k]."""
    beams, items = _searched(model, batch, beam_width=beam_width, k=k)
    return _contains(beams, _true_nodes(batch, model.trie)), items


def _without_beams(model: CodeGenerator, batch: SequenceBatch) -> dict[str, Tensor]:
    """Return the figures that do not depend on the number of beams, bool [B, M] each."""
    true_nodes = _true_nodes(batch, model.trie)
    greedy, _ = _searched(model, batch, beam_width=1, k=1)
    return {
        "teacher_forced": _teacher_forced(model, batch, true_nodes),
        "free_running": _same_codes(greedy, true_nodes, model.trie),
    }


def _teacher_forced(model: CodeGenerator, batch: SequenceBatch, true_nodes: Tensor) -> Tensor:
    """Return whether the best legal child of the true parent is the true node, bool [B, M]."""
    trie, constraints = model.trie, Constraints(model.trie, batch)
    guide = _guide(model, batch)
    node_guide = None if guide is None else NodeGuide(guide, trie, constraints)
    rows = torch.arange(batch.num_requests, device=true_nodes.device)
    state, parents, codes, is_right = model.start(batch), torch.zeros_like(true_nodes[:, 0]), None, []
    prefix_log_probs = torch.zeros((batch.num_requests, 1), device=true_nodes.device)
    for level, true in enumerate(true_nodes.T):
        logits, state = model.step(state, codes)
        children = trie.expand(parents[:, None], depth=level).nodes[:, 0]
        is_child = children >= 0
        is_legal = is_child & constraints.live(rows[:, None].expand_as(children), children.clamp(min=0))
        child_codes = trie.codes[children.clamp(min=0)].long().clamp(min=0)
        log_probs = logits[:, 0].float().log_softmax(1).gather(1, child_codes)
        scores = log_probs.masked_fill(~is_legal, -torch.inf)
        if node_guide is not None:  # it mixes probabilities of whole prefixes
            scores = node_guide.mix((prefix_log_probs + scores)[:, None], children[:, None], depth=level + 1)[:, 0]
        best = scores.argmax(1, keepdim=True)
        is_right.append((children.gather(1, best)[:, 0] == true) & is_legal.gather(1, best)[:, 0])
        prefix_log_probs += log_probs.masked_fill(children != true[:, None], -torch.inf).amax(1, keepdim=True)
        parents, codes = true, trie.codes[true].long()[:, None]
    return torch.stack(is_right, dim=1)


def _same_codes(paths: list[Tensor], true_nodes: Tensor, trie: PrefixTrie) -> Tensor:
    """Return whether the code of each level of a greedy path is the true code, bool [B, M].

    A path that has died has no code.
    """
    greedy_codes = [trie.codes[path.clamp(min=0)].masked_fill(path < 0, -1) for path in paths]
    return _contains(greedy_codes, trie.codes[true_nodes])


def _contains(nodes: list[Tensor], true_nodes: Tensor) -> Tensor:
    """Return whether the nodes of each level, M times [B, W], contain the true node of that level, bool [B, M]."""
    return torch.stack([(part == true[:, None]).any(1) for part, true in zip(nodes, true_nodes.T, strict=True)], dim=1)


def _has_hit(items: Tensor, batch: SequenceBatch, targets: Tensor, k: int) -> Tensor:
    """Return whether the target is among the first k items that a request allows and does not exclude, bool [B]."""
    is_legal = items > 0
    if batch.allowed is not None:
        is_legal &= batch.allowed.expand(len(items), -1).gather(1, items)
    if batch.excluded is not None:
        excluded = batch.excluded.to_padded()
        is_legal &= ~(items[:, :, None] == excluded[:, None, :]).any(2)
    return ((items == targets[:, None]) & is_legal & (is_legal.cumsum(1) <= k)).any(1)
