"""The type of the fixture `ranker`, which builds rankers for the tests of their models."""

from __future__ import annotations

from typing import Protocol, TypeVar

from nextitem.models.rankers.ranking_model import RankingModel

RankerT = TypeVar("RankerT", bound=RankingModel)


class BuildRanker(Protocol):
    """`ranker(DIN, width=2)`: the model with these settings and fitted fields."""

    def __call__(self, kind: type[RankerT], **settings: object) -> RankerT: ...
