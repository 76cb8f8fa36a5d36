"""Cascade: retrieval, pre-ranking, ranking and re-ranking as one Recommender.

Covington, Adams and Sargin, Deep Neural Networks for YouTube Recommendations, RecSys 2016, and later systems of that
kind. Several channels retrieve candidates. Their lists are merged by a measured rate of each rank in each channel. Two
rankers, a cheap one and a better one, reduce the candidates. Re-rankers select the list that is shown.

Notable
- Channels, rankers and re-rankers are registered models with their own settings. Every stage except retrieval is
  optional. Rankers can read the candidates' ranks in the channels (fields candidate.<channel>).
- A stage sees only the candidates that the stage before it returned. `stages` yields the candidates after each stage,
  so that those that a stage drops can be counted (evaluation/funnel.py).
- If fewer items are retrieved than requested, popular items follow.

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
from nextitem.core.components import build_component, fill_in_settings, needs_of, unused_settings_of
from nextitem.core.config import Requirement
from nextitem.core.jagged import Jagged
from nextitem.core.recommendations import Recommendations
from nextitem.core.recommender import Recommender
from nextitem.core.top_items import append_unseen

POPULAR = "popular"  # name of the channel of items that are appended if the channels retrieve too few


class ChannelConfig(configs.Config):
    """Settings of one retrieval channel."""

    quota: int = Field(200, ge=1)
    """Largest number of items that the channel retrieves."""
    model: dict[str, Any]
    """Name and settings of the registered model that retrieves."""


class StageConfig(configs.Config):
    """Settings of a ranker between retrieval and the final list."""

    keep: int = Field(200, ge=1)
    """Number of items that remain after the stage; k if a request asks for more."""
    model: dict[str, Any]
    """Name and settings of a registered model that ranks candidates."""
    teacher: bool = False
    """Whether pre-ranking also learns the scores of the ranker (distillation); pre-ranking only."""


class CascadeConfig(configs.Config):
    """Settings of the cascade."""

    channels: dict[str, ChannelConfig] = Field(min_length=1)
    """Retrieval channels by name."""
    candidates: int = Field(1000, ge=1)
    """Number of candidates that remain after the lists of the channels are merged."""
    pre_ranking: StageConfig | None = None
    """Cheap ranker that reduces the merged candidates; none: no such stage."""
    ranking: StageConfig | None = None
    """Ranker that orders the candidates; none: the order of the merged channels."""
    reranking: tuple[dict[str, Any], ...] = ()
    """Names and settings of registered re-rankers, in the order in which they run."""
    reranked_from: int = Field(50, ge=1)
    """Number of best items from which re-rankers select; at least k."""
    recent_share: float = Field(0.2, gt=0, lt=1)
    """Share of training events, the latest ones, from which rankers learn; channels first learn from the rest."""
    recent_events: int = Field(30_000, ge=1)
    """Largest number of recent events from which rankers learn."""
    returns: int | None = Field(None, ge=1)
    """Number of evenly spaced times; rankers learn from each user's first event after each; none: from all events."""
    negatives: int = Field(40, ge=1)
    """Number of candidates, in addition to the target, from which a ranker learns at each event."""

    @pydantic.model_validator(mode="after")
    def _fill_in_parts(self) -> CascadeConfig:
        """Fill in all settings of every part, so that the recipe of a run contains all of them."""
        for where, kind, table in self.tables():
            fill_in_settings(kind, table, where=where)
        return self

    def tables(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Yield (place in the recipe, kind of component, table of settings) of every part."""
        for name, channel in self.channels.items():
            yield f"[model.channels.{name}.model]", "model", channel.model
        for name, stage in (("pre_ranking", self.pre_ranking), ("ranking", self.ranking)):
            if stage is not None:
                yield f"[model.{name}.model]", "model", stage.model
        for table in self.reranking:
            yield "[[model.reranking]]", "reranker", table

    def unused_settings(self) -> tuple[str, ...]:
        """Return a sentence for each field of a part that has no effect there.

        The table of every part contains all of its settings, so a field counts as set if it is not at its default.
        """
        sentences = list(super().unused_settings())
        for where, kind, table in self.tables():
            sentences += unused_settings_of(kind, table, where=where)
            if table.get("calibration") is not None:
                sentences.append(
                    f"{where} calibration = {table['calibration']!r} has no effect: stages of a cascade order "
                    "candidates, and no curve is fitted to their scores"
                )
        return tuple(sentences)

    @property
    def needs(self) -> frozenset[Requirement]:
        """Requirements on the catalogue: those of all parts together."""
        needs = (needs_of(kind, table, where=where) for where, kind, table in self.tables())
        return frozenset().union(*needs)


class Cascade(Recommender):
    """Recommender that retrieves candidates by several channels and narrows them down in stages."""

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

    def reset_channel(self, name: str) -> Recommender:
        """Replace a channel by an untrained model with the same settings, and return that model."""
        table = self.config.channels[name].model
        model = cast(Recommender, build_component("model", table, self.catalog, where=f"channel {name}"))
        self.channels[self.channel_names.index(name)] = model
        return model

    def set_popularity(self, counts: Tensor) -> None:
        """Store how often each item occurs in training [N + 1], the same counts for every stage; entry 0 must be 0."""
        super().set_popularity(counts)
        for part in self.modules():
            if isinstance(part, Recommender) and part is not self:
                part.set_popularity(counts)

    def retrieve(self, batch: SequenceBatch) -> list[Recommendations]:
        """Return the list of each channel, [B, quota of the channel]."""
        requests = replace(batch, candidates=None, candidate_features={}, candidate_labels={})
        quotas = self.rates.quotas
        return [
            cast(Recommender, channel).recommend(requests, quota)
            for channel, quota in zip(self.channels, quotas, strict=True)
        ]

    def candidates(self, batch: SequenceBatch, k: int) -> Candidates:
        """Return the merged candidates of the channels; popular items follow if they are fewer than k."""
        merged = self.rates.merge(self.retrieve(batch), max(k, self.config.candidates))
        is_candidate = merged.items > 0
        lengths = is_candidate.sum(1)
        if int(lengths.min()) >= k:
            return merged
        retrieved_items = Jagged.from_lengths(merged.items[is_candidate], lengths)
        excluded = retrieved_items if batch.excluded is None else batch.excluded.append(retrieved_items)
        popular = self._popular(replace(batch, excluded=excluded), k).item_ids
        return merged.append(popular, channel=len(self.channel_names))

    def retrieve_candidates(self, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        """Return the merged candidates [B, C] and their ranks in the channels [B, C, c], from which rankers learn."""
        merged = self.candidates(batch, 1)
        return merged.items, merged.ranks

    def with_candidates(self, batch: SequenceBatch, items: Tensor, ranks: Tensor) -> SequenceBatch:
        """Return the requests with candidates, whose ranks in the channels are added as features.

        Args:
            batch: the requests.
            items: candidates [B, k]; 0 is padding.
            ranks: their ranks in the channels [B, k, c], from 1; 0 if a channel did not retrieve the item.

        Returns:
            The requests with the candidates, and one candidate feature for each channel, with the channel's name.

        """
        is_candidate = items > 0
        candidates = Jagged.from_lengths(items[is_candidate], is_candidate.sum(1))
        values = ranks[is_candidate].float()
        features = {name: candidates.with_values(values[:, column]) for column, name in enumerate(self.channel_names)}
        return replace(batch, candidates=candidates, candidate_features=features)

    @property
    def can_rank_unseen_items(self) -> bool:
        """Whether a channel or a ranker can distinguish items without a training event."""
        parts = [part for part in (*self.channels, self.pre_ranker, self.ranker) if part is not None]
        return any(cast(Recommender, part).can_rank_unseen_items for part in parts)

    def stages(self, batch: SequenceBatch, k: int) -> Iterator[tuple[str, Recommendations]]:
        """Yield the name of each stage and the candidates after it, best first; the last one is the answer, [B, k].

        Unless a channel or a ranker can rank unseen items, no unseen item passes the stages. Such items fill lists that
        are shorter than k, before any re-ranking.
        """
        original, unseen = batch, self.unseen_items()
        if unseen is not None:
            batch = replace(batch, allowed=~unseen[None] if batch.allowed is None else batch.allowed & ~unseen)
        candidates = self.candidates(batch, k)
        answer = self._with_channels(Recommendations(candidates.items, candidates.scores), candidates)
        yield "retrieval", answer
        for name, stage, ranker in (
            ("pre-ranking", self.config.pre_ranking, self.pre_ranker),
            ("ranking", self.config.ranking, self.ranker),
        ):
            if ranker is None or stage is None:
                continue
            requests = self.with_candidates(batch, answer.item_ids, candidates.ranks_of(answer.item_ids))
            count = min(max(stage.keep, k), answer.item_ids.shape[1])
            answer = self._with_channels(ranker.recommend(requests, count), candidates)
            yield name, answer
        if self.rerankers:
            answer = self._fill_up(_first(answer, max(k, self.config.reranked_from)), original, unseen, k)
            for reranker in self.rerankers:
                answer = cast(Reranker, reranker).rerank(answer, original, k)
            yield "re-ranking", answer
        else:
            yield "list", self._fill_up(_first(answer, k), original, unseen, k)

    def _recommend(self, batch: SequenceBatch, k: int) -> Recommendations:
        *_, (_, answer) = self.stages(batch, k)
        return answer

    def _ranker(self, where: str, stage: StageConfig | None) -> Recommender | None:
        """Build the ranker of a stage; if it has a setting for candidate features, these are the channels' ranks."""
        if stage is None:
            return None
        table = dict(stage.model)
        if "candidate_features" in table:
            table["candidate_features"] = self.channel_names
        return cast(Recommender, build_component("model", table, self.catalog, where=where))

    def _fill_up(self, answer: Recommendations, batch: SequenceBatch, unseen: Tensor | None, k: int) -> Recommendations:
        """Fill lists shorter than k with unseen items, which no channel retrieved; their channel is POPULAR."""
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

    def _with_channels(self, answer: Recommendations, candidates: Candidates) -> Recommendations:
        """Add to each item the channel from which it comes."""
        names = (*self.channel_names, POPULAR)
        return answer.annotated(channel=candidates.channel_of(answer.item_ids), channels=names, fallback=None)


def _first(answer: Recommendations, count: int) -> Recommendations:
    """Return the first `count` items of each list, with padding if there are fewer."""
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
