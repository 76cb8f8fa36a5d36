"""Blend: a mixture of the probabilities that several models give to items, with weights chosen on validation.

Linear mixtures of models are old (linear opinion pools: Stone 1961; stacked regressions: Breiman 1996). They are strong
where the parts err on different requests: a walk on item transitions memorises, a sequence model generalises. MemGen
(arXiv 2603.19809) mixes the scores of such a pair by the confidence in each request; here the weights are the same for
all requests.

    p_m(i)   = share or softmax of the scores of part m                      (core/item_probabilities.py)
    mixture:   score(i) = sum_m w_m p_m(i)                                   a probability
    product:   score(i) = sum_m w_m log(p_m(i) + floor)                      a floor, or one part could veto an item

Notable
- A part is any model that scores every item (roles.ItemScorer), with settings of its own. It is trained as if it were
  alone. Nothing of a part is trained for the mixture.
- Weights and temperatures that are "validation" are chosen on validation requests, after the parts are trained
  (evaluation/mixture_weights.py). A part that does not help beyond noise gets the weight 0, and is then never asked.
- A part whose scores of a request are all 0 knows nothing of it, and its weight goes to the others. If no part knows
  anything, popularity answers.
- Items that a part cannot rank, as they have no training event, have the probability 0 in it. They come last if no
  part can rank them.
- A negative score of a part with "share" counts as 0. Training refuses a part with negative scores on validation.

Shapes: B requests, N items, P parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import pydantic
import torch
from pydantic import Field
from torch import Tensor, nn

from nextitem.core import config as configs
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.components import build_component, component_class, fill_in_settings, needs_of, unused_settings_of
from nextitem.core.config import Choice, Requirement
from nextitem.core.item_probabilities import Transform, item_probabilities
from nextitem.core.recommendations import Recommendations
from nextitem.core.recommender import Recommender
from nextitem.core.roles import ItemScorer
from nextitem.core.top_items import rank_unseen_last, top_items

BLOCK_SCORES = 2**24  # scores of one part that are computed at a time: 64 MiB


@dataclass(frozen=True)
class PartUse:
    """How a blend uses one part: its weight, and the way from its scores to probabilities."""

    weight: float
    transform: Transform
    temperature: float


class BlendPart(configs.Config):
    """Settings of one part of a blend."""

    model: dict[str, Any]
    """Name and settings of a registered model that scores every item; or its name alone."""
    weight: float | Literal["validation"] = "validation"
    """Weight of the part, relative to the others; validation: chosen on validation requests."""
    transform: Literal["share", "softmax", "validation"] | None = None
    """Way from scores to probabilities; none: share if no score on validation is negative, otherwise softmax."""
    temperature: float | Literal["validation"] = 1.0
    """Temperature of the probabilities: below 1 favours the best items more, above 1 less."""

    @pydantic.field_validator("model", mode="before")
    @classmethod
    def _name_as_table(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @pydantic.field_validator("weight", "temperature", mode="before")
    @classmethod
    def _number_or_validation(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and value < float("inf")
        is_valid = is_number and (value >= 0 if info.field_name == "weight" else value > 0)
        if not is_valid and value != "validation":
            least = "of at least 0" if info.field_name == "weight" else "above 0"
            raise ValueError(f'write a number {least}, or "validation"')
        return value


class Mixture(Choice):
    """Weighted mean of the probabilities."""

    kind: Literal["mixture"] = "mixture"
    """Weighted mean of the probabilities."""


class Product(Choice):
    """Weighted mean of the logarithms of the probabilities."""

    kind: Literal["product"] = "product"
    """Weighted mean of the logarithms of the probabilities."""
    floor: float = Field(1e-6, gt=0)
    """Added to each probability, so that an item with probability 0 in one part can still be listed."""


class BlendConfig(configs.Config):
    """Settings of Blend."""

    parts: dict[str, BlendPart]
    """Parts by name; training settings of a part are in the table [stages.NAME]."""
    combine: Mixture | Product = Field(Mixture(), discriminator="kind")
    """How the parts' probabilities become one score."""

    @pydantic.model_validator(mode="after")
    def _check_parts(self) -> BlendConfig:
        """Fill in all settings of every part; raise ValueError if the parts are no blend."""
        if len(self.parts) < 2:
            raise ValueError(f"a blend has at least two parts, and this one has {len(self.parts)}; add another")
        for where, table in self.tables():
            fill_in_settings("model", table, where=where)
            if not issubclass(component_class("model", table, where=where)[0], ItemScorer):
                raise ValueError(
                    f"{where} {table['name']} does not score every item, so it cannot be a part of a blend; use "
                    "item-graph, item-cf, sasrec, two-tower, ..., or give your class a method scores(batch)"
                )
            if issubclass(component_class("model", table, where=where)[0], Blend):
                raise ValueError(f"{where} is a blend itself; list its parts as parts of this one")
        fixed = [part.weight for part in self.parts.values() if not isinstance(part.weight, str)]
        total = sum(fixed)
        if len(fixed) == len(self.parts) and total <= 0:
            raise ValueError('the weights of the parts sum to 0; give one a weight above 0, or write "validation"')
        if 0 < len(fixed) < len(self.parts) and total >= 1:
            raise ValueError(
                f"the weights that are numbers sum to {total:g}, which leaves nothing for the parts with "
                'weight = "validation"; lower them below 1 in sum, or write numbers for all'
            )
        return self

    def tables(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (place in the recipe, table of settings) of every part."""
        for name, part in self.parts.items():
            yield f"[model.parts.{name}.model]", part.model

    def fixed_weights(self) -> list[float | None]:
        """Return the weight of each part that the settings fix, with a sum of at most 1; None: chosen on validation."""
        weights = [None if isinstance(part.weight, str) else part.weight for part in self.parts.values()]
        total = sum(weight for weight in weights if weight is not None)
        return weights if None in weights else [cast(float, weight) / total for weight in weights]

    def initial_uses(self) -> dict[str, PartUse]:
        """Return how the parts are used before anything is chosen: equal weights, share, temperature 1."""
        weights = self.fixed_weights()
        rest = 1 - sum(weight for weight in weights if weight is not None)
        return {
            name: PartUse(
                rest / weights.count(None) if weight is None else weight,
                "softmax" if part.transform == "softmax" else "share",
                1.0 if part.temperature == "validation" else part.temperature,
            )
            for (name, part), weight in zip(self.parts.items(), weights, strict=True)
        }

    def unused_settings(self) -> tuple[str, ...]:
        """Return a sentence for each setting that has no effect, those of the parts included."""
        parts = [unused_settings_of("model", table, where=where) for where, table in self.tables()]
        return (*super().unused_settings(), *(sentence for part in parts for sentence in part))

    @property
    def needs(self) -> frozenset[Requirement]:
        """Requirements on the catalogue: those of all parts together."""
        return frozenset().union(*(needs_of("model", table, where=where) for where, table in self.tables()))


class Blend(Recommender):
    """A recommender that ranks items by a mixture of the probabilities of several models."""

    Config = BlendConfig
    config: BlendConfig
    known_answers: ClassVar[tuple[str, ...]] = ("cycle", "checkerboard", "planted-clusters")
    weights: Tensor
    temperatures: Tensor
    is_softmax: Tensor

    def __init__(self, config: BlendConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        self.part_names = tuple(config.parts)
        self.parts = nn.ModuleList(self._build(name) for name in config.parts)
        # Buffers, so that the choice is saved with the weights: a bundle serves as it was chosen.
        self.register_buffer("weights", torch.zeros(len(config.parts), dtype=torch.float64))
        self.register_buffer("temperatures", torch.zeros(len(config.parts), dtype=torch.float64))
        self.register_buffer("is_softmax", torch.zeros(len(config.parts), dtype=torch.bool))
        self.use(config.initial_uses())

    def reset_part(self, name: str) -> Recommender:
        """Replace a part by an untrained model with the same settings, and return that model."""
        part = self._build(name)
        self.parts[self.part_names.index(name)] = part
        return part

    @property
    def uses(self) -> dict[str, PartUse]:
        """How each part is used, by name."""
        columns = zip(self.weights.tolist(), self.is_softmax.tolist(), self.temperatures.tolist(), strict=True)
        return {
            name: PartUse(weight, "softmax" if is_softmax else "share", temperature)
            for name, (weight, is_softmax, temperature) in zip(self.part_names, columns, strict=True)
        }

    def use(self, uses: Mapping[str, PartUse]) -> None:
        """Use the parts, all of which `uses` names, in this way; weights are divided by their sum."""
        ordered = [uses[name] for name in self.part_names]
        weights = torch.tensor([use.weight for use in ordered], dtype=torch.float64)
        self.weights.copy_(weights / weights.sum())
        self.temperatures.copy_(torch.tensor([use.temperature for use in ordered], dtype=torch.float64))
        self.is_softmax.copy_(torch.tensor([use.transform == "softmax" for use in ordered]))

    def set_popularity(self, counts: Tensor) -> None:
        """Store how often each item occurs in training [N + 1], the same counts for every part; entry 0 must be 0."""
        super().set_popularity(counts)
        for part in self.parts:
            cast(Recommender, part).set_popularity(counts)

    @property
    def can_rank_unseen_items(self) -> bool:
        """Whether a part with a weight above 0 can rank items without a training event."""
        used = zip(self.parts, self.weights.tolist(), strict=True)
        return any(weight > 0 and cast(Recommender, part).can_rank_unseen_items for part, weight in used)

    def part_scores(self, name: str, batch: SequenceBatch) -> Tensor:
        """Return the scores of one part, [B, N + 1].

        Raises ValueError if the part was built for another catalogue.
        """
        part = cast(Recommender, self.parts[self.part_names.index(name)])
        if part.catalog.fingerprint != self.catalog.fingerprint:
            raise ValueError(f"part {name} was built for other items than the blend; build it for the same catalogue")
        return cast(ItemScorer, part).scores(batch).to(self.popularity.device)

    def part_terms(self, name: str, scores: Tensor, uses: Sequence[PartUse]) -> list[Tensor]:
        """Return what a part adds to the score of each item, with weight 1, for each of some ways to use it.

        Args:
            name: name of the part.
            scores: its scores, [B, N + 1].
            uses: the ways.

        Returns:
            A tensor [B, N + 1] for each way: probabilities, or their logarithms. Rows of which the part knows nothing
            are 0.

        """
        unseen = cast(Recommender, self.parts[self.part_names.index(name)]).unseen_items()
        terms = []
        for use in uses:
            term = item_probabilities(scores, use.transform, temperature=use.temperature, unseen=unseen).float()
            if isinstance(self.config.combine, Product):
                is_silent = term.amax(1, keepdim=True) == 0
                term = term.add_(self.config.combine.floor).log_().masked_fill_(is_silent, 0.0)
            terms.append(term)
        return terms

    def scores(self, batch: SequenceBatch) -> Tensor:
        """Score every item for each request, [B, N + 1] (roles.ItemScorer)."""
        total = self.popularity.new_zeros(batch.num_requests, self.num_items + 1)
        weight_sums = total.new_zeros(batch.num_requests, 1)
        for name, use in self.uses.items():
            if use.weight > 0:
                scores = self.part_scores(name, batch)
                if use.transform == "share":
                    scores = scores.clamp(min=0)  # NaN stays, and is refused
                (term,) = self.part_terms(name, scores, [use])
                is_known = (term != 0).any(1, keepdim=True)
                total.add_(term, alpha=use.weight)
                weight_sums += use.weight * is_known
        is_answered = weight_sums[:, 0] > 0
        total /= weight_sums.clamp(min=torch.finfo(total.dtype).tiny)
        if not bool(is_answered.all()):
            total[~is_answered] = self.popularity / self.popularity.sum().clamp(min=1)
        return rank_unseen_last(total, self.unseen_items())

    def _recommend(self, batch: SequenceBatch, k: int) -> Recommendations:
        size = max(1, BLOCK_SCORES // (self.num_items + 1))
        if batch.num_requests <= size:
            return top_items(self.scores(batch), batch, k)
        answers = [top_items(self.scores(block), block, k) for block in batch.split(size)]
        return Recommendations(
            torch.cat([answer.item_ids for answer in answers]), torch.cat([answer.scores for answer in answers])
        )

    def _build(self, name: str) -> Recommender:
        """Return the untrained model of a part."""
        table = self.config.parts[name].model
        return cast(Recommender, build_component("model", table, self.catalog, where=f"[model.parts.{name}.model]"))
