"""User token: one vector of the categorical features of a user, for models whose other tokens are events.

Shapes: B requests, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextitem.core.catalog import Catalog
from nextitem.core.jagged import Jagged

PREFIX = "user."
KINDS = ("categorical", "categorical-list")


class UserToken(nn.Module):
    """Sum of a vector for each categorical feature of a user; of a list the mean counts.

    A missing or unknown value has a vector of its own.
    """

    def __init__(self, catalog: Catalog, width: int) -> None:
        super().__init__()
        self.columns = user_columns(catalog)
        self.tables = nn.ModuleList(nn.Embedding(catalog.requests[name].num_codes, width) for name in self.columns)

    def forward(self, context: Mapping[str, Any], num_requests: int) -> Tensor:
        """Return the tokens [B, D]; requests without the columns are those of unknown users."""
        vectors = []
        for name, table in zip(self.columns, self.tables, strict=True):
            weight = table.weight
            assert isinstance(weight, Tensor)
            codes = context.get(name)
            if codes is None:
                vectors.append(weight[:1].expand(num_requests, -1))
            elif isinstance(codes, Jagged):
                means = F.embedding_bag(codes.values, weight, codes.offsets[:-1], mode="mean")
                vectors.append(torch.where(codes.lengths[:, None] > 0, means, weight[0]))
            else:
                vectors.append(F.embedding(codes, weight))
        return torch.stack(vectors).sum(0)


def user_columns(catalog: Catalog) -> list[str]:
    """Return the names of the categorical features of users in the context of requests."""
    return [name for name, column in catalog.requests.items() if name.startswith(PREFIX) and column.kind in KINDS]
