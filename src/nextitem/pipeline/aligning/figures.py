"""Figures of an aligned model: accuracy, modelled and true reward, legality and diversity on the same requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from nextitem.alignment.rewards.reward import Reward, checked
from nextitem.core.batch import SequenceBatch
from nextitem.core.recommender import Recommender
from nextitem.core.roles import Generator
from nextitem.decoding.rollouts import sample_freely
from nextitem.decoding.trie import PrefixTrie
from nextitem.evaluation.evaluate import item_vectors, recommend_all
from nextitem.evaluation.intervals import Difference, interval, paired_difference
from nextitem.evaluation.metrics import accuracy, beyond_accuracy

K = 10  # length of the lists that are judged by accuracy, legality and diversity
FREE_SAMPLES = 4  # unconstrained samples of a request
BATCH = 256  # requests whose lists are judged together
TrueValue = Callable[[SequenceBatch, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class ListFigures:
    """Figures of the lists of one model.

    Attributes:
        metrics: name -> mean.
        values: name -> one value for each request, [B]; for paired comparisons.
        intervals: name -> 95% interval of the mean.

    """

    metrics: dict[str, float]
    values: dict[str, Tensor] = field(repr=False)
    intervals: dict[str, tuple[float, float]]

    def to_json(self) -> dict[str, Any]:
        """Return metrics and intervals as JSON values."""
        return {"metrics": self.metrics, "intervals": {name: list(pair) for name, pair in self.intervals.items()}}


@dataclass(frozen=True, eq=False)
class ListJudge:
    """Judge of the lists that a model recommends for some requests.

    Attributes:
        requests: requests with targets.
        list_length: number of items that rewards judge, from the top of a list.
        modelled: the reward that is optimised.
        held_out: a reward of the same kind whose model has another seed; None: there is none.
        true_values: name -> true value of lists; empty: not known.

    """

    requests: SequenceBatch
    list_length: int
    modelled: Reward
    held_out: Reward | None = None
    true_values: Mapping[str, TrueValue] = field(default_factory=dict)

    def figures(self, model: Recommender, *, trie: PrefixTrie | None = None) -> ListFigures:
        """Return the figures of a model; `trie` measures legality without the constraint, too."""
        lists = recommend_all(model, self.requests, max(K, self.list_length))
        assert self.requests.targets is not None
        values = {
            "recall@10": accuracy.recall(lists, self.requests.targets, K),
            "ndcg@10": accuracy.ndcg(lists, self.requests.targets, K),
            **self._rewards(lists[:, : self.list_length]),
            "legality": (lists[:, :K] > 0).double().mean(1),
        }
        if trie is not None:
            values["free_legality"] = free_legality(model, self.requests, trie)
        vectors = item_vectors(model.catalog)
        if vectors is not None:
            values["diversity@10"] = beyond_accuracy.diversity(lists[:, :K], vectors)
        metrics = {name: float(value.double().nanmean()) for name, value in values.items()}
        metrics["coverage@10"] = beyond_accuracy.coverage(lists[:, :K], num_items=model.num_items)
        return ListFigures(metrics, values, {name: interval(value.double()) for name, value in values.items()})

    def _rewards(self, lists: Tensor) -> dict[str, Tensor]:
        """Return the rewards of lists [B, K], one value for each request."""
        rewards = {"modelled": self.modelled} | ({} if self.held_out is None else {"held_out": self.held_out})
        values: dict[str, list[Tensor]] = {name: [] for name in rewards}
        for start in range(0, len(lists), BATCH):
            rows = torch.arange(start, min(start + BATCH, len(lists)))
            batch = self.requests.select(rows)
            for name, reward in rewards.items():
                values[name].append(checked(reward.to(lists.device), batch, lists[rows][:, None])[:, 0])
        result = {name: torch.cat(parts).double() for name, parts in values.items()}
        for name, value in self.true_values.items():
            result[name] = value(self.requests, lists).double()
        return result


@torch.no_grad()
def free_legality(model: Recommender, requests: SequenceBatch, trie: PrefixTrie) -> Tensor:
    """Return the share of unconstrained samples of each request that are codes of an allowed item, [B]; seeded."""
    with_history = requests.items.lengths > 0
    result = torch.full((requests.num_requests,), float("nan"), dtype=torch.float64)
    random, parts, device = torch.Generator().manual_seed(0), [], model.popularity.device
    for batch in requests.select(with_history.nonzero()[:, 0]).split(BATCH):
        samples = sample_freely(cast(Generator, model), batch.to(device), trie, num_lists=FREE_SAMPLES, random=random)
        parts.append(samples.is_legal.double().mean(1).cpu())
    if parts:
        result[with_history] = torch.cat(parts)
    return result


def changes(before: ListFigures, after: ListFigures) -> dict[str, Difference]:
    """Return after minus before of each figure that is a mean over requests, with its paired interval."""
    return {
        name: paired_difference(after.values[name].double(), before.values[name].double())
        for name in before.values
        if name in after.values
    }
