"""Item generation with `generate` of Hugging Face's transformers: prompts, the constraint, and the resulting items.

A token is a code: the codes of level m are tokens offsets[m] .. offsets[m] + size - 1, level after level from 0 on. The
token after the last one is padding. Nothing here needs transformers itself.

Shapes: B requests, W beams, M levels, S tokens, V tokens of the vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.identifiers import IdentifierTable
from nextitem.core.recommendations import Recommendations
from nextitem.decoding.beam_search import Beams, Search
from nextitem.decoding.constraints import Constraints
from nextitem.decoding.trie import PrefixTrie
from nextitem.ops.trie_step import children_logits


def token_offsets(sizes: tuple[int, ...]) -> list[int]:
    """Return the first token of each level, for codebooks of these sizes."""
    return [sum(sizes[:level]) for level in range(len(sizes))]


def prompts(table: IdentifierTable, batch: SequenceBatch, *, max_history_length: int) -> tuple[Tensor, Tensor]:
    """Return histories as `input_ids [B, S]`, padded on the left, and their `attention_mask [B, S]`.

    Args:
        table: the codes of the items.
        batch: the requests.
        max_history_length: number of latest items of a history that are read.

    """
    padded = batch.items.last(max_history_length).to_padded().cpu()
    tokens = table.codes[padded].long() + torch.tensor(token_offsets(table.codebook_sizes))
    tokens = tokens.masked_fill((padded == 0)[..., None], sum(table.codebook_sizes)).flatten(1)
    # A stable sort: padding first, then the codes in their order.
    order = (tokens < sum(table.codebook_sizes)).int().argsort(dim=1, stable=True)
    tokens = tokens.gather(1, order)
    return tokens, (tokens < sum(table.codebook_sizes)).long()


class CatalogueLogitsProcessor:
    """A LogitsProcessor that restricts each request's beams to the items that the request allows.

    It serves one call of `generate(num_beams=W, max_new_tokens=M)`. Scores become the log-softmax over the level's
    codes, then the constraint is applied, as in beam_search.
    """

    def __init__(self, trie: PrefixTrie, batch: SequenceBatch, *, prompt_length: int) -> None:
        """Compile the allow-lists and exclusions of the requests.

        Args:
            trie: the code sequences of the catalogue.
            batch: the requests, in the order of the prompts, with their allow-lists and exclusions.
            prompt_length: number of tokens of a prompt (S).

        """
        self._trie = trie
        self._num_requests = batch.num_requests
        self._constraints = Constraints(trie, batch)
        self._prompt_length = prompt_length
        self._offsets = token_offsets(trie.codebook_sizes)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Constrain `scores [B W, V]` of the code after `input_ids [B W, S + depth]`.

        Returns scores [B W, V]; -inf if no legal item continues with the token.
        """
        nodes, depth = self._nodes(input_ids)
        children = self._trie.expand(nodes, depth=depth)
        start, size = self._offsets[depth], self._trie.codebook_sizes[depth]
        log_probs = scores[:, start : start + size].float().log_softmax(1)
        legal = children_logits(log_probs.view(*nodes.shape, size), children)
        self._constraints.mask_excluded(
            legal, nodes, children, depth=depth, item_positions=self._no_item_positions(nodes)
        )
        self._constraints.mask_disallowed(legal, torch.arange(len(nodes)), nodes, children, depth=depth)
        constrained = torch.full_like(scores, -torch.inf).view(*nodes.shape, -1)
        indices = (children.nodes >= 0).nonzero(as_tuple=True)
        codes = indices[2] if children.codes is None else children.codes[indices]
        constrained[indices[0], indices[1], codes + start] = legal[indices].to(scores.dtype)
        return constrained.view_as(scores)

    def items(self, sequences: Tensor, scores: Tensor, *, k: int) -> Recommendations:
        """Return the k best items of the generated sequences, [B, k].

        Repeated sequences and sequences that no item has are skipped: transformers adds these if fewer than W sequences
        are legal, and stops early if none is.

        Args:
            sequences: [B R, S + M], R sequences for each request.
            scores: [B R], the `sequences_scores`.
            k: number of items to return.

        """
        nodes, depth = self._nodes(sequences)
        if depth < self._trie.num_levels:
            nodes = torch.full_like(nodes, -1)
        scores = scores.view(nodes.shape).float()
        is_repeated = (nodes[:, :, None] == nodes[:, None, :]).tril(-1).any(2)
        nodes = nodes.masked_fill(is_repeated, -1)
        zeros = torch.zeros_like(nodes)
        no_positions = self._no_item_positions(nodes)
        beams = Beams(nodes, scores, scores, zeros, zeros, no_positions, no_positions.float())
        completed = Search(self._trie, self._constraints, k, "sum", False).complete_items(beams, k)
        count = completed.scores.shape[1]
        items = torch.zeros((self._num_requests, k), dtype=torch.int64, device=scores.device)
        best = scores.new_full((self._num_requests, k), -torch.inf)
        alive = completed.scores > -torch.inf
        completed_items = self._trie.items[completed.item_positions[..., 0].clamp(min=0)].long()
        items[:, :count], best[:, :count] = completed_items.masked_fill(~alive, 0), completed.scores
        return Recommendations(items, best)

    def _nodes(self, tokens: Tensor) -> tuple[Tensor, int]:
        """Return the nodes [B, W] to which the codes after the prompt lead (-1: no node), and the number of codes."""
        generated = tokens[:, self._prompt_length :]
        nodes = torch.zeros(len(tokens), dtype=torch.int64, device=tokens.device)
        for level in range(generated.shape[1]):
            nodes = self._trie.advance(nodes, generated[:, level] - self._offsets[level])
        return nodes.view(self._num_requests, -1), generated.shape[1]

    def _no_item_positions(self, nodes: Tensor) -> Tensor:
        """Return positions [B, W, 0] of items of beams that contain no item yet."""
        return torch.empty((*nodes.shape, 0), dtype=torch.int64, device=nodes.device)
