"""Rollouts of a policy: the likeliest lists of each request, or sampled ones, with the probabilities of their codes.

Shapes: B requests, G lists of a request, m items of a list, M codes of an item, W beams.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.recommender import Recommender
from nextitem.core.roles import Generator
from nextitem.core.rollouts import Rollouts
from nextitem.decoding.beam_search import Beams, Search
from nextitem.decoding.constraints import Constraints
from nextitem.decoding.list_log_probs import list_log_probs
from nextitem.decoding.sampling import Sampling
from nextitem.decoding.trie import PrefixTrie


@torch.no_grad()
def search_lists(
    generator: Generator,
    batch: SequenceBatch,
    trie: PrefixTrie,
    *,
    num_lists: int,
    items_per_list: int = 1,
    beam_width: int | None = None,
    sampling: Sampling | None = None,
    version: str | None = None,
    is_scored: bool = True,
) -> Rollouts:
    """Return the likeliest lists of each request, best first, or lists that are sampled without replacement.

    A list is generated item by item, without repetitions; each item begins at the root of the trie. The order is that
    of the probabilities after the constraint.

    Args:
        generator: the policy.
        batch: the requests, with their allow-lists and exclusions.
        trie: the code sequences of the catalogue.
        num_lists: number of lists of each request (G).
        items_per_list: number of items of a list (m).
        beam_width: number of beams (W), raised to `num_lists` if it is smaller; None: `num_lists`.
        sampling: sample the lists instead of taking the likeliest ones, in the order in which they are sampled. The
            log-probabilities are those of the policy, whatever the temperatures and cuts of the sampling.
        version: version of the policy; None: the fingerprint of its weights, which costs a pass over them.
        is_scored: whether log-probabilities are computed; False: they are 0, for a caller who computes them anyway.

    Returns:
        Lists [B, G]. If a request allows fewer lists, the others are empty and not legal. If it allows fewer items than
        m, its lists are shorter.

    """
    if num_lists < 1 or items_per_list < 1:
        raise ValueError(f"num_lists and items_per_list must be at least 1, got {num_lists} and {items_per_list}")
    width = max(num_lists, beam_width or 0)
    device, shape = batch.items.offsets.device, (batch.num_requests, num_lists, items_per_list)
    positions = torch.full(shape, -1, dtype=torch.int64, device=device)
    if batch.num_requests and trie.num_items:
        search = Search(trie, Constraints(trie, batch), width, "sum", sampling is None, sampling)
        beams, state = Beams.at_root(batch.num_requests, device), generator.start(batch)
        for count in range(1, items_per_list + 1):
            beams, state = search.generate_item(generator, state, beams, max_beams=width)
            if beams.scores.shape[1] == 0:
                break
            best = beams.item_positions[:, :num_lists]
            # A request without further items keeps the lists that it has.
            row = (beams.scores[:, 0] > -torch.inf).nonzero()[:, 0]
            is_alive = (beams.scores[row, :num_lists] > -torch.inf)[..., None]
            positions[row, :, :count] = -1
            positions[row, : best.shape[1], :count] = best[row].where(is_alive, -1)
    codes = codes_at(trie, positions)
    log_probs = torch.zeros(codes.shape, device=device)
    if is_scored:
        log_probs = list_log_probs(generator, batch, codes, trie).float()
    if version is None:
        version = generator.weights_fingerprint() if isinstance(generator, Recommender) else ""
    item_ids = (
        trie.items[positions.clamp(min=0)].long().masked_fill(positions < 0, 0) if trie.num_items else positions + 1
    )
    return Rollouts(item_ids, codes, log_probs, positions[..., 0] >= 0, version)


@torch.no_grad()
def sample_freely(
    generator: Generator,
    batch: SequenceBatch,
    trie: PrefixTrie,
    *,
    num_lists: int,
    random: torch.Generator,
    version: str = "",
) -> Rollouts:
    """Sample lists of one item without any constraint, with replacement, to see how often the policy writes no item.

    Args:
        generator: the policy.
        batch: the requests.
        trie: the code sequences of the catalogue.
        num_lists: number of samples of each request (G).
        random: source of the samples.
        version: version of the policy.

    Returns:
        Lists [B, G] of one item, whose log-probabilities are those without constraint. A list is legal if an item has
        the codes and the request allows it.

    """
    state, last_codes = generator.start(batch), None
    columns, log_probs = [], []
    for _ in range(trie.num_levels):
        logits, state = generator.step(state, last_codes)
        if last_codes is None:
            logits = logits.expand(-1, num_lists, -1)
            state = state.reorder(torch.zeros(logits.shape[:2], dtype=torch.int64, device=logits.device))
        all_log_probs = logits.float().log_softmax(2)
        flat = all_log_probs.exp().flatten(0, 1).cpu()
        last_codes = torch.multinomial(flat, 1, generator=random).view(logits.shape[:2]).to(logits.device)
        columns.append(last_codes)
        log_probs.append(all_log_probs.gather(2, last_codes[..., None])[..., 0])
    codes = torch.stack(columns, 2)
    items = legal_items(trie, batch, codes)
    return Rollouts(items[..., None], codes[:, :, None], torch.stack(log_probs, 2)[:, :, None], items > 0, version)


def legal_items(trie: PrefixTrie, batch: SequenceBatch, codes: Tensor) -> Tensor:
    """Return the first item with the codes [B, G, M] that a request allows, [B, G] int64; 0 if there is none."""
    nodes = torch.full(codes.shape[:2], trie.root, dtype=torch.int64, device=codes.device)
    for level in range(codes.shape[2]):
        nodes = torch.where(nodes >= 0, trie.advance(nodes, codes[..., level]), -1)
    none = torch.empty((*nodes.shape, 0), dtype=torch.int64, device=codes.device)
    beams, positions = Constraints(trie, batch).items_of_leaves(nodes, limit=1, item_positions=none)
    items = torch.zeros(nodes.numel(), dtype=torch.int64, device=codes.device)
    # Of several items of a leaf the first one is written last.
    items[beams.flip(0)] = trie.items[positions.flip(0)].long()
    return items.view(nodes.shape)


def codes_at(trie: PrefixTrie, positions: Tensor) -> Tensor:
    """Return the codes of the items at `positions` [...] of a trie, [..., M] int64; -1 for position -1."""
    safe = positions.clamp(min=0)
    columns = [trie.codes[trie.ancestors(safe, depth=depth)] for depth in range(1, trie.num_levels + 1)]
    codes = torch.stack(columns, -1).long()
    return codes.masked_fill(positions[..., None] < 0, -1)
