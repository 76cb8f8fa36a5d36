"""Item vectors enriched by features of the items from the catalogue.

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
from nextitem.core.ids import IdMap, stable_keys
from nextitem.core.jagged import Jagged, offsets_of

CONTENT: Final = "content"  # among names of features: the content vectors of the catalogue


class ItemFeatures(nn.Module):
    """Layer that adds the vectors of item features to item vectors, or concatenates all and projects them to D.

    `columns` are features of the catalogue: categorical (an embedding), categorical-list (the mean embedding of its
    members), numeric (standardised, through a linear layer), or "content" (content vectors through a linear layer).
    Missing values have an embedding of their own, which is used for padding too. Buffers derived from the catalogue are
    not saved with the weights. They are derived again from the bundle's catalogue, whatever the order of its rows.

    Args:
        catalog: catalogue with the features.
        columns: names of the features.
        width: width of the item vectors (D).
        merge: "sum" adds the vectors; "concat" concatenates them and projects them to D.

    Raises:
        UserError: a column is missing or has a type that cannot be read.
        ValueError: "content" is among the columns and the catalogue has no content vectors.

    """

    def __init__(
        self, catalog: Catalog, columns: tuple[str, ...], *, width: int, merge: Literal["sum", "concat"]
    ) -> None:
        super().__init__()
        self.parts = nn.ModuleList(_feature_layer(catalog, column, width) for column in columns)
        self.project = nn.Linear((len(columns) + 1) * width, width) if merge == "concat" else None

    def forward(self, vectors: Tensor, item_ids: Tensor) -> Tensor:
        """Return the vectors [..., D] of `item_ids [...]` with their features added to `vectors [..., D]`."""
        parts = [vectors, *(part(item_ids) for part in self.parts)]
        if self.project is not None:
            return self.project(torch.cat(parts, -1))  # type: ignore[no-any-return]
        return torch.stack(parts).sum(0)


class _Category(nn.Module):
    def __init__(self, values: pl.Series, width: int) -> None:
        super().__init__()
        codes, num_values = category_codes(values)
        self.embedding = nn.Embedding(1 + num_values, width)  # code 0: missing
        self.register_buffer("codes", F.pad(codes, (1, 0)), persistent=False)  # [N + 1]

    def forward(self, item_ids: Tensor) -> Tensor:
        out: Tensor = self.embedding(self.codes[item_ids])  # type: ignore[index]
        return out


class _CategoryList(nn.Module):
    members: Tensor
    offsets: Tensor

    def __init__(self, values: pl.Series, width: int) -> None:
        super().__init__()
        lists, num_values = category_lists(values)
        self.embedding = nn.Embedding(1 + num_values, width)  # code 0: missing
        self.register_buffer("members", lists.values, persistent=False)
        self.register_buffer("offsets", lists.offsets, persistent=False)  # [N + 2]

    def forward(self, item_ids: Tensor) -> Tensor:
        lists = Jagged(self.members, self.offsets).select(item_ids.flatten())
        means = F.embedding_bag(lists.values, self.embedding.weight, lists.offsets[:-1], mode="mean")
        return means.view(*item_ids.shape, -1)


class _Number(nn.Module):
    def __init__(self, values: pl.Series, width: int) -> None:
        super().__init__()
        numbers = values.cast(pl.Float64).to_numpy()
        is_present = np.isfinite(numbers)
        # Summed in ascending order, so that the last digits do not depend on the order of rows.
        sample = np.sort(numbers[is_present]) if is_present.any() else np.zeros(1)
        standard = (np.where(is_present, numbers, sample.mean()) - sample.mean()) / (sample.std() or 1.0)
        self.linear = nn.Linear(1, width)
        self.missing = nn.Parameter(torch.zeros(width))
        self.register_buffer("values", F.pad(torch.from_numpy(standard).float(), (1, 0)), persistent=False)
        self.register_buffer("is_present", F.pad(torch.from_numpy(is_present.copy()), (1, 0)), persistent=False)

    def forward(self, item_ids: Tensor) -> Tensor:
        values, is_present = self.values[item_ids, None], self.is_present[item_ids, None]  # type: ignore[index]
        return torch.where(is_present, self.linear(values), self.missing)


class _Content(nn.Module):
    def __init__(self, content: Tensor, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(content.shape[1], width)
        self.register_buffer("vectors", content, persistent=False)  # [N + 1, C]

    def forward(self, item_ids: Tensor) -> Tensor:
        out: Tensor = self.linear(self.vectors[item_ids])  # type: ignore[index]
        return out


_KINDS = {"categorical": _Category, "categorical-list": _CategoryList, "numeric": _Number}


def _feature_layer(catalog: Catalog, column: str, width: int) -> nn.Module:
    if column == CONTENT and column not in catalog.features:
        if catalog.content is None:
            raise ValueError('the feature "content" needs a catalogue with content vectors')
        return _Content(catalog.content, width)
    if column not in catalog.features or catalog.features[column] not in _KINDS:
        kinds = [f"{name} ({kind})" for name, kind in catalog.features.items() if kind in _KINDS]
        is_feature = column in catalog.features
        reason = f"it is of type {catalog.features[column]}" if is_feature else "there is no such feature"
        raise UserError(
            f"feature {column!r} cannot be read: {reason}; choose among {', '.join([*kinds, CONTENT])}, "
            "or declare more under [items] features in dataset.toml"
        )
    return _KINDS[catalog.features[column]](catalog.table[column], width)


def category_codes(values: pl.Series) -> tuple[Tensor, int]:
    """Return the codes of values (1..V in the order of their text, 0 for null) and the number of values V."""
    text = values.cast(pl.String)
    vocabulary = IdMap(category_values(values))
    return torch.from_numpy(vocabulary.encode(text).astype(np.int64)), len(vocabulary)


def category_values(values: pl.Series) -> pl.Series:
    """Return the distinct values as text, in the order of their codes."""
    return IdMap.sorted_from(values.cast(pl.String).drop_nulls()).external


def value_keys(values: pl.Series) -> Tensor:
    """Return a stable key of each value, after the key 0 of code 0, int64 [values + 1]."""
    return F.pad(torch.from_numpy(stable_keys(values)), (1, 0))


def category_lists(values: pl.Series) -> tuple[Jagged, int]:
    """Return the codes of the members of lists, and the number of distinct members V.

    The codes are 1..V, in N + 1 rows (row 0: padding). A row without members contains the single code 0.
    """
    table = pl.DataFrame({"row": np.arange(1, len(values) + 1), "value": values.cast(pl.List(pl.String))})
    table = table.explode("value").drop_nulls("value")
    codes, num_values = category_codes(table["value"])
    counts = torch.bincount(torch.from_numpy(table["row"].to_numpy().copy()), minlength=len(values) + 1)
    lengths = counts.clamp(min=1)
    members = torch.zeros(int(lengths.sum()), dtype=torch.int64)
    members[(counts > 0).repeat_interleave(lengths)] = codes
    return Jagged(members, offsets_of(lengths)), num_values
