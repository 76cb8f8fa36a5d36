"""Item vectors enriched by what the catalogue says of the items.

Shapes: N items, D width, V values of a column, C length of content vectors.
"""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextitem.core.catalog import Catalog
from nextitem.core.errors import UserError
from nextitem.core.ids import IdMap
from nextitem.core.jagged import Jagged, offsets_of

CONTENT: Final = "content"  # the name under which a catalogue's content vectors are asked for


class ItemFeatures(nn.Module):
    """Adds to item vectors what the named columns say: their sum, or all of them side by side, projected to D.

    `columns` are features of the catalogue: categorical (an embedding), categorical-list (the mean of its members'),
    numeric (standardised, through a linear layer), or "content" (content vectors through a linear layer). A missing
    value has an embedding of its own, which padding has too. What is derived from the catalogue is no part of the
    weights: it is derived again from the bundle's catalogue, whatever the order of its rows. UserError where a column
    cannot be read.
    """

    def __init__(
        self, catalog: Catalog, columns: tuple[str, ...], *, width: int, merge: Literal["sum", "concat"]
    ) -> None:
        super().__init__()
        self.parts = nn.ModuleList(_part(catalog, column, width) for column in columns)
        self.project = nn.Linear((len(columns) + 1) * width, width) if merge == "concat" else None

    def forward(self, vectors: Tensor, item_ids: Tensor) -> Tensor:
        """`vectors [..., D]` of the items `item_ids [...]`, enriched, [..., D]."""
        parts = [vectors, *(part(item_ids) for part in self.parts)]
        if self.project is not None:
            return self.project(torch.cat(parts, -1))  # type: ignore[no-any-return]
        return torch.stack(parts).sum(0)


class _Category(nn.Module):
    def __init__(self, values: pl.Series, width: int) -> None:
        super().__init__()
        codes, known = category_codes(values)
        self.embedding = nn.Embedding(1 + known, width)  # 0: missing
        self.register_buffer("codes", F.pad(codes, (1, 0)), persistent=False)  # [N + 1]

    def forward(self, item_ids: Tensor) -> Tensor:
        out: Tensor = self.embedding(self.codes[item_ids])  # type: ignore[index]
        return out


class _CategoryList(nn.Module):
    members: Tensor
    offsets: Tensor

    def __init__(self, values: pl.Series, width: int) -> None:
        super().__init__()
        lists, known = category_lists(values)
        self.embedding = nn.Embedding(1 + known, width)  # 0: missing
        self.register_buffer("members", lists.values, persistent=False)
        self.register_buffer("offsets", lists.offsets, persistent=False)  # [N + 2]

    def forward(self, item_ids: Tensor) -> Tensor:
        asked = Jagged(self.members, self.offsets).select(item_ids.flatten())
        means = F.embedding_bag(asked.values, self.embedding.weight, asked.offsets[:-1], mode="mean")
        return means.view(*item_ids.shape, -1)


class _Number(nn.Module):
    def __init__(self, values: pl.Series, width: int) -> None:
        super().__init__()
        numbers = values.cast(pl.Float64).to_numpy()
        known = np.isfinite(numbers)
        # Summed in the order of size, so that the order of rows does not decide the last digit.
        sample = np.sort(numbers[known]) if known.any() else np.zeros(1)
        standard = (np.where(known, numbers, sample.mean()) - sample.mean()) / (sample.std() or 1.0)
        self.linear = nn.Linear(1, width)
        self.missing = nn.Parameter(torch.zeros(width))
        self.register_buffer("values", F.pad(torch.from_numpy(standard).float(), (1, 0)), persistent=False)
        self.register_buffer("known", F.pad(torch.from_numpy(known.copy()), (1, 0)), persistent=False)

    def forward(self, item_ids: Tensor) -> Tensor:
        values, known = self.values[item_ids, None], self.known[item_ids, None]  # type: ignore[index]
        return torch.where(known, self.linear(values), self.missing)


class _Content(nn.Module):
    def __init__(self, content: Tensor, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(content.shape[1], width)
        self.register_buffer("vectors", content, persistent=False)  # [N + 1, C]

    def forward(self, item_ids: Tensor) -> Tensor:
        out: Tensor = self.linear(self.vectors[item_ids])  # type: ignore[index]
        return out


_KINDS = {"categorical": _Category, "categorical-list": _CategoryList, "numeric": _Number}


def _part(catalog: Catalog, column: str, width: int) -> nn.Module:
    if column == CONTENT and column not in catalog.features:
        if catalog.content is None:
            raise ValueError('the feature "content" needs a catalogue with content vectors')
        return _Content(catalog.content, width)
    if column not in catalog.features or catalog.features[column] not in _KINDS:
        kinds = [f"{name} ({kind})" for name, kind in catalog.features.items() if kind in _KINDS]
        what = f"it is of type {catalog.features[column]}" if column in catalog.features else "there is no such feature"
        raise UserError(
            f"feature {column!r} cannot be read: {what}; choose among {', '.join([*kinds, CONTENT])}, "
            "or declare more under [items] features in dataset.toml"
        )
    return _KINDS[catalog.features[column]](catalog.table[column], width)


def category_codes(values: pl.Series) -> tuple[Tensor, int]:
    """Codes 1..V of values in the order of their text, 0 for null, and V."""
    text = values.cast(pl.String)
    known = IdMap.sorted_from(text.drop_nulls())
    return torch.from_numpy(known.encode(text).astype(np.int64)), len(known)


def category_lists(values: pl.Series) -> tuple[Jagged, int]:
    """Codes 1..V of the members of lists, N + 1 rows (row 0: padding), and V; a row without members has one: 0."""
    table = pl.DataFrame({"row": np.arange(1, len(values) + 1), "value": values.cast(pl.List(pl.String))})
    table = table.explode("value").drop_nulls("value")
    codes, known = category_codes(table["value"])
    counts = torch.bincount(torch.from_numpy(table["row"].to_numpy().copy()), minlength=len(values) + 1)
    lengths = counts.clamp(min=1)
    members = torch.zeros(int(lengths.sum()), dtype=torch.int64)
    members[(counts > 0).repeat_interleave(lengths)] = codes
    return Jagged(members, offsets_of(lengths)), known
