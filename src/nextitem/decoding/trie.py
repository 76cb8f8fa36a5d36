"""PrefixTrie: all code sequences of a catalogue, as a few flat integer tensors.

Items are sorted by their code sequences (equal sequences by item number); an index into this order is a **position**.
Every node of the trie, at every depth, is one contiguous range of positions. The nodes of one depth follow one another
in the same order. So a node needs three numbers: where its items start, where its children start, and the code that
leads to it. Whatever a request forbids is counted over ranges of positions (constraints.py), never node by node.

Nodes are numbered breadth first: 0 is the root, and depth d has the nodes level_starts[d] .. level_starts[d + 1] - 2.
The last number of each depth is a sentinel, which only ends the range of the node before it. The first levels are also
stored as a dense table (node, code) -> child, if the table is small or mostly full. The layout follows STATIC
(arXiv:2602.22647): dense head, CSR tail.

Shapes: N items of the trie, M levels, C codes of a level, B requests, W beams.
"""

from __future__ import annotations

import json
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from nextitem.core.errors import UserError
from nextitem.core.identifiers import IdentifierTable
from nextitem.core.tensor_files import save_tensors
from nextitem.ops.trie_step import Children, dense_children, listed_children

# A level is stored densely up to this many entries (int32: 512 KiB), or if at least half of them are children.
_DENSE_ENTRIES = 2**17
_FORMAT = "nextitem-trie-1"


class PrefixTrie(nn.Module):
    """The legal code sequences of a catalogue. It is a module only to move between devices with its model.

    A bundle contains the IdentifierTable from which it is built; `save` writes the trie itself (docs/formats.md).

    Attributes:
        codebook_sizes: number of codes of each level.
        items: [N] int32, position -> item number.
        positions: [items of the table + 1] int32, item number -> position; -1 for 0 and for items that the trie does
            not contain.
        item_starts: [nodes] int32, the first position under a node. Node v contains the positions
            item_starts[v] .. item_starts[v + 1] - 1.
        first_child: [inner nodes] int32, the children of v are first_child[v] .. first_child[v + 1] - 1.
        codes: [nodes] int16 (int32 for codebooks above 32,768), the code that leads to a node.
        level_starts: M + 2 numbers, the first node of each depth, and the number of nodes.

    """

    items: Tensor
    positions: Tensor
    item_starts: Tensor
    first_child: Tensor
    codes: Tensor
    root = 0

    def __init__(
        self, codebook_sizes: tuple[int, ...], level_starts: tuple[int, ...], tensors: dict[str, Tensor]
    ) -> None:
        super().__init__()
        self.codebook_sizes = codebook_sizes
        self.level_starts = level_starts
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor, persistent=False)

    @classmethod
    def from_table(cls, table: IdentifierTable, *, live: Tensor | None = None) -> PrefixTrie:
        """Build the trie of a table. Items with equal codes share a leaf.

        `live`, bool [items + 1], are the items that may be returned at all; None: every item.
        """
        sizes = table.codebook_sizes
        rows, numbers = table.codes[1:], None
        if live is not None:
            numbers = live[1:].nonzero()[:, 0]
            rows = rows[numbers]
        order = _sorted_rows(rows, sizes)
        code_type = torch.int16 if max(sizes) <= 2**15 else torch.int32
        columns = [rows[:, level].to(code_type)[order] for level in range(table.num_levels)]
        starts, child_ranks = _node_starts(columns, len(order))
        order = order if numbers is None else numbers[order]
        level_starts = tuple(accumulate((len(part) for part in starts), initial=0))

        first_child = [level_starts[depth + 1] + child_ranks[depth][starts[depth]] for depth in range(table.num_levels)]
        # The code of a sentinel is never read; -1 distinguishes it from real codes.
        end = torch.full((1,), -1, dtype=code_type)
        codes = [torch.full((2,), -1, dtype=code_type)]
        for column, node_starts in zip(columns, starts[1:], strict=True):
            codes += [column[node_starts[:-1]], end]
        positions = torch.full((table.num_items + 1,), -1, dtype=torch.int32)
        positions[order + 1] = torch.arange(len(order), dtype=torch.int32)
        tensors = {
            "items": (order + 1).int(),
            "positions": positions,
            "item_starts": torch.cat(starts).int(),
            "first_child": torch.cat(first_child).int(),
            "codes": torch.cat(codes),
        }
        return cls(sizes, level_starts, tensors | _heads(tensors, level_starts, sizes))

    def without(self, items: Tensor) -> PrefixTrie:
        """Return a trie of the same nodes without some items, bool [items + 1]; some of its nodes may have no item."""
        is_left = ~items[self.items.long()]
        ranks = torch.nn.functional.pad(is_left.cumsum(0), (1, 0)).int()
        left = self.items[is_left]
        positions = torch.full_like(self.positions, -1)
        positions[left.long()] = torch.arange(len(left), dtype=torch.int32, device=left.device)
        changed = {"items": left, "positions": positions, "item_starts": ranks[self.item_starts.long()]}
        return PrefixTrie(self.codebook_sizes, self.level_starts, dict(self.named_buffers()) | changed)

    def save(self, file: Path) -> None:
        """Write the trie as one safetensors file, in the format of docs/formats.md."""
        numbers = {"codebook_sizes": self.codebook_sizes, "level_starts": self.level_starts}
        meta = {"format": _FORMAT, **{name: json.dumps(value) for name, value in numbers.items()}}
        save_tensors({name: part.cpu().contiguous() for name, part in self.named_buffers()}, file, metadata=meta)

    @classmethod
    def open(cls, file: Path) -> PrefixTrie:
        """Open a file that `save` wrote.

        Tensors are mapped from the file: processes share them, and the system may drop unused pages from memory. All of
        them are read once, to check that no number points outside the file's tensors.

        Raises:
            UserError: the file is missing, damaged, or has another format.

        """
        try:
            with safe_open(file, framework="pt") as opened:
                meta = opened.metadata() or {}
                if meta.get("format") != _FORMAT:
                    raise UserError(f"{file} is no trie ({_FORMAT}); make one with: nextitem tokenize")
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            sizes, starts = (tuple(json.loads(meta[name])) for name in ("codebook_sizes", "level_starts"))
            trie = cls(sizes, starts, tensors)
        except (FileNotFoundError, SafetensorError, KeyError, ValueError) as error:
            raise UserError(f"{file} is missing or damaged ({error}); make it again with: nextitem tokenize") from None
        _check(trie, file)
        return trie

    @property
    def num_items(self) -> int:
        """Return the number of items in the trie, which a search can return (N)."""
        return self.items.numel()

    @property
    def num_nodes(self) -> int:
        """Return the number of nodes, sentinels included (V)."""
        return self.level_starts[-1]

    @property
    def num_levels(self) -> int:
        """Return the number of levels, which is the number of codes of an item (M)."""
        return len(self.codebook_sizes)

    @property
    def num_bytes(self) -> int:
        """Return the memory of all tensors together, in bytes."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())

    def expand(self, nodes: Tensor, *, depth: int) -> Children:
        """Return the children of `nodes [B, W]`.

        All nodes have the given depth (0 for the root), or are -1 for dead beams.
        """
        head = getattr(self, f"head_{depth}", None)
        if head is not None:
            return dense_children(nodes, head, self.level_starts[depth])
        return listed_children(nodes, self.first_child, self.codes)

    def allowed(self, nodes: Tensor, *, depth: int) -> Tensor:
        """Return which codes may follow nodes [...] of the given depth, bool [..., C]; none follow node -1."""
        children = listed_children(nodes, self.first_child, self.codes)
        size = self.codebook_sizes[depth]
        assert children.codes is not None
        # Slots without a child write into an additional column, which is cut off.
        codes = torch.where(children.nodes >= 0, children.codes, size)
        mask = torch.zeros((*nodes.shape, size + 1), dtype=torch.bool, device=nodes.device)
        return mask.scatter_(-1, codes, True)[..., :size]

    def advance(self, nodes: Tensor, codes: Tensor) -> Tensor:
        """Return the children to which `codes` [...] lead from `nodes` [...], int64; -1 if there is none."""
        inner = (nodes >= 0) & (nodes < self.level_starts[self.num_levels])
        safe = torch.where(inner, nodes, 0)
        low = self.first_child[safe].long()
        end = self.first_child[safe + 1].long()
        high = end
        for _ in range(max(self.codebook_sizes).bit_length()):
            middle = (low + high) // 2
            before = (low < high) & (self.codes[middle] < codes)
            low, high = torch.where(before, middle + 1, low), torch.where(before, high, middle)
        is_child = inner & (low < end) & (self.codes[low.clamp(max=self.codes.numel() - 1)] == codes)
        return torch.where(is_child, low, -1)

    def depth_of(self, nodes: Tensor) -> int:
        """Return the depth of beams, which all share it; dead beams (-1) are ignored."""
        return sum(int(nodes.max()) >= start for start in self.level_starts[1:-1])

    def item_ranges(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ranges of positions under nodes [...] (none may be -1): starts and ends [...], int64."""
        return self.item_starts[nodes].long(), self.item_starts[nodes + 1].long()

    def ancestors(self, positions: Tensor, *, depth: int) -> Tensor:
        """Return the nodes of the given depth that contain `positions` [...], int64."""
        start, end = self.level_starts[depth], self.level_starts[depth + 1] - 1
        queries = positions.to(torch.int32)
        return torch.searchsorted(self.item_starts[start:end], queries, right=True) + (start - 1)

    def parents(self, nodes: Tensor, *, depth: int) -> Tensor:
        """Return the parents, of the given depth, of `nodes` [...], int64; -1 for node -1."""
        start, end = self.level_starts[depth], self.level_starts[depth + 1] - 1
        queries = nodes.to(torch.int32)
        parents = torch.searchsorted(self.first_child[start:end], queries, right=True) + (start - 1)
        return parents.masked_fill_(nodes < 0, -1)

    def items_under(self, node: int) -> Tensor:
        """Return the items of one node, int64, in order of their code sequences."""
        return self.items[int(self.item_starts[node]) : int(self.item_starts[node + 1])].long()


def _check(trie: PrefixTrie, file: Path) -> None:
    """Raise UserError if the numbers of a file would lead a walk out of its tensors."""
    levels, starts = len(trie.codebook_sizes), trie.level_starts
    is_valid = len(starts) == levels + 2 and starts[0] == 0 and all(low < high for low, high in pairwise(starts))
    is_valid = is_valid and starts[-1] == len(trie.item_starts) == len(trie.codes)
    is_valid = is_valid and len(trie.first_child) == starts[levels]
    inner = trie.first_child[: starts[levels]].long()
    is_valid = is_valid and bool((inner >= 0).all()) and bool((inner < starts[-1]).all())
    is_valid = is_valid and bool((trie.item_starts >= 0).all()) and bool((trie.item_starts <= trie.num_items).all())
    is_valid = is_valid and bool((trie.items > 0).all()) and bool((trie.items < len(trie.positions)).all())
    for depth, size in enumerate(trie.codebook_sizes):
        head = getattr(trie, f"head_{depth}", None)
        if head is not None:
            is_valid = is_valid and head.shape == (starts[depth + 1] - starts[depth] - 1, size)
            is_valid = is_valid and bool((head < starts[depth + 2]).all()) and bool((head >= -1).all())
    if not is_valid:
        raise UserError(f"{file} is damaged: its tensors do not fit together; make it again with: nextitem tokenize")


def _sorted_rows(codes: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Return the indices that sort the rows of `codes [N, M]`, stable, int64 [N].

    Neighbouring levels are packed into one int64 key as long as they fit. So most tables need one sort.
    """
    order = torch.arange(codes.shape[0])
    key, span = torch.zeros(codes.shape[0], dtype=torch.int64), 1
    for level in reversed(range(len(sizes))):
        if span * sizes[level] >= 2**63:
            order = order[key[order].argsort(stable=True)]
            key, span = torch.zeros_like(key), 1
        key += codes[:, level].long() * span
        span *= sizes[level]
    return order[key[order].argsort(stable=True)]


def _node_starts(columns: list[Tensor], num_items: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return the first position of each node, and the child node that contains each position, for every depth.

    Args:
        columns: for each level, the codes [N] of the sorted items.
        num_items: number of items (N).

    Returns:
        For depths 0..M, the first position of each node, and the end N for the sentinel, int64. For depths 0..M - 1,
        the rank [N + 1] of the node that contains a position, among the nodes one deeper.

    """
    differs = torch.zeros(num_items, dtype=torch.bool)
    differs[:1] = True
    starts = [torch.tensor([0, num_items])]
    ranks = []
    end = torch.tensor([num_items])
    for column in columns:
        differs[1:] |= column[1:] != column[:-1]
        starts.append(torch.cat([differs.nonzero()[:, 0], end]))
        nodes = torch.tensor([len(starts[-1]) - 1])
        ranks.append(torch.cat([differs.cumsum(0) - 1, nodes]))
    return starts, ranks


def _heads(tensors: dict[str, Tensor], level_starts: tuple[int, ...], sizes: tuple[int, ...]) -> dict[str, Tensor]:
    """Return dense tables (node of the level, code) -> child or -1, int32.

    A level has a table if it is small or mostly full, see `_DENSE_ENTRIES`.
    """
    heads = {}
    counts = [end - start - 1 for start, end in pairwise(level_starts)]
    for depth, size in enumerate(sizes):
        if counts[depth] * size > max(_DENSE_ENTRIES, 2 * counts[depth + 1]):
            continue
        start = level_starts[depth]
        degree = tensors["first_child"][start : start + counts[depth] + 1].diff()
        parents = torch.arange(counts[depth]).repeat_interleave(degree)
        children = torch.arange(level_starts[depth + 1], level_starts[depth + 1] + counts[depth + 1])
        table = torch.full((counts[depth], size), -1, dtype=torch.int32)
        table[parents, tensors["codes"][children].long()] = children.int()
        heads[f"head_{depth}"] = table
    return heads
