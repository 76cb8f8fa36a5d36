"""Recommender: the base class and contract of every model that recommends items."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from nextitem.core import config as configs
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.config import Requirement
from nextitem.core.dataset import Dataset
from nextitem.core.errors import ContractError, UserError
from nextitem.core.extension import take_over_weights
from nextitem.core.history_state import weights_fingerprint
from nextitem.core.identifiers import IdentifierTable
from nextitem.core.recommendations import Recommendations
from nextitem.core.top_items import top_items
from nextitem.ops.tensor_version import version_of


class Recommender(nn.Module, ABC):
    """A model that ranks catalogue items for the requests in a batch.

    `catalog` is the catalogue that the model was built for. `popularity [N + 1]` is the number of training events of
    each item: requests with an empty history are answered by it, and log_q corrections read it.
    """

    Config: ClassVar[type[configs.Config]]
    needs: ClassVar[frozenset[Requirement]] = frozenset()  # parts of the catalogue that every configuration requires
    popularity: Tensor

    def __init__(self, config: configs.Config, catalog: Catalog) -> None:
        super().__init__()
        self.config = config
        self.catalog = catalog
        self.register_buffer("popularity", torch.zeros(catalog.num_items + 1))
        self._fingerprint: tuple[Catalog, str] | None = None  # cached while the weights cannot change
        self._unseen: tuple[Tensor, int, Tensor | None] | None = None  # popularity, its version, items without events
        self.register_load_state_dict_post_hook(_clear_fingerprint)  # type: ignore[no-untyped-call]

    @property
    def num_items(self) -> int:
        """Number of items of the catalogue (N)."""
        return self.catalog.num_items

    @property
    def identifiers(self) -> IdentifierTable | None:
        """Semantic IDs that the model works with: those of the catalogue, unless it has learned others."""
        return self.catalog.identifiers

    def weights_fingerprint(self) -> str:
        """Return a hash of class, settings, items and weights, by which a HistoryState recognises its model.

        It is the same in every process that has loaded the same bundle. It is computed only once while the model is
        not trained and no weights are loaded.
        """
        if self._fingerprint is not None and self._fingerprint[0] is self.catalog:
            return self._fingerprint[1]
        value = weights_fingerprint(self, self.config.model_dump_json(), self.catalog.fingerprint)
        if not self.training:
            self._fingerprint = (self.catalog, value)
        return value

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the module as any other, and drop what was read from the former tensors."""
        self._unseen = None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; in training mode weights may change, so the fingerprint is cleared."""
        if mode:
            self._fingerprint = None
        return super().train(mode)

    @property
    def can_rank_unseen_items(self) -> bool:
        """Whether the model can rank items without a training event, by their features in the catalogue.

        Every registered model declares it. A model that identifies items by their ids alone has learned nothing about
        such items, so they are ranked after all others (`unseen_items`).
        """
        return False

    def unseen_items(self) -> Tensor | None:
        """Return the items that must be ranked after all others, bool [N + 1], or None if there are none.

        They are the items without a training event, unless the model can rank them. If no item has a training event,
        there are none: the model cannot prefer one item to another.
        """
        return None if self.can_rank_unseen_items else self._items_without_events()

    def _items_without_events(self) -> Tensor | None:
        """Return the items without a training event, bool [N + 1], or None if there are none or no others.

        The catalogue is read again only after `popularity` has changed.
        """
        version = version_of(self.popularity)
        if self._unseen is None or self._unseen[0] is not self.popularity or self._unseen[1] != version:
            unseen = self.popularity == 0
            unseen[0] = False
            has_both = 0 < int(unseen.sum()) < self.num_items
            self._unseen = (self.popularity, version, unseen if has_both else None)
        return self._unseen[2]

    def with_catalog(self, catalog: Catalog) -> Self:
        """Return the model for a later catalogue, which begins with the items of this one; this model is unchanged.

        New items have what the model has for items without events: a shared vector in a growing table, an initial one
        in a dense table. What depends on the items' content covers them at once. Search indexes have to be built again;
        until then every item is searched.

        Raises:
            UserError: the catalogue does not begin with the items of this one, or the model has learned something of
                the former catalogue that has no meaning for new items.

        """
        name = type(self).__name__
        if not catalog.ids.external.head(self.num_items).equals(self.catalog.ids.external):
            raise UserError(
                f"the new catalogue must begin with the {self.num_items} items that {name} was trained with, in their "
                "order: make it with Catalog.extend"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            later = type(self)(self.config, catalog)
        try:
            take_over_weights(later, self, num_items=catalog.num_items, num_former_items=self.num_items)
        except ValueError as error:
            raise UserError(
                f"{name} cannot take new items without training: {error}; train it again, or use a model whose "
                'settings have table = "growing"'
            ) from None
        return later.to(self.popularity.device).train(self.training)

    def set_popularity(self, counts: Tensor) -> None:
        """Store how often each item occurs in training, [N + 1]; entry 0 must be 0."""
        self.popularity.copy_(counts)

    def set_popularity_from(self, train: Dataset) -> None:
        """Store how often each item is a target in the training events."""
        self.set_popularity(torch.from_numpy(train.interactions.item_counts()).float())

    def request_errors(self, batch: SequenceBatch) -> list[str | None]:
        """Return for each request what is wrong with it, or None, [B].

        So a caller can drop an invalid request instead of failing its whole batch. `recommend` raises ValueError with
        the first of these errors.
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
                errors[row] = (
                    errors[row] or f"{name} contains item number {item}; this catalogue has 1..{self.num_items}"
                )
        return errors

    @torch.inference_mode()
    def recommend(self, batch: SequenceBatch, k: int) -> Recommendations:
        """Return the k best items for each request, padded if fewer items are allowed.

        Requests with an empty history are answered by popularity among the allowed items and marked in `fallback`; the
        model answers the others. Ties go to the smaller item number.

        Args:
            batch: the requests.
            k: number of items to return for each request, at least 1.

        Raises:
            ValueError: a request is invalid, or k is below 1.
            ContractError: the answer of the model contains an excluded, forbidden or unknown item, or has a wrong
                shape. Repeated items and unsorted scores are refused by Recommendations (ValueError).

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
                answer = self._recommend_mixed(batch, k, empty)
        finally:
            if was_training:
                self.train()
        self._check_answer(answer, batch, k)
        return answer.annotated(fallback=empty if answer.fallback is None else answer.fallback | empty)

    @abstractmethod
    def _recommend(self, batch: SequenceBatch, k: int) -> Recommendations:
        """Return the answer of the model; every history has at least one event."""

    def _returnable(self) -> Tensor | None:
        """Return the items that the model can return, bool [N + 1], or None if it can return all."""
        return None

    def _popular(self, batch: SequenceBatch, k: int) -> Recommendations:
        scores = self.popularity.repeat(batch.num_requests, 1)
        returnable = self._returnable()
        if returnable is not None:
            scores[:, ~returnable] = -torch.inf
        return top_items(scores, batch, k)

    def _recommend_mixed(self, batch: SequenceBatch, k: int, empty: Tensor) -> Recommendations:
        """Answer a batch in which some histories, those in the mask `empty [B]`, are empty."""
        full_rows, empty_rows = (~empty).nonzero()[:, 0], empty.nonzero()[:, 0]
        modelled = self._recommend(batch.select(full_rows), k)
        popular = self._popular(batch.select(empty_rows), k)
        to_batch_order = torch.cat([full_rows, empty_rows]).argsort()
        channel = modelled.channel
        if channel is not None:
            channel = torch.cat([channel, channel.new_zeros(popular.item_ids.shape)])[to_batch_order]
        guided = modelled.guided
        if guided is not None:
            guided = torch.cat([guided, guided.new_zeros(popular.item_ids.shape[0])])[to_batch_order]
        return Recommendations(
            torch.cat([modelled.item_ids, popular.item_ids])[to_batch_order],
            torch.cat([modelled.scores, popular.scores])[to_batch_order],
            ordered_by=modelled.ordered_by,
            channel=channel,
            channels=modelled.channels,
            relaxations=[
                replace(relaxation, request=int(full_rows[relaxation.request])) for relaxation in modelled.relaxations
            ],
            guided=guided,
        )

    def _check_request(self, batch: SequenceBatch, k: int) -> None:
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        first_error = next((error for error in self.request_errors(batch) if error is not None), None)
        if first_error is not None:
            raise ValueError(first_error)
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


def _clear_fingerprint(model: Recommender, keys: Any) -> None:
    """Clear the cached fingerprint; called after weights were loaded."""
    model._fingerprint = None
