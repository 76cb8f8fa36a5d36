"""Recommender: the one contract of everything that recommends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from nextitem.core import config as configs
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.config import Requirement
from nextitem.core.dataset import Dataset
from nextitem.core.errors import ContractError
from nextitem.core.history_state import weights_fingerprint
from nextitem.core.identifiers import IdentifierTable
from nextitem.core.recommendations import Recommendations
from nextitem.core.top_items import top_items


class Recommender(nn.Module, ABC):
    """Ranks catalogue items for the requests in a batch.

    `catalog` is the catalogue that the model was built for; `popularity [N + 1]` counts each item's training
    events: the answer to an empty history, and what log_q corrections read.
    """

    Config: ClassVar[type[configs.Config]]
    needs: ClassVar[frozenset[Requirement]] = frozenset()  # what the catalogue must carry, whatever the settings
    popularity: Tensor

    def __init__(self, config: configs.Config, catalog: Catalog) -> None:
        super().__init__()
        self.config = config
        self.catalog = catalog
        self.register_buffer("popularity", torch.zeros(catalog.num_items + 1))
        self._fingerprint: tuple[Catalog, str] | None = None  # of the weights, while they cannot change
        self.register_load_state_dict_post_hook(_forget_fingerprint)  # type: ignore[no-untyped-call]

    @property
    def num_items(self) -> int:
        """N."""
        return self.catalog.num_items

    @property
    def identifiers(self) -> IdentifierTable | None:
        """The semantic IDs that it answers by: the catalogue's, unless it has learnt others."""
        return self.catalog.identifiers

    def weights_fingerprint(self) -> str:
        """Return a hash of class, settings, items and weights: to what a HistoryState belongs.

        It is the same in every process that has loaded the same bundle, and is computed once as long as the model is
        not trained and no weights are loaded.
        """
        if self._fingerprint is not None and self._fingerprint[0] is self.catalog:
            return self._fingerprint[1]
        value = weights_fingerprint(self, self.config.model_dump_json(), self.catalog.fingerprint)
        if not self.training:
            self._fingerprint = (self.catalog, value)
        return value

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; weights may change from now on if it is training."""
        if mode:
            self._fingerprint = None
        return super().train(mode)

    @property
    def can_rank_unseen_items(self) -> bool:
        """Whether it can tell apart items without a training event, by what the catalogue says of them.

        Every registered model declares it. A model that knows items by their ids alone has learnt nothing of such
        items, so they follow all others (`unseen_items`).
        """
        return False

    def unseen_items(self) -> Tensor | None:
        """Return the items that must follow all others, bool [N + 1]; None: there are none.

        They are the items without a training event, unless the model can rank them. A model without any training
        event has none: it knows as much of one item as of another.
        """
        if self.can_rank_unseen_items:
            return None
        unseen = self.popularity == 0
        unseen[0] = False
        num_unseen = int(unseen.sum())
        return unseen if 0 < num_unseen < self.num_items else None

    def set_popularity(self, counts: Tensor) -> None:
        """Store how often each item occurs in training, [N + 1]; entry 0 must be 0."""
        self.popularity.copy_(counts)

    def set_popularity_from(self, train: Dataset) -> None:
        """Store how often each item is a target in the training events."""
        self.set_popularity(torch.from_numpy(train.interactions.item_counts()).float())

    def request_errors(self, batch: SequenceBatch) -> list[str | None]:
        """Say of each request what is wrong with it, or None, [B]: so that one bad request need not fail its batch.

        `recommend` raises ValueError for the first of these.
        """
        errors: list[str | None] = [None] * batch.num_requests
        for name, items in (("history", batch.items), ("excluded", batch.excluded), ("candidates", batch.candidates)):
            if items is None or not items.values.numel():
                continue
            low, high = items.values.aminmax()
            if int(low) >= 0 and int(high) <= self.num_items:
                continue
            is_unknown = (items.values < 0) | (items.values > self.num_items)
            for row, item in zip(items.row_ids()[is_unknown].tolist(), items.values[is_unknown].tolist(), strict=True):
                errors[row] = errors[row] or f"{name} holds item number {item}; this catalogue has 1..{self.num_items}"
        return errors

    @torch.inference_mode()
    def recommend(self, batch: SequenceBatch, k: int) -> Recommendations:
        """Returns the k best items for each request; fewer, then padding, where fewer are allowed.

        Checks the request (ValueError), answers empty histories by popularity among the allowed items (marked
        in `fallback`), asks the model for the others, and checks the answer: nothing excluded, forbidden, repeated,
        unknown or unsorted ever leaves here (ContractError). Ties go to the smaller item number.
        """
        self._check_request(batch, k)
        empty = batch.items.lengths == 0
        was_training = self.training
        if was_training:  # visiting every submodule twice takes a millisecond
            self.eval()
        try:
            if bool(empty.all()):
                answer = self._popular(batch, k)
            elif not bool(empty.any()):
                answer = self._recommend(batch, k)
            else:
                answer = self._mixed(batch, k, empty)
        finally:
            if was_training:
                self.train()
        self._check_answer(answer, batch, k)
        return replace(answer, fallback=empty if answer.fallback is None else answer.fallback | empty)

    @abstractmethod
    def _recommend(self, batch: SequenceBatch, k: int) -> Recommendations:
        """The model's answer; every history has at least one event."""

    def _returnable(self) -> Tensor | None:
        """bool [N + 1], the items that may be returned at all; None: all."""
        return None

    def _popular(self, batch: SequenceBatch, k: int) -> Recommendations:
        scores = self.popularity.repeat(batch.num_requests, 1)
        returnable = self._returnable()
        if returnable is not None:
            scores[:, ~returnable] = -torch.inf
        return top_items(scores, batch, k)

    def _mixed(self, batch: SequenceBatch, k: int, empty: Tensor) -> Recommendations:
        full_rows, empty_rows = (~empty).nonzero()[:, 0], empty.nonzero()[:, 0]
        asked = self._recommend(batch.select(full_rows), k)
        popular = self._popular(batch.select(empty_rows), k)
        back = torch.cat([full_rows, empty_rows]).argsort()
        channel = asked.channel
        if channel is not None:
            channel = torch.cat([channel, channel.new_zeros(popular.item_ids.shape)])[back]
        return Recommendations(
            torch.cat([asked.item_ids, popular.item_ids])[back],
            torch.cat([asked.scores, popular.scores])[back],
            ordered_by=asked.ordered_by,
            channel=channel,
            channels=asked.channels,
            relaxations=[replace(each, request=int(full_rows[each.request])) for each in asked.relaxations],
        )

    def _check_request(self, batch: SequenceBatch, k: int) -> None:
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        error = next((each for each in self.request_errors(batch) if each is not None), None)
        if error is not None:
            raise ValueError(error)
        if batch.allowed is not None and batch.allowed.shape[1] != self.num_items + 1:
            raise ValueError(f"allowed must have {self.num_items + 1} columns, got {batch.allowed.shape[1]}")

    def _check_answer(self, answer: Recommendations, batch: SequenceBatch, k: int) -> None:
        ids, problem = answer.item_ids, None
        is_item = ids > 0
        if ids.shape != (batch.num_requests, k):
            problem = f"lists of shape {tuple(ids.shape)} for {batch.num_requests} requests and k = {k}"
        elif bool(((ids < 0) | (ids > self.num_items)).any()):
            problem = "an item that is not in the catalogue"
        elif batch.allowed is not None and not bool(
            (batch.allowed.expand(batch.num_requests, -1).gather(1, ids) | ~is_item).all()
        ):
            problem = "a forbidden item"
        elif batch.excluded is not None:
            span = self.num_items + 1
            excluded = batch.excluded.row_ids() * span + batch.excluded.values
            keys = torch.arange(len(ids), device=ids.device)[:, None] * span + ids
            if bool((torch.isin(keys, excluded) & is_item).any()):
                problem = "an excluded item"
        if problem is not None:
            raise ContractError(f"{type(self).__name__} returned {problem}")


def _forget_fingerprint(model: Recommender, keys: Any) -> None:
    """Run after weights were loaded."""
    model._fingerprint = None
