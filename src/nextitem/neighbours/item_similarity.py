"""Item similarity: the cosine of content vectors, or of sets of categorical values if there are none.

Shapes: B requests, K candidates, N items, D content width, S values of each item.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nextitem.core.catalog import Catalog
from nextitem.core.errors import UserError
from nextitem.nn.fields.item_features import category_codes, category_lists


class ItemSimilarity(nn.Module):
    """Cosines between the candidates of a request, without any matrix of all pairs of items.

    They are those of the catalogue's content vectors, if it has any. Otherwise an item is the set of its values of all
    categorical and categorical-list features. The cosine of two such sets (of their multi-hot vectors) is the number of
    values that they share, divided by the square root of the product of their sizes. An item without content or values
    has cosine 0 to all items.

    Raises:
        UserError: the catalogue has neither content vectors nor categorical features.

    """

    table: Tensor

    def __init__(self, catalog: Catalog) -> None:
        super().__init__()
        self.by_content = catalog.content is not None
        # Derived from the catalogue, so not saved with the weights.
        table = catalog.content if catalog.content is not None else _values(catalog)  # [N + 1, D] or [N + 1, S]
        self.register_buffer("table", table, persistent=False)

    def among(self, item_ids: Tensor) -> Callable[[Tensor], Tensor]:
        """Return a function that computes cosines between candidates `item_ids [B, K]`.

        Its argument is the position [B] of one candidate of each request. It returns the cosines of this candidate to
        all candidates of the request, [B, K] float64. The cosine of a candidate to itself is 1, or 0 if it has neither
        content nor values.
        """
        entries = self.table[item_ids]
        # In float64 from here on, so that the cosine of equal items is 1 up to the last digits.
        return _by_content(nn.functional.normalize(entries.double(), dim=2)) if self.by_content else _by_values(entries)


def column_values(catalog: Catalog, column: str) -> Tensor:
    """Return the codes [N + 1, S] of a categorical (S = 1) or categorical-list feature.

    Code 0 stands for missing values and pads shorter lists.

    Raises:
        UserError: the items have no such feature, or it is of another kind.

    """
    if categorical_kind(catalog, column) == "categorical":
        return one_value(catalog, column)[:, None]
    return category_lists(catalog.table[column])[0].to_padded()


def one_value(catalog: Catalog, column: str) -> Tensor:
    """Return the codes [N + 1] of a categorical feature; code 0 stands for missing values.

    Raises:
        UserError: the items have no such feature, or it is of another kind.

    """
    categorical_kind(catalog, column, kinds=("categorical",))
    return nn.functional.pad(category_codes(catalog.table[column])[0], (1, 0))


def categorical_kind(
    catalog: Catalog, column: str, *, kinds: tuple[str, ...] = ("categorical", "categorical-list")
) -> str:
    """Return the kind of a feature of the items, which has to be one of `kinds`.

    Raises:
        UserError: the items have no such feature, or it is of another kind.

    """
    if catalog.features.get(column) in kinds:
        return catalog.features[column]
    problem = f"of type {catalog.features[column]}" if column in catalog.features else "no feature of the items"
    choices = [name for name, kind in catalog.features.items() if kind in kinds]
    raise UserError(
        f"column {column!r} is {problem}; choose a {' or '.join(kinds)} one ({', '.join(choices) or 'there is none'}), "
        "or declare it under [items] features in dataset.toml"
    )


def _values(catalog: Catalog) -> Tensor:
    """Return the codes of all categorical values of each item, [N + 1, S] int64, padded with 0.

    The same value in two columns counts as two values.
    """
    columns = [name for name, kind in catalog.features.items() if kind.startswith("categorical")]
    if not columns:
        raise UserError(
            "similarity of items cannot be computed: the catalogue has neither content vectors nor categorical "
            "features; declare some under [items] features in dataset.toml"
        )
    parts, num_codes = [], 0
    for column in columns:
        codes = column_values(catalog, column)
        parts.append(torch.where(codes > 0, codes + num_codes, 0))
        num_codes += int(codes.max())
    rows = torch.cat(parts, 1).sort(dim=1).values
    rows[:, 1:][rows[:, 1:] == rows[:, :-1]] = 0  # a value that a list contains twice counts once
    return rows


def _by_content(vectors: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the function that `ItemSimilarity.among` returns, for candidates with unit vectors [B, K, D]."""

    def cosines(positions: Tensor) -> Tensor:
        references = vectors.gather(1, positions[:, None, None].expand(-1, 1, vectors.shape[2]))
        return torch.bmm(vectors, references.transpose(1, 2))[:, :, 0]

    return cosines


def _by_values(codes: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the function that `ItemSimilarity.among` returns, for candidates with sets of values [B, K, S]."""
    lengths = (codes > 0).sum(2).double()
    scale = lengths.clamp(min=1).rsqrt()

    def cosines(positions: Tensor) -> Tensor:
        references = codes.gather(1, positions[:, None, None].expand(-1, 1, codes.shape[2]))
        num_shared = ((codes[:, :, :, None] == references[:, :, None, :]) & (codes[..., None] > 0)).sum((2, 3))
        return num_shared * scale * scale.gather(1, positions[:, None])

    return cosines
