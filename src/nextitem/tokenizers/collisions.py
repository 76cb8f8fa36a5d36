"""From codes to an identifier table: items with equal codes are told apart by one more level.

TIGER (arXiv 2305.05065, section 3.1): the further code is the running index among items with equal codes, 0
for an item that is alone. It is computed once over the catalogue, in item order, so it depends on nothing
else.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nextitem.core.catalog import Catalog, ids_fingerprint
from nextitem.core.errors import UserError
from nextitem.core.identifiers import IdentifierTable
from nextitem.tokenizers.quality import quality_report
from nextitem.tokenizers.tokenizer import Tokenizer, content_of


def build_table(tokenizer: Tokenizer, catalog: Catalog, *, extra_level: bool = True) -> IdentifierTable:
    """Semantic IDs of the catalogue's items by a tokenizer that has learnt, with its quality report.

    The extra level makes every code sequence unique. It has as many codes as the largest other level, or as
    the largest group of equal codes where that is more: the spare ones are for items appended later, which
    must not change the sizes that a trained model is built on. Without it, or where the tokenizer tells
    all items apart itself, items with equal codes share a sequence.
    """
    codes = tokenizer.spell(catalog)
    report = quality_report(tokenizer, catalog, codes)
    sizes = tokenizer.codebook_sizes
    if extra_level and not tokenizer.tells_apart:
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
    """A new version of `table` with codes for the items of `catalog` that follow those it has.

    The tokenizer that made the table codes the new content vectors; old codes stay as they are. A new item
    takes the next free running index of its codes; where the extra level is full it shares the sequence of an
    old one. UserError where the catalogue does not begin with the table's items, in their order.
    """
    known = table.num_items
    head = catalog.ids.external.head(known)
    if len(head) != known or ids_fingerprint(head) != table.catalog_fingerprint:
        raise UserError("the items of the identifier table must come first in the catalogue, in their old order")
    levels = len(tokenizer.codebook_sizes)
    if tokenizer.codebook_sizes != table.codebook_sizes[:levels]:
        raise UserError(
            f"the table has codebooks of {table.codebook_sizes[:levels]}, the tokenizer of "
            f"{tokenizer.codebook_sizes}: append with the tokenizer that made the table"
        )
    codes = tokenizer.encode(content_of(catalog)[known:])
    if table.num_levels > levels:
        old = table.codes[1:, :levels].to(torch.int64)
        index = running_index(torch.cat([old, codes]))[known:]
        codes = torch.cat([codes, (index % table.codebook_sizes[-1])[:, None]], dim=1)
    return table.append(codes, catalog_fingerprint=catalog.fingerprint)


def running_index(codes: Tensor) -> Tensor:
    """[n] int64: how many earlier rows of `codes [n, M]` are equal to each row."""
    group, sizes = torch.unique(codes, dim=0, return_inverse=True, return_counts=True)[1:]
    by_group = group.argsort(stable=True)
    starts = sizes.cumsum(0) - sizes
    index = torch.empty_like(group)
    index[by_group] = torch.arange(len(group)) - starts.repeat_interleave(sizes)
    return index
