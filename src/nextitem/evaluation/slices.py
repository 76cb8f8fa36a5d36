"""Slices of requests, which show where a model is good and where it is not."""

from __future__ import annotations

import torch
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.dataset import Dataset


def slice_masks(requests: SequenceBatch, train: Dataset, catalog: Catalog) -> dict[str, Tensor]:
    """Return the requests of each slice as masks: slice name -> bool [B].

    A request with several targets is sliced by its first. A request without targets is in no slice.

    * history (activity): thirds of the requests by the length of the history.
    * popular, middle, rare: targets among the items with the first fifth of the training events (most popular first),
      the next three fifths, the last fifth.
    * cold: targets without training events. warm: the others.
    * memorization: the step from the last item of the history to the target occurs in training. generalization: it does
      not.
    * new_category: the target's category (else its first categorical feature) is not in the history.
    * siblings: number of other items that share all codes but the last of the target's semantic ID.

    Args:
        requests: requests with targets.
        train: training data, for popularity and steps.
        catalog: catalogue, for categories and semantic IDs.

    """
    assert requests.targets is not None
    has_target = requests.targets.lengths > 0
    first = torch.zeros(requests.num_requests, dtype=torch.int64)
    first[has_target] = requests.targets.values[requests.targets.offsets[:-1][has_target]]
    masks = _activity(requests) | _popularity(first, train) | _memorization(requests, first, train)
    masks |= _new_category(requests, first, catalog) | _siblings(first, catalog)
    return {name: mask & has_target for name, mask in masks.items()}


def _activity(requests: SequenceBatch) -> dict[str, Tensor]:
    """Return the thirds of the requests by the length of the history."""
    lengths = requests.items.lengths
    if not lengths.numel():
        return {}
    ordered = lengths.sort().values
    low, high = (int(ordered[(part * (len(ordered) - 1)) // 3]) for part in (1, 2))
    return {
        f"history<={low}": lengths <= low,
        f"history {low + 1}-{high}": (lengths > low) & (lengths <= high),
        f"history>{high}": lengths > high,
    }


def _popularity(first: Tensor, train: Dataset) -> dict[str, Tensor]:
    """Return the slices by the training events of the first targets [B]."""
    counts = torch.from_numpy(train.interactions.item_counts())
    order = counts.argsort(descending=True, stable=True)
    before = counts[order].cumsum(0) - counts[order]  # events on more popular items
    share = torch.empty(len(counts), dtype=torch.float64)
    share[order] = before.double() / max(1, int(counts.sum()))
    is_warm = counts[first] > 0
    return {
        "popular": is_warm & (share[first] < 0.2),
        "middle": is_warm & (share[first] >= 0.2) & (share[first] < 0.8),
        "rare": is_warm & (share[first] >= 0.8),
        "warm": is_warm,
        "cold": ~is_warm,
    }


def _memorization(requests: SequenceBatch, first: Tensor, train: Dataset) -> dict[str, Tensor]:
    """Return the slices by whether the step from the last item to the first target [B] occurs in training."""
    log = train.interactions.targets_only()
    span = log.num_items + 1
    is_same_user = torch.from_numpy(log.user_ids[1:] == log.user_ids[:-1])
    items = torch.from_numpy(log.item_ids).long()
    training_steps = torch.unique((items[:-1] * span + items[1:])[is_same_user])
    has_history = requests.items.lengths > 0
    last = torch.zeros(requests.num_requests, dtype=torch.int64)
    last[has_history] = requests.items.values[requests.items.offsets[1:][has_history] - 1]
    is_in_training = torch.isin(last * span + first, training_steps)
    return {"memorization": is_in_training & has_history, "generalization": ~is_in_training & has_history}


def _new_category(requests: SequenceBatch, first: Tensor, catalog: Catalog) -> dict[str, Tensor]:
    """Return the requests whose history lacks the category of the first target [B]."""
    columns = [name for name, kind in catalog.features.items() if kind == "categorical"]
    if not columns:
        return {}
    column = next((name for name in columns if "categor" in name.lower()), columns[0])
    category_of_item = catalog.table[column].cast(str).fill_null("").rank("dense").to_numpy().astype("int64")
    category = torch.cat([torch.zeros(1, dtype=torch.int64), torch.from_numpy(category_of_item)])
    span = int(category.max()) + 1
    history_keys = requests.items.row_ids() * span + category[requests.items.values]
    target_keys = torch.arange(requests.num_requests) * span + category[first]
    return {"new_category": ~torch.isin(target_keys, history_keys)}


def _siblings(first: Tensor, catalog: Catalog) -> dict[str, Tensor]:
    """Return the slices by the number of items that share all codes but the last of the first target [B]."""
    if catalog.identifiers is None:
        return {}
    prefixes = catalog.identifiers.codes[1:, :-1]
    group, sizes = torch.unique(prefixes, dim=0, return_inverse=True, return_counts=True)[1:]
    siblings = torch.cat([torch.zeros(1, dtype=torch.int64), sizes[group] - 1])[first]
    return {
        "no siblings": siblings == 0,
        "1-3 siblings": (siblings >= 1) & (siblings <= 3),
        "4+ siblings": siblings >= 4,
    }
