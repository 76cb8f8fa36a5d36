"""Guidance: the model that guides a generator's searches, trained beside it, and how its scores are used.

A generator has a setting `guide`: any model that scores every item. After both are trained, the weight of the guide
and the way from its scores to probabilities are chosen on validation requests and stored with the run. So a run serves
as it was judged. decoding/guide.py says what a guide does in a search.
"""

from __future__ import annotations

from abc import abstractmethod
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, cast

import pydantic
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextitem.core import config as configs
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.components import build_component, component_class, fill_in_settings, needs_of, unused_settings_of
from nextitem.core.config import Requirement
from nextitem.core.errors import UserError
from nextitem.core.item_probabilities import Transform, item_probabilities
from nextitem.core.jagged import Jagged
from nextitem.core.recommendations import Recommendations
from nextitem.core.recommender import Recommender
from nextitem.core.roles import ItemScorer, SparseItemScorer
from nextitem.core.sparse_scores import SparseScores
from nextitem.decoding.beam_search import Watch
from nextitem.decoding.guide import Combination, Guide

WHERE = "[model.guide.model]"
SPARSE_FROM = 2**16  # number of items from which on sparse scores are read; below, dense ones cost less


@dataclass(frozen=True)
class GuideUse:
    """How a search uses a guide: its weight, the combination with the generator, and the way to probabilities."""

    weight: float
    combine: Combination = "mixture"
    transform: Transform = "share"
    temperature: float = 1.0


class GuideConfig(configs.Config):
    """Settings of the guide of a generator."""

    model: dict[str, Any] = {"name": "item-graph"}
    """Name and settings of a registered model that scores every item; or its name alone."""
    weight: float | Literal["validation"] = "validation"
    """Weight of the guide, 0 to 1; validation: chosen on validation requests, 0 if the guide does not help."""
    combine: Literal["mixture", "product", "validation"] = "mixture"
    """Mixture of both probabilities, or their weighted product; validation: the better one on validation requests."""
    transform: Literal["share", "softmax"] | None = None
    """Way from scores to probabilities; none: share if no score on validation is negative, otherwise softmax."""
    temperature: float | Literal["validation"] = 1.0
    """Temperature of the guide's probabilities: below 1 favours the best items more, above 1 less."""

    @pydantic.field_validator("model", mode="before")
    @classmethod
    def _name_as_table(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @pydantic.field_validator("weight", "temperature", mode="before")
    @classmethod
    def _number_or_validation(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        is_valid = is_number and (0 <= value <= 1 if info.field_name == "weight" else 0 < value < float("inf"))
        if not is_valid and value != "validation":
            numbers = "from 0 to 1" if info.field_name == "weight" else "above 0"
            raise ValueError(f'write a number {numbers}, or "validation"')
        return value

    @pydantic.model_validator(mode="after")
    def _check_model(self) -> GuideConfig:
        """Fill in all settings of the model; raise ValueError if it cannot guide."""
        fill_in_settings("model", self.model, where=WHERE)
        if not issubclass(component_class("model", self.model, where=WHERE)[0], ItemScorer):
            raise ValueError(
                f"{WHERE} {self.model['name']} does not score every item, so it cannot guide a search; use item-graph, "
                "item-cf, sasrec, two-tower, ..., or give your class a method scores(batch)"
            )
        return self

    def unused_settings(self) -> tuple[str, ...]:
        """Return a sentence for each setting that has no effect, those of the guide's model included."""
        return (*super().unused_settings(), *unused_settings_of("model", self.model, where=WHERE))

    @property
    def needs(self) -> frozenset[Requirement]:
        """Requirements of the guide's model on the catalogue."""
        return needs_of("model", self.model, where=WHERE)


class GuidedConfig(configs.Config):
    """Settings that every generator shares."""

    guide: GuideConfig | None = None
    """Model that guides the search, and its weight; none: the generator alone."""

    @property
    def needs(self) -> frozenset[Requirement]:
        """Requirements of the guide on the catalogue."""
        return frozenset() if self.guide is None else self.guide.needs

    def unused_settings(self) -> tuple[str, ...]:
        """Return a sentence for each setting that has no effect, those of the guide included."""
        of_guide = () if self.guide is None else self.guide.unused_settings()
        return (*super().unused_settings(), *of_guide)


class Guidance(nn.Module):
    """The guide's model, with how its scores are used; until `use` is called, nothing is guided.

    The choice consists of buffers, so that it is saved and loaded with the weights of the generator.
    """

    use_weight: Tensor
    use_temperature: Tensor
    use_product: Tensor
    use_softmax: Tensor
    can_be_silent = True  # whether a request of which the guide knows nothing is searched without it

    def __init__(self, config: GuideConfig, catalog: Catalog) -> None:
        super().__init__()
        self.config, self.catalog, self.num_items = config, catalog, catalog.num_items
        self.scorer = self._build().requires_grad_(False)
        self.register_buffer("use_weight", torch.zeros((), dtype=torch.float64))
        self.register_buffer("use_temperature", torch.ones((), dtype=torch.float64))
        self.register_buffer("use_product", torch.zeros((), dtype=torch.bool))
        self.register_buffer("use_softmax", torch.zeros((), dtype=torch.bool))

    def take_over(self, former: Guidance) -> None:
        """Take over how the guide is used (roles.TakesOver); its model is fitted again."""
        self.use(former.chosen_use)

    def reset_scorer(self) -> Recommender:
        """Replace the guide's model by an untrained one with the same settings, and return that model."""
        self.scorer = self._build()
        return self.scorer

    @property
    def chosen_use(self) -> GuideUse:
        """How the guide is used."""
        return GuideUse(
            float(self.use_weight),
            "product" if self.use_product else "mixture",
            "softmax" if self.use_softmax else "share",
            float(self.use_temperature),
        )

    def use(self, use: GuideUse) -> None:
        """Use the guide in this way from now on."""
        self.use_weight.fill_(use.weight)
        self.use_temperature.fill_(use.temperature)
        self.use_product.fill_(use.combine == "product")
        self.use_softmax.fill_(use.transform == "softmax")

    def guide(self, batch: SequenceBatch) -> Guide | None:
        """Return the guide of these requests, or None if its weight is 0. Raises ValueError as `probabilities` does."""
        use = self.chosen_use
        if use.weight == 0:
            return None
        return Guide(self.probabilities(batch, use), use.weight, use.combine, can_be_silent=self.can_be_silent)

    def probabilities(self, batch: SequenceBatch, use: GuideUse) -> Tensor | SparseScores:
        """Return the guide's probabilities of the items of each request, [B, N + 1] or sparse.

        Raises:
            ValueError: the guide's model belongs to another catalogue, or a score is not finite.

        """
        if self.scorer.catalog.fingerprint != self.catalog.fingerprint:
            raise ValueError("the guide was trained on other items than the generator; train both on the same items")
        unseen, num_new = self.scorer.unseen_items(), self.num_items - self.catalog.num_items
        is_large = self.num_items >= SPARSE_FROM
        if is_large and isinstance(self.scorer, SparseItemScorer) and use.transform == "share":
            return replace(_shares(self.scorer.sparse_scores(batch), use.temperature, unseen), num_items=self.num_items)
        scores = cast(ItemScorer, self.scorer).scores(batch)
        shares = item_probabilities(scores, use.transform, temperature=use.temperature, unseen=unseen)
        return F.pad(shares, (0, num_new)) if num_new else shares

    def with_weight(self, weight: float | None, *, can_be_silent: bool) -> Guidance:
        """Return the same guide with another weight (None: this one), and whether a request can be without it."""
        other = copy(self)
        other._buffers = dict(self._buffers)
        other.can_be_silent = can_be_silent
        if weight is not None:
            other.use_weight = torch.full_like(self.use_weight, weight)
        return other

    def with_more_items(self, num_items: int) -> Guidance:
        """Return the same guide for a later version of the catalogue, of `num_items` items; it knows no new item."""
        later = copy(self)
        later.num_items = num_items
        return later

    def num_unguided(self, batch: SequenceBatch) -> int:
        """Return the number of requests for whose items the guide has no score."""
        guide = self.guide(batch)
        if guide is None:
            return 0
        probabilities = guide.probabilities
        totals = probabilities.totals() if isinstance(probabilities, SparseScores) else probabilities.sum(1)
        return int((totals == 0).sum())

    def _build(self) -> Recommender:
        return cast(Recommender, build_component("model", self.config.model, self.catalog, where=WHERE))


class GuidedRecommender(Recommender):
    """Base class of the generators: their searches are steered by the guide that the settings name, if there is one.

    A subclass calls `add_guidance` at the end of its constructor, so that its own initial weights do not depend on the
    guide.
    """

    guidance: Guidance | None
    watch: Watch | None = None

    def add_guidance(self, config: GuideConfig | None) -> None:
        """Build the guide of these settings, untrained."""
        self.guidance = None if config is None else Guidance(config, self.catalog)

    def with_catalog(self, catalog: Catalog) -> Self:
        """Return the model for a later catalogue (Recommender.with_catalog); a guide would know no new item.

        Raises:
            UserError: as for any model, or there is a guide.

        """
        if self.guidance is not None:
            raise UserError(
                f"the guide of {type(self).__name__} has to be fitted to the new items: use nextitem update, or "
                "without_guide()"
            )
        return super().with_catalog(catalog)

    @property
    def is_guided(self) -> bool:
        """Whether there is a guide, with a weight above 0."""
        return self.guidance is not None and self.guidance.chosen_use.weight > 0

    def without_guide(self) -> Self:
        """Return the same generator without its guide; both share their weights."""
        alone = self._sharing_weights()
        alone.guidance = None
        return alone

    def steered(self, *, weight: float | None = None, watch: Watch | None = None, can_be_silent: bool = True) -> Self:
        """Return the same generator with other searches; both share their weights.

        Args:
            weight: weight of the guide, 0 to 1; None: as before. Without a guide it has no effect.
            watch: callback of each level of a search.
            can_be_silent: as in Guide.

        """
        self.weights_fingerprint()  # stored, so that the copy has it: states of histories do not depend on the guide
        other = self._sharing_weights()
        other.watch = watch
        if self.guidance is not None:
            other.guidance = self.guidance.with_weight(weight, can_be_silent=can_be_silent)
        return other

    def steering(self, guide: Guide | None) -> dict[str, Any]:
        """Return the arguments of a search by which it is steered and watched."""
        return {"guide": guide, "watch": self.watch}

    def _sharing_weights(self) -> Self:
        """Return a copy of the model with the same tensors."""
        other = copy(self)
        other._buffers, other._modules = dict(self._buffers), dict(self._modules)  # the tensors in them are shared
        return other

    @abstractmethod
    def search(self, batch: SequenceBatch, k: int, *, guide: Guide | None) -> Recommendations:
        """Return the k best items of each request under this guide; every history has at least one event."""

    def _recommend(self, batch: SequenceBatch, k: int) -> Recommendations:
        return self.search(batch, k, guide=None if self.guidance is None else self.guidance.guide(batch))


def _shares(scores: SparseScores, temperature: float, unseen: Tensor | None) -> SparseScores:
    """Return the share of each entry in the sum of its request; entries of `unseen` items count as 0."""
    values = scores.values
    if values.numel() and not bool(values.isfinite().all() & (values >= 0).all()):
        raise ValueError("scores that become probabilities must be finite and at least 0, and some are not")
    if unseen is not None:
        values = values.masked_fill(unseen[scores.items.values], 0)
    rows = scores.items.row_ids()
    largest = values.new_zeros(scores.items.num_rows).scatter_reduce_(0, rows, values, "amax")
    values = values / largest.clamp(min=torch.finfo(values.dtype).tiny)[rows]
    if temperature != 1:
        values = values ** (1 / temperature)
    totals = SparseScores(scores.items, values, scores.num_items).totals()
    return SparseScores(
        Jagged(scores.items.values, scores.items.offsets),
        values / totals.masked_fill(totals == 0, 1.0)[rows],
        scores.num_items,
    )
