"""Log-probabilities of lists that are known already, differentiable: what a policy is trained by.

The codes of the lists are fed to the generator by the same `start` and `step` (or `score_children`) by which a search
generates, so a model has no second way of decoding. Dropout is off if the model is in evaluation mode; gradients do not
depend on the mode.

Shapes: B requests, G lists of a request, m items of a list, M codes of an item, D children of a node, C codes of a
level.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.roles import ChildScorer, Generator, GeneratorState
from nextitem.decoding.constraints import Constraints
from nextitem.decoding.trie import PrefixTrie
from nextitem.ops.trie_step import Children, children_logits


@dataclass(frozen=True, eq=False)
class ListScores:
    """What a policy says of lists, code by code.

    Attributes:
        log_probs: [B, G, m, M], log-probability of each code among those that the constraint allows; 0 in padding, -inf
            for a code that it does not allow.
        free_log_probs: [B, G, m, M], the same among all codes that the generator scores, whether allowed or not.
        entropies: [B, G, m, M], entropy in nats of the distribution that a code of `log_probs` was selected from.

    """

    log_probs: Tensor
    free_log_probs: Tensor
    entropies: Tensor


def list_log_probs(
    generator: Generator, batch: SequenceBatch, codes: Tensor, trie: PrefixTrie, *, constrained: bool = True
) -> Tensor:
    """Return the log-probability of each code of some lists, given all codes before it; differentiable.

    Args:
        generator: the model that generates codes. After a complete item its next step begins the next item.
        batch: the requests, with their allow-lists and exclusions.
        codes: [B, G, m, M] int64, the codes of the lists; -1 in padding, which is at the tail of a list.
        trie: the code sequences of the catalogue.
        constrained: softmax over the codes below which the request may have an item that the list does not contain yet,
            as a search with `renormalise`. False: over all codes that the generator scores.

    Returns:
        [B, G, m, M]: 0 in padding; -inf for a code that the constraint does not allow.

    """
    scores = score_lists(generator, batch, codes, trie)
    return scores.log_probs if constrained else scores.free_log_probs


def score_lists(generator: Generator, batch: SequenceBatch, codes: Tensor, trie: PrefixTrie) -> ListScores:
    """Return the log-probabilities of the codes of lists, with and without the constraint, and entropies.

    The arguments are those of `list_log_probs`.
    """
    parts = list(_steps(generator, batch, codes, trie))
    num_missing = codes.shape[2] * codes.shape[3] - len(parts)  # steps at which no list has an item
    zeros = parts[0][0].new_zeros(codes.shape[:2]) if parts else torch.zeros(codes.shape[:2], device=codes.device)
    columns = zip(*parts, *[(zeros, zeros, zeros)] * num_missing, strict=True)
    is_padding = codes < 0
    return ListScores(*(torch.stack(column, 2).view(codes.shape).masked_fill(is_padding, 0) for column in columns))


def _steps(
    generator: Generator, batch: SequenceBatch, codes: Tensor, trie: PrefixTrie
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield for each code of the lists, [B, G] each: log-probability, the same without constraint, and entropy."""
    num_requests, num_lists, num_items, num_levels = codes.shape
    constraints = Constraints(trie, batch)
    all_rows = torch.arange(num_requests, device=codes.device)
    state, last_codes = generator.start(batch), None
    positions = codes.new_empty((num_requests, num_lists, 0))
    for item in range(num_items):
        is_item = codes[:, :, item, 0] >= 0
        if not bool(is_item.any()):
            return
        nodes = torch.where(is_item, trie.root, -1)
        for depth in range(num_levels):
            is_first = last_codes is None
            parents = nodes[:, :1] if is_first and num_lists else nodes
            if is_first:  # the state before the first code has one beam, whatever the lists are
                parents = torch.full_like(parents, trie.root)
            children = trie.expand(parents, depth=depth)
            logits, state = _next_logits(generator, state, last_codes, children)
            if is_first:
                children, logits = _repeated(children, num_lists), logits.expand(-1, num_lists, -1)
                state = state.reorder(torch.zeros_like(nodes))
                parents = nodes
            last_codes = codes[:, :, item, depth].clamp(min=0)
            by_child = _is_child_scorer(generator)
            scores = logits.clone() if by_child else children_logits(logits, children)
            free = scores.clone() if by_child else logits
            constraints.mask_excluded(scores, parents, children, depth=depth, item_positions=positions)
            constraints.mask_disallowed(scores, all_rows, parents, children, depth=depth)
            next_nodes = trie.advance(parents, last_codes)
            slots = last_codes if children.codes is None else next_nodes - trie.first_child[parents.clamp(min=0)]
            is_child = next_nodes >= 0
            log_probs, entropies = _log_prob(scores, slots.where(is_child, 0))
            log_probs = log_probs.masked_fill(~is_child, -torch.inf)
            if by_child:
                free_log_probs = _log_prob(free, slots.where(is_child, 0))[0].masked_fill(~is_child, -torch.inf)
            else:
                free_log_probs = _log_prob(free, last_codes)[0]
            yield log_probs, free_log_probs, entropies
            nodes = next_nodes
        # Any item of the leaf: the constraint only counts how many of a node's items a list contains.
        first = trie.item_starts[nodes.clamp(min=0)].long().masked_fill(nodes < 0, 0)
        positions = torch.cat([positions, first[..., None]], dim=2)


def _next_logits(
    generator: Generator, state: GeneratorState, codes: Tensor | None, children: Children
) -> tuple[Tensor, GeneratorState]:
    """Return the logits of the next codes, or of the children for a ChildScorer, in float32 or float64."""
    if _is_child_scorer(generator):
        logits, state = cast(ChildScorer, generator).score_children(state, codes, children.nodes)
        logits = logits.masked_fill(children.nodes < 0, -torch.inf)
    else:
        logits, state = generator.step(state, codes)
    return logits if logits.dtype == torch.float64 else logits.float(), state


def _is_child_scorer(generator: Generator) -> bool:
    return issubclass(type(generator), ChildScorer)


def _repeated(children: Children, count: int) -> Children:
    """Return the children of the only beam of each request for `count` beams."""
    codes = None if children.codes is None else children.codes.expand(-1, count, -1)
    return Children(children.nodes.expand(-1, count, -1), codes)


def _log_prob(scores: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-softmax of `scores [B, G, D]` at `columns [B, G]`, and the entropy of the softmax.

    Rows without a finite score, those of padding, have the gradient 0.
    """
    if not scores.shape[2]:
        return scores.new_zeros(scores.shape[:2]), scores.new_zeros(scores.shape[:2])
    is_dead = (scores == -torch.inf).all(2)
    scores = scores.masked_fill(is_dead[..., None], 0)
    all_log_probs = scores.log_softmax(2)
    finite = all_log_probs.detach().masked_fill(scores == -torch.inf, 0)
    entropies = -(all_log_probs.detach().exp() * finite).sum(2)
    return all_log_probs.gather(2, columns[..., None])[..., 0], entropies
