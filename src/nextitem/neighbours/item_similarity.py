"""How alike items are: the cosine of their content vectors, else of what their categories say.

Shapes: B requests, K candidates, N items, D content width, S values of an item.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nextitem.core.catalog import Catalog
from nextitem.core.errors import UserError
from nextitem.nn.fields.item_features import category_codes, category_lists


class ItemSimilarity(nn.Module):
    """Cosines between the candidates of a request; nothing of the size of the catalogue squared is ever made.

    Reads the catalogue's content vectors where it has them; else every categorical and categorical-list feature, an
    item being the set of its values: the cosine of two such sets (of their multi-hot vectors) is the number of values
    that they share over the root of the product of their sizes. An item without content or values is like no other.
    UserError where the catalogue has neither.
    """

    table: Tensor

    def __init__(self, catalog: Catalog) -> None:
        super().__init__()
        self.by_content = catalog.content is not None
        # Derived from the catalogue, so no part of the weights.
        table = catalog.content if catalog.content is not None else _values(catalog)  # [N + 1, D] or [N + 1, S]
        self.register_buffer("table", table, persistent=False)

    def among(self, item_ids: Tensor) -> Callable[[Tensor], Tensor]:
        """Of candidates [B, K], a function: positions [B] of one candidate each -> its cosines to all, [B, K] float64.

        The cosine of a candidate to itself is 1, or 0 where nothing is known of it.
        """
        entries = self.table[item_ids]
        # In float64 from here on, so that equal items have cosine 1 to the last digits.
        return _by_content(nn.functional.normalize(entries.double(), dim=2)) if self.by_content else _by_values(entries)


def column_values(catalog: Catalog, column: str) -> Tensor:
    """Codes [N + 1, S] of a categorical (S = 1) or categorical-list feature: 0 is missing, and pads shorter lists.

    UserError where the items have no such feature, or one of another kind.
    """
    if categorical_kind(catalog, column) == "categorical":
        return one_value(catalog, column)[:, None]
    return category_lists(catalog.table[column])[0].to_padded()


def one_value(catalog: Catalog, column: str) -> Tensor:
    """Codes [N + 1] of a categorical feature, 0: missing. UserError as above."""
    categorical_kind(catalog, column, among=("categorical",))
    return nn.functional.pad(category_codes(catalog.table[column])[0], (1, 0))


def categorical_kind(
    catalog: Catalog, column: str, *, among: tuple[str, ...] = ("categorical", "categorical-list")
) -> str:
    """The kind of a feature of the items; UserError where there is none of these kinds."""
    if catalog.features.get(column) in among:
        return catalog.features[column]
    known = f"of type {catalog.features[column]}" if column in catalog.features else "no feature of the items"
    choices = [name for name, kind in catalog.features.items() if kind in among]
    raise UserError(
        f"column {column!r} is {known}; choose a {' or '.join(among)} one ({', '.join(choices) or 'there is none'}), "
        "or declare it under [items] features in dataset.toml"
    )


def _values(catalog: Catalog) -> Tensor:
    """All values of each item, [N + 1, S] int64, 0 pads; the same value of two columns is two values."""
    columns = [name for name, kind in catalog.features.items() if kind.startswith("categorical")]
    if not columns:
        raise UserError(
            "how alike items are cannot be told: the catalogue has neither content vectors nor categorical features; "
            "declare some under [items] features in dataset.toml"
        )
    parts, used = [], 0
    for column in columns:
        codes = column_values(catalog, column)
        parts.append(torch.where(codes > 0, codes + used, 0))
        used += int(codes.max())
    rows = torch.cat(parts, 1).sort(dim=1).values
    rows[:, 1:][rows[:, 1:] == rows[:, :-1]] = 0  # a value that a list names twice counts once
    return rows


def _by_content(vectors: Tensor) -> Callable[[Tensor], Tensor]:
    def cosines(positions: Tensor) -> Tensor:
        own = vectors.gather(1, positions[:, None, None].expand(-1, 1, vectors.shape[2]))
        return torch.bmm(vectors, own.transpose(1, 2))[:, :, 0]

    return cosines


def _by_values(codes: Tensor) -> Callable[[Tensor], Tensor]:
    lengths = (codes > 0).sum(2).double()
    scale = lengths.clamp(min=1).rsqrt()

    def cosines(positions: Tensor) -> Tensor:
        own = codes.gather(1, positions[:, None, None].expand(-1, 1, codes.shape[2]))
        shared = ((codes[:, :, :, None] == own[:, :, None, :]) & (codes[..., None] > 0)).sum((2, 3))
        return shared * scale * scale.gather(1, positions[:, None])

    return cosines
