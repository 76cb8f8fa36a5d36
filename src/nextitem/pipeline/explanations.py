"""Explanations: which events carry a recommendation, how a search walked down the trie, and what each stage decided.

Which events carry an item is found by leaving them out. The model scores the listed items again for the history without
all events of one of its items, for the latest of them. What the score falls by is what these events contribute. This is
the same for every model, and exact: no gradient, no weight of an attention stands in for the score.

Shapes: B requests, N items, K items of a list, V variants of histories.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import polars as pl
import torch
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.jagged import Jagged
from nextitem.core.recommendations import Recommendations
from nextitem.core.recommender import Recommender
from nextitem.core.roles import Staged
from nextitem.decoding.beam_trace import BeamTrace, TracedLevel
from nextitem.decoding.guidance import GuidedRecommender

MAX_NEIGHBOURS = 10  # latest items of a history that are left out, one after another
MAX_EXPLAINED = 50  # items of a list whose neighbours are computed
NOISE = 1e-5  # differences of scores below this part of the score are rounding


@dataclass(frozen=True)
class Neighbour:
    """An item of the history, and its share in the score of a listed item; the shares of one listed item sum to 1."""

    item_id: Any
    title: str
    share: float


@dataclass(frozen=True)
class StagePosition:
    """The place of an item after a stage of a cascade, from 1."""

    stage: str
    position: int


@dataclass(frozen=True)
class ExplainedItem:
    """Why an item is in a list.

    Attributes:
        item_id: id of the item.
        channel: for a cascade, the channel that retrieved it.
        neighbours: items of the history that raise its score, the largest share first.
        stages: for a cascade, its place after each stage that has it.

    """

    item_id: Any
    channel: str | None = None
    neighbours: tuple[Neighbour, ...] = ()
    stages: tuple[StagePosition, ...] = ()


@dataclass(frozen=True)
class ExplainedPrefix:
    """A prefix of semantic IDs in a search, with titles of the most popular items below it (see TracedPrefix)."""

    codes: tuple[int, ...]
    score: float
    state: str
    model: float | None = None
    guide: float | None = None
    titles: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExplainedLevel:
    """The prefixes of one level of a search, and how many were cut because no item below them is allowed."""

    level: int
    prefixes: tuple[ExplainedPrefix, ...]
    cut_by_constraint: int


@dataclass(frozen=True)
class Explanation:
    """Explanation of a list: of its items, in order, and of the levels of the search, if the model generates."""

    items: tuple[ExplainedItem, ...]
    levels: tuple[ExplainedLevel, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the explanation as plain lists and dicts, without what is missing."""
        items = [_plain(item, required=("neighbours",)) for item in self.items]
        levels = [_plain(level, required=("prefixes",)) for level in self.levels]
        return {"items": items, "levels": levels}


@torch.inference_mode()
def recommend_explained(
    model: Recommender, batch: SequenceBatch, k: int, titles: pl.Series
) -> tuple[Recommendations, list[Explanation]]:
    """Return the lists of `model.recommend(batch, k)`, and an explanation of each.

    Args:
        model: the model, in evaluation mode.
        batch: the requests.
        k: number of items to return.
        titles: titles of the items of the catalogue.

    """
    trace = BeamTrace()
    is_generator = isinstance(model, GuidedRecommender)
    answer = (model.steered(watch=trace) if isinstance(model, GuidedRecommender) else model).recommend(batch, k)
    has_history = batch.items.lengths > 0
    levels: list[tuple[TracedLevel, ...]] = [()] * batch.num_requests
    if is_generator:
        levels = _levels(model, batch, k, trace)
    neighbours = _neighbours(model, batch, answer)
    stages = _stages(model, batch, k, has_history) if isinstance(model, Staged) else []
    explanations = []
    for row in range(batch.num_requests):
        numbers = [number for number in answer.item_ids[row].tolist() if number]
        is_answered = answer.fallback is None or not bool(answer.fallback[row])
        channels = _channels(answer, row) if is_answered else []
        names = _Names(model.catalog, titles)
        items = [
            ExplainedItem(
                item_id,
                channels[place] if channels else None,
                tuple(Neighbour(*names.of(other), round(share, 4)) for other, share in neighbours[row].get(number, ())),
                tuple(StagePosition(name, places[number]) for name, places in stages[row] if number in places)
                if stages
                else (),
            )
            for place, (number, item_id) in enumerate(zip(numbers, names.ids(numbers), strict=True))
        ]
        explanations.append(Explanation(tuple(items), tuple(_named(level, names) for level in levels[row])))
    return answer, explanations


def _levels(model: Recommender, batch: SequenceBatch, k: int, trace: BeamTrace) -> list[tuple[TracedLevel, ...]]:
    """Return the levels of each request's search, which `trace` has recorded."""
    assert isinstance(model, GuidedRecommender)
    free = None
    if batch.allowed is not None or batch.excluded is not None:
        free = BeamTrace()
        model.steered(watch=free).recommend(replace(batch, allowed=None, excluded=None), k)
    levels: list[tuple[TracedLevel, ...]] = [()] * batch.num_requests
    # Requests without a history are answered without a search.
    for place, row in enumerate((batch.items.lengths > 0).nonzero()[:, 0].tolist()):
        levels[row] = trace.levels(place, model.popularity, free=free)
    return levels


def _neighbours(
    model: Recommender, batch: SequenceBatch, answer: Recommendations
) -> list[dict[int, list[tuple[int, float]]]]:
    """Return for each request its listed items, each with items of the history and their shares in its score."""
    result: list[dict[int, list[tuple[int, float]]]] = [{} for _ in range(batch.num_requests)]
    is_popular = torch.zeros(batch.num_requests, dtype=torch.bool) if answer.fallback is None else answer.fallback.cpu()
    unseen = model.unseen_items()
    owners: list[int] = []
    dropped: list[int] = []
    for row, history in enumerate(batch.items.to_lists()):
        latest = list(dict.fromkeys(reversed(history)))[:MAX_NEIGHBOURS]
        listed = answer.item_ids[row, :MAX_EXPLAINED]
        if unseen is not None:
            listed = listed[~unseen[listed]]  # no event speaks for them
        items = [item for item in listed.tolist() if item]
        if bool(is_popular[row]) or not items:
            continue
        if len(set(history)) == 1:
            result[row] = {item: [(latest[0], 1.0)] for item in items}
            continue
        result[row] = {item: [] for item in items}
        owners += [row] * (len(latest) + 1)
        dropped += [0, *latest]
    if not owners:
        return result
    scores = _scores_of(model, batch, result, owners, dropped)
    for row in dict.fromkeys(owners):
        variants = [place for place, owner in enumerate(owners) if owner == row]
        whole, others = scores[variants[0]], variants[1:]
        for item, shares in result[row].items():
            falls = [(dropped[place], whole[item] - scores[place].get(item, whole[item])) for place in others]
            falls = [(other, fall) for other, fall in falls if fall > NOISE * abs(whole[item])]
            total = sum(fall for _, fall in falls)
            shares += sorted(((other, fall / total) for other, fall in falls), key=lambda pair: -pair[1])
    return result


def _scores_of(
    model: Recommender,
    batch: SequenceBatch,
    listed: Sequence[dict[int, Any]],
    owners: Sequence[int],
    dropped: Sequence[int],
) -> list[dict[int, float]]:
    """Return the scores of the listed items for histories without an item.

    Args:
        model: the model.
        batch: the requests.
        listed: the items of each request, as keys.
        owners: for each of V variants, the request that it is of.
        dropped: the item that its history is without; 0: none.

    """
    device = batch.items.offsets.device
    rows = Jagged.from_rows([sorted(listed[owner]) for owner in owners]).to(device)
    allowed = torch.zeros(len(owners), model.num_items + 1, dtype=torch.bool, device=device)
    allowed[rows.row_ids(), rows.values] = True
    plain = replace(batch, allowed=None, excluded=None, candidates=None, state=None, targets=None)
    variants = without_items(plain.select(torch.tensor(owners, device=device)), torch.tensor(dropped, device=device))
    variants = replace(variants, allowed=allowed, candidates=rows)
    # Scores are compared, so the guide must have the same weight for all of them.
    scorer = model.steered(can_be_silent=False) if isinstance(model, GuidedRecommender) else model
    answer = scorer.recommend(variants, int(rows.lengths.max()))
    return [
        {item: score for item, score in zip(items, scores, strict=True) if item}
        for items, scores in zip(answer.item_ids.tolist(), answer.scores.tolist(), strict=True)
    ]


def without_items(batch: SequenceBatch, items: Tensor) -> SequenceBatch:
    """Return the requests without the events of one item each, `items [B]` (0: none)."""
    rows = batch.items.row_ids()
    stays = batch.items.values != items[rows]
    lengths = torch.bincount(rows[stays], minlength=batch.num_requests)

    def part(column: Jagged) -> Jagged:
        return Jagged.from_lengths(column.values[stays], lengths)

    return replace(
        batch,
        items=part(batch.items),
        actions=None if batch.actions is None else part(batch.actions),
        timestamps=None if batch.timestamps is None else part(batch.timestamps),
        features={name: part(column) for name, column in batch.features.items()},
    )


def _stages(model: Staged, batch: SequenceBatch, k: int, has_history: Tensor) -> list[list[tuple[str, dict[int, int]]]]:
    """Return for each request the stages of its answer, each with the place of every item that it has."""
    places: list[list[tuple[str, dict[int, int]]]] = [[] for _ in range(batch.num_requests)]
    rows = has_history.nonzero()[:, 0]
    if not len(rows):
        return places
    for name, answer in model.stages(batch.select(rows), k):
        for row, items in zip(rows.tolist(), answer.item_ids.tolist(), strict=True):
            places[row].append((name, {item: place for place, item in enumerate(items, 1) if item}))
    return places


def _channels(answer: Recommendations, row: int) -> list[str]:
    """Return the channel of each item of a list; empty if there are no channels."""
    return [] if answer.channel is None else [answer.channels[number] for number in answer.channel[row].tolist()]


def _named(level: TracedLevel, names: _Names) -> ExplainedLevel:
    """Return a level with titles, and rounded values."""
    prefixes = [
        ExplainedPrefix(
            prefix.codes,
            round(prefix.score, 6),
            prefix.state,
            None if prefix.model is None else round(prefix.model, 6),
            None if prefix.guide is None else round(prefix.guide, 6),
            tuple(names.titles_of(prefix.items)),
        )
        for prefix in level.prefixes
    ]
    return ExplainedLevel(level.level, tuple(prefixes), level.num_cut)


@dataclass(frozen=True)
class _Names:
    """Ids and titles of the items of a catalogue by their numbers."""

    catalog: Catalog
    titles: pl.Series

    def ids(self, numbers: Sequence[int]) -> list[Any]:
        """Return the external ids of items."""
        return self.catalog.ids.decode(torch.tensor(numbers, dtype=torch.int64).numpy()).to_list()

    def titles_of(self, numbers: Sequence[int]) -> list[str]:
        """Return the titles of items."""
        return [str(self.titles[number - 1]) for number in numbers]

    def of(self, number: int) -> tuple[Any, str]:
        """Return id and title of an item."""
        return self.ids([number])[0], str(self.titles[number - 1])


def _plain(value: Any, *, required: Sequence[str] = ()) -> Any:
    """Return records as dicts and tuples as lists; fields that are None or empty are left out unless required."""
    if is_dataclass(value):
        parts = {part.name: _plain(getattr(value, part.name)) for part in fields(value)}
        return {name: part for name, part in parts.items() if name in required or (part is not None and part != [])}
    return [_plain(part) for part in value] if isinstance(value, tuple) else value
