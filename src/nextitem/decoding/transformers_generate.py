"""What `generate` of Hugging Face's transformers needs to spell items: prompts, the constraint, and the way back.

A token is a code: level m's codes are tokens starts[m] .. starts[m] + size - 1, level after level from 0 on; the token
after the last one is padding. None of this needs transformers itself.

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


def level_starts(sizes: tuple[int, ...]) -> list[int]:
    """The first token of each level."""
    return [sum(sizes[:level]) for level in range(len(sizes))]


def prompts(table: IdentifierTable, batch: SequenceBatch, *, max_history_length: int) -> tuple[Tensor, Tensor]:
    """Histories as `input_ids [B, S]`, padded on the left, and their `attention_mask [B, S]`."""
    padded = batch.items.last(max_history_length).to_padded().cpu()
    tokens = table.codes[padded].long() + torch.tensor(level_starts(table.codebook_sizes))
    tokens = tokens.masked_fill((padded == 0)[..., None], sum(table.codebook_sizes)).flatten(1)
    # Stable: padding first, and codes in their order.
    order = (tokens < sum(table.codebook_sizes)).int().argsort(dim=1, stable=True)
    tokens = tokens.gather(1, order)
    return tokens, (tokens < sum(table.codebook_sizes)).long()


class CatalogueLogitsProcessor:
    """A LogitsProcessor that keeps each request's beams to the items that it may be answered with.

    `trie` is the catalogue's, `batch` the requests, in the order of the prompts, with their allow-lists and exclusions;
    `prompt_length` is S. For one call of `generate(num_beams=W, max_new_tokens=M)`: scores become the log-softmax over
    the level's codes, then the constraint, as in beam_search.
    """

    def __init__(self, trie: PrefixTrie, batch: SequenceBatch, *, prompt_length: int) -> None:
        self._trie = trie
        self._requests = batch.num_requests
        self._constraints = Constraints(trie, batch)
        self._prompt_length = prompt_length
        self._starts = level_starts(trie.codebook_sizes)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`scores [B W, V]` of the code after `input_ids [B W, S + depth]`; -inf where no legal item goes on."""
        nodes, depth = self._nodes(input_ids)
        children = self._trie.expand(nodes, depth=depth)
        start, size = self._starts[depth], self._trie.codebook_sizes[depth]
        own = scores[:, start : start + size].float().log_softmax(1)
        legal = children_logits(own.view(*nodes.shape, size), children)
        self._constraints.strike(legal, nodes, children, depth=depth, held=self._nothing_held(nodes))
        self._constraints.forbid(legal, torch.arange(len(nodes)), nodes, children, depth=depth)
        constrained = torch.full_like(scores, -torch.inf).view(*nodes.shape, -1)
        where = (children.nodes >= 0).nonzero(as_tuple=True)
        codes = where[2] if children.codes is None else children.codes[where]
        constrained[where[0], where[1], codes + start] = legal[where].to(scores.dtype)
        return constrained.view_as(scores)

    def items(self, sequences: Tensor, scores: Tensor, *, k: int) -> Recommendations:
        """The k best items of `sequences [B R, S + M]` and `sequences_scores [B R]`, R sequences a request.

        A sequence twice, or of no item, is left out: transformers fills up with these where fewer than W are legal, and
        ends early where none is.
        """
        nodes, depth = self._nodes(sequences)
        if depth < self._trie.num_levels:
            nodes = torch.full_like(nodes, -1)
        scores = scores.view(nodes.shape).float()
        again = (nodes[:, :, None] == nodes[:, None, :]).tril(-1).any(2)
        nodes = nodes.masked_fill(again, -1)
        zeros = torch.zeros_like(nodes)
        nothing = self._nothing_held(nodes)
        beams = Beams(nodes, scores, scores, zeros, zeros, nothing, nothing.float())
        found = Search(self._trie, self._constraints, k, "sum", False).complete_items(beams, k)
        count = found.scores.shape[1]
        items = torch.zeros((self._requests, k), dtype=torch.int64, device=scores.device)
        best = scores.new_full((self._requests, k), -torch.inf)
        alive = found.scores > -torch.inf
        spelt = self._trie.items[found.held[..., 0].clamp(min=0)].long()
        items[:, :count], best[:, :count] = spelt.masked_fill(~alive, 0), found.scores
        return Recommendations(items, best)

    def _nodes(self, tokens: Tensor) -> tuple[Tensor, int]:
        """The nodes [B, W] that the codes after the prompt lead to, -1 where there is none, and how many codes."""
        spelt = tokens[:, self._prompt_length :]
        nodes = torch.zeros(len(tokens), dtype=torch.int64, device=tokens.device)
        for level in range(spelt.shape[1]):
            nodes = self._trie.advance(nodes, spelt[:, level] - self._starts[level])
        return nodes.view(self._requests, -1), spelt.shape[1]

    def _nothing_held(self, nodes: Tensor) -> Tensor:
        return torch.empty((*nodes.shape, 0), dtype=torch.int64, device=nodes.device)
