"""Models of any kind with random weights, over the items of a small data set with semantic IDs."""

from __future__ import annotations

import torch

from nextitem.core.dataset import Dataset
from nextitem.core.identifiers import IdentifierTable
from nextitem.core.recommender import Recommender
from nextitem.core.registry import MODELS


def identified(dataset: Dataset, sizes: tuple[int, int] = (3, 4)) -> Dataset:
    """Return the data set with the semantic IDs 0-0, 0-1, ... of its items; `sizes` are those of the codebooks."""
    numbers = torch.arange(dataset.catalog.num_items)
    codes = torch.stack([numbers // sizes[1], numbers % sizes[1]], 1).int()
    table = IdentifierTable.from_item_codes(
        codes, codebook_sizes=sizes, catalog_fingerprint=dataset.catalog.fingerprint
    )
    return dataset.with_catalog(dataset.catalog.with_identifiers(table))


def small_model(name: str, dataset: Dataset, **settings: object) -> Recommender:
    """Return a model with random weights, so large that any difference of histories is visible."""
    model_class = MODELS[name].load()
    torch.manual_seed(0)
    model: Recommender = model_class(model_class.Config(**settings), dataset.catalog)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.set_popularity_from(dataset)
    return model.eval()
