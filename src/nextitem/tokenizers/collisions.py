"""Build identifier tables from codes: one more level distinguishes items with equal codes.

TIGER (arXiv 2305.05065, section 3.1): the additional code is the running index among items with equal codes, 0 for an
item that has its codes alone. It is computed once over the catalogue, in item order, so it depends on nothing else.

Shapes: n rows, M levels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nextitem.core.catalog import Catalog, ids_fingerprint
from nextitem.core.errors import UserError
from nextitem.core.identifiers import IdentifierTable
from nextitem.tokenizers.quality import quality_report
from nextitem.tokenizers.tokenizer import Tokenizer


def build_table(tokenizer: Tokenizer, catalog: Catalog, *, extra_level: bool = True) -> IdentifierTable:
    """Return the semantic IDs of the catalogue's items, with the tokenizer's quality report.

    Without an additional level items with equal codes share a sequence. With it every sequence is unique. The level has
    as many codes as the largest other level, or as the largest group of equal codes if that is larger. The spare codes
    are for items that are appended later: those must not change the sizes on which a trained model is built.

    Args:
        tokenizer: a trained tokenizer.
        catalog: the items that it was trained on.
        extra_level: whether to add the level. It is never added if the tokenizer itself gives all items different
            codes.

    """
    codes = tokenizer.encode_catalog(catalog)
    report = quality_report(tokenizer, catalog, codes)
    sizes = tokenizer.codebook_sizes
    if extra_level and not tokenizer.has_unique_codes:
        sizes = (*sizes, max(*sizes, report["largest_group"]))
        codes = torch.cat([codes, running_index(codes)[:, None]], dim=1)
    return IdentifierTable.from_item_codes(
        codes,
        codebook_sizes=sizes,
        catalog_fingerprint=catalog.fingerprint,
        tokenizer=tokenizer.name,
        report=report,
    )


def append_items(tokenizer: Tokenizer, table: IdentifierTable, catalog: Catalog) -> IdentifierTable:
    """Return a new version of `table`, with codes for the additional items of `catalog`.

    Old codes stay as they are. A new item gets the next free running index of its codes. If the additional level is
    full, it shares the sequence of an old item. If the last level of the tokenizer numbers items, it takes the place of
    an additional level; a new item of which nothing is known then goes where most numbers are free.

    Args:
        tokenizer: the tokenizer with which the table was made; it encodes the new content vectors.
        table: the identifiers of the old items.
        catalog: the old items, in their order, followed by the new ones.

    Raises:
        UserError: the catalogue does not begin with the table's items in their order, or the tokenizer is another one.

    """
    num_old = table.num_items
    head = catalog.ids.external.head(num_old)
    if len(head) != num_old or ids_fingerprint(head) != table.catalog_fingerprint:
        raise UserError("the items of the identifier table must come first in the catalogue, in their old order")
    levels = len(tokenizer.codebook_sizes)
    if tokenizer.codebook_sizes != table.codebook_sizes[:levels]:
        raise UserError(
            f"the identifier table has codebooks of sizes {table.codebook_sizes[:levels]}, the tokenizer of sizes "
            f"{tokenizer.codebook_sizes}: append with the tokenizer that made the table"
        )
    (codes, is_placed), old_codes = tokenizer.encode_new(catalog, num_old), table.codes[1:, :levels].to(torch.int64)
    if tokenizer.has_item_numbers:
        codes = _numbered(codes, old_codes, is_placed, table.codebook_sizes[-1])
    elif table.num_levels > levels:
        index = running_index(torch.cat([old_codes, codes]))[num_old:]
        codes = torch.cat([codes, (index % table.codebook_sizes[-1])[:, None]], dim=1)
    return table.append(codes, catalog_fingerprint=catalog.fingerprint)


def _numbered(codes: Tensor, old_codes: Tensor, is_placed: Tensor, size: int) -> Tensor:
    """Return `codes [n, M]` of new items with the next free number as last code, if one of the `size` numbers is free.

    A new item that is not placed gets the prefix of `old_codes [N, M]` under which the smallest number is free.
    """
    codes = codes.clone()
    prefixes, counts = torch.unique(old_codes[:, :-1], dim=0, return_counts=True)
    rows = (~is_placed).nonzero()[:, 0]
    num_free = (size - counts).clamp(min=0, max=len(rows))
    places = torch.arange(len(counts)).repeat_interleave(num_free)
    numbers = torch.arange(len(places)) - (num_free.cumsum(0) - num_free - counts)[places]
    places = places[numbers.argsort(stable=True)]
    num_placed = min(len(rows), len(places))
    codes[rows[:num_placed], :-1] = prefixes[places[:num_placed]]
    # If no number is free any more, such items share the codes of old ones evenly.
    codes[rows[num_placed:]] = old_codes[torch.arange(len(rows) - num_placed) % len(old_codes)]
    index = running_index(torch.cat([old_codes[:, :-1], codes[:, :-1]]))[len(old_codes) :]
    codes[:, -1] = torch.where(index < size, index, codes[:, -1])
    return codes


def running_index(codes: Tensor) -> Tensor:
    """Return how many earlier rows of `codes [n, M]` are equal to each row, [n] int64."""
    group, sizes = torch.unique(codes, dim=0, return_inverse=True, return_counts=True)[1:]
    by_group = group.argsort(stable=True)
    starts = sizes.cumsum(0) - sizes
    index = torch.empty_like(group)
    index[by_group] = torch.arange(len(group)) - starts.repeat_interleave(sizes)
    return index
