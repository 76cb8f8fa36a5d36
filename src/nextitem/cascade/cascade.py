"""Cascade: retrieval, pre-ranking, ranking and re-ranking as one Recommender.

Covington, Adams and Sargin, Deep Neural Networks for YouTube Recommendations, RecSys 2016, and what came of it. Several
channels each bring candidates; their lists are merged by what a place in each is worth; two rankers, a cheap one and a
better one, narrow them down; re-rankers choose the list that is shown.

Notable
- Channels, rankers and re-rankers are the registered ones, with their own settings; every stage but retrieval may be
  left out. Rankers read the candidates' places in the channels (fields candidate.<channel>).
- A stage sees only what the one before it kept. `stages` gives the candidates after each of them, so that what a stage
  throws away can be counted (evaluation/funnel.py).
- Where fewer items are found than are asked for, popular ones follow.

Shapes: B requests, C candidates, K returned, c channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar, cast

import pydantic
import torch
from pydantic import Field
from torch import Tensor, nn

from nextitem.cascade.merging import Candidates, ChannelRates
from nextitem.cascade.reranker import Reranker
from nextitem.core import config as configs
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.components import build_component, component_class
from nextitem.core.config import Requirement
from nextitem.core.jagged import Jagged
from nextitem.core.recommendations import Recommendations
from nextitem.core.recommender import Recommender
from nextitem.core.top_items import append_unseen

POPULAR = "popular"  # the channel of what was added where channels found too little


class ChannelConfig(configs.Config):
    """One retrieval channel."""

    quota: int = Field(200, ge=1)
    """Items that it may bring."""
    model: dict[str, Any]
    """Name and settings of a registered model."""


class StageConfig(configs.Config):
    """A ranker between retrieval and the list."""

    keep: int = Field(200, ge=1)
    """Items that are left after it; more where more are asked for."""
    model: dict[str, Any]
    """Name and settings of a registered model that ranks given candidates."""
    teacher: bool = False
    """Of pre-ranking: learn the ranker's scores too (distillation)."""


class CascadeConfig(configs.Config):
    """Settings of Cascade."""

    channels: dict[str, ChannelConfig] = Field(min_length=1)
    """Name -> channel."""
    candidates: int = Field(1000, ge=1)
    """Items that are left after merging."""
    pre_ranking: StageConfig | None = None
    """A cheap ranker that reduces the merged candidates; none: no such stage."""
    ranking: StageConfig | None = None
    """The ranker that orders the candidates; none: the order of the merged channels."""
    reranking: tuple[dict[str, Any], ...] = ()
    """Names and settings of registered re-rankers, in their order."""
    reranked_from: int = Field(50, ge=1)
    """Best items that re-rankers choose from, at least k."""
    recent_share: float = Field(0.2, gt=0, lt=1)
    """Of training events that rankers learn from; channels the rest, first."""
    recent_events: int = Field(30_000, ge=1)
    """At most so many of them."""
    returns: int | None = Field(None, ge=1)
    """Learn only from each user's first event after each of so many times."""
    negatives: int = Field(40, ge=1)
    """Candidates beside the target that a ranker learns from, for each event."""

    @pydantic.model_validator(mode="after")
    def _filled_in(self) -> CascadeConfig:
        """Every setting of every part, so that the recipe of a run says all of them."""
        for where, kind, table in self.tables():
            _, settings = component_class(kind, table, where=where)
            table.update({"name": table["name"], **settings.model_dump()})
        return self

    def tables(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """(where it stands, its kind, its table) of every part."""
        for name, channel in self.channels.items():
            yield f"[model.channels.{name}.model]", "model", channel.model
        for name, stage in (("pre_ranking", self.pre_ranking), ("ranking", self.ranking)):
            if stage is not None:
                yield f"[model.{name}.model]", "model", stage.model
        for table in self.reranking:
            yield "[[model.reranking]]", "reranker", table

    def unused_settings(self) -> tuple[str, ...]:
        """Return a sentence for each field of a part that has no effect there.

        Every part names all its settings, so a field counts as set if it is not at its default.
        """
        sentences = list(super().unused_settings())
        for where, kind, table in self.tables():
            settings = component_class(kind, table, where=where)[1]
            changed = settings.model_dump(exclude_defaults=True)
            values = {name: getattr(settings, name) for name in type(settings).model_fields}
            own = type(settings).model_construct(_fields_set=set(changed), **values).unused_settings()
            sentences += [f"{where} {sentence}" for sentence in own]
            if "calibration" in changed:
                sentences.append(
                    f"{where} calibration = {changed['calibration']!r} has no effect: stages of a cascade order "
                    "candidates, and no curve is fitted to their scores"
                )
        return tuple(sentences)

    @property
    def needs(self) -> frozenset[Requirement]:
        """What the catalogue must carry: what any part needs."""
        needs: frozenset[Requirement] = frozenset()
        for where, kind, table in self.tables():
            part, settings = component_class(kind, table, where=where)
            needs |= settings.needs | (part.needs if kind == "model" else frozenset())
        return needs


class Cascade(Recommender):
    """Answers by a funnel of stages."""

    Config = CascadeConfig
    config: CascadeConfig
    known_answers: ClassVar[tuple[str, ...]] = ("checkerboard", "planted-clusters")

    def __init__(self, config: CascadeConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        self.channel_names = tuple(config.channels)
        self.channels = nn.ModuleList(
            build_component("model", channel.model, catalog, where=f"channel {name}")
            for name, channel in config.channels.items()
        )
        self.rates = ChannelRates([channel.quota for channel in config.channels.values()])
        self.pre_ranker = self._ranker("pre_ranking", config.pre_ranking)
        self.ranker = self._ranker("ranking", config.ranking)
        self.rerankers = nn.ModuleList(
            build_component("reranker", table, catalog, where="re-ranker") for table in config.reranking
        )

    def renew(self, name: str) -> Recommender:
        """A channel as it was before it learnt anything, put in its place."""
        table = self.config.channels[name].model
        fresh = cast(Recommender, build_component("model", table, self.catalog, where=f"channel {name}"))
        self.channels[self.channel_names.index(name)] = fresh
        return fresh

    def set_popularity(self, counts: Tensor) -> None:
        """Every stage reads the same counts."""
        super().set_popularity(counts)
        for part in self.modules():
            if isinstance(part, Recommender) and part is not self:
                part.set_popularity(counts)

    def retrieve(self, batch: SequenceBatch) -> list[Recommendations]:
        """Each channel's list, as long as its quota."""
        asked = replace(batch, candidates=None, candidate_features={}, candidate_labels={})
        quotas = self.rates.quotas
        return [
            cast(Recommender, channel).recommend(asked, quota)
            for channel, quota in zip(self.channels, quotas, strict=True)
        ]

    def candidates(self, batch: SequenceBatch, k: int) -> Candidates:
        """What the channels bring, merged; where that is fewer than k, popular items follow."""
        found = self.rates.merge(self.retrieve(batch), max(k, self.config.candidates))
        real = found.items > 0
        have = real.sum(1)
        if int(have.min()) >= k:
            return found
        brought = Jagged.from_lengths(found.items[real], have)
        out = brought if batch.excluded is None else batch.excluded.append(brought)
        popular = self._popular(replace(batch, excluded=out), k).item_ids
        return found.followed_by(popular, channel=len(self.channel_names))

    def retrieved(self, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        """Merged candidates [B, C] and their places in the channels [B, C, c]: what the rankers learn from."""
        merged = self.candidates(batch, 1)
        return merged.items, merged.ranks

    def with_candidates(self, batch: SequenceBatch, items: Tensor, ranks: Tensor) -> SequenceBatch:
        """The requests with these candidates [B, k] (0 is padding) and their places in the channels [B, k, c]."""
        real = items > 0
        rows = Jagged.from_lengths(items[real], real.sum(1))
        places = ranks[real].float()
        features = {name: rows.with_values(places[:, column]) for column, name in enumerate(self.channel_names)}
        return replace(batch, candidates=rows, candidate_features=features)

    @property
    def can_rank_unseen_items(self) -> bool:
        """Whether a channel or a ranker can."""
        parts = [part for part in (*self.channels, self.pre_ranker, self.ranker) if part is not None]
        return any(cast(Recommender, part).can_rank_unseen_items for part in parts)

    def stages(self, batch: SequenceBatch, k: int) -> Iterator[tuple[str, Recommendations]]:
        """Each stage's name and what is left after it, best first; the last one is the answer, [B, k].

        Unless a stage can rank unseen items, none of them passes the stages; they fill lists that are short of k,
        before any re-ranking.
        """
        whole, unseen = batch, self.unseen_items()
        if unseen is not None:
            batch = replace(batch, allowed=~unseen[None] if batch.allowed is None else batch.allowed & ~unseen)
        found = self.candidates(batch, k)
        left = self._attributed(Recommendations(found.items, found.worth), found)
        yield "retrieval", left
        for name, stage, ranker in (
            ("pre-ranking", self.config.pre_ranking, self.pre_ranker),
            ("ranking", self.config.ranking, self.ranker),
        ):
            if ranker is None or stage is None:
                continue
            asked = self.with_candidates(batch, left.item_ids, found.ranks_of(left.item_ids))
            keep = min(max(stage.keep, k), left.item_ids.shape[1])
            left = self._attributed(ranker.recommend(asked, keep), found)
            yield name, left
        if self.rerankers:
            left = self._filled(_first(left, max(k, self.config.reranked_from)), whole, unseen, k)
            for reranker in self.rerankers:
                left = cast(Reranker, reranker).rerank(left, whole, k)
            yield "re-ranking", left
        else:
            yield "list", self._filled(_first(left, k), whole, unseen, k)

    def _recommend(self, batch: SequenceBatch, k: int) -> Recommendations:
        *_, (_, answer) = self.stages(batch, k)
        return answer

    def _ranker(self, where: str, stage: StageConfig | None) -> Recommender | None:
        if stage is None:
            return None
        table = dict(stage.model)
        if "candidate_features" in table:
            table["candidate_features"] = self.channel_names
        return cast(Recommender, build_component("model", table, self.catalog, where=where))

    def _filled(self, answer: Recommendations, batch: SequenceBatch, unseen: Tensor | None, k: int) -> Recommendations:
        """Fill lists that are shorter than k with unseen items, which no channel has brought."""
        first = _first(answer, k)
        filled = append_unseen(first, batch, unseen)
        assert filled.channel is not None
        assert answer.channel is not None
        channel = filled.channel.masked_fill(filled.item_ids != first.item_ids, len(self.channel_names))
        return replace(
            answer,
            item_ids=torch.cat([filled.item_ids, answer.item_ids[:, k:]], 1),
            scores=torch.cat([filled.scores, answer.scores[:, k:]], 1),
            channel=torch.cat([channel, answer.channel[:, k:]], 1),
        )

    def _attributed(self, answer: Recommendations, found: Candidates) -> Recommendations:
        names = (*self.channel_names, POPULAR)
        return replace(answer, channel=found.channel_of(answer.item_ids), channels=names, fallback=None)


def _first(answer: Recommendations, count: int) -> Recommendations:
    """The first `count`, and padding where there are fewer."""
    assert answer.channel is not None
    missing = (0, max(0, count - answer.item_ids.shape[1]))

    def cut(column: Tensor, filler: float) -> Tensor:
        return nn.functional.pad(column[:, :count], missing, value=filler)

    return replace(
        answer,
        item_ids=cut(answer.item_ids, 0),
        scores=cut(answer.scores, -torch.inf),
        channel=cut(answer.channel, 0),
    )
