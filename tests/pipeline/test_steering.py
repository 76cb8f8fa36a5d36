"""Models with another weight of their guide, or another objective: the lists change, the trained models do not."""

from __future__ import annotations

import pytest
import torch
from support.small_models import identified, small_model
from torch import Tensor

from nextitem.cascade.cascade import Cascade, CascadeConfig
from nextitem.core.batch import SequenceBatch
from nextitem.core.errors import UserError
from nextitem.core.jagged import Jagged
from nextitem.decoding.guidance import GuidedRecommender, GuideUse
from nextitem.models.rankers.config import RankingConfig
from nextitem.models.rankers.ranking_model import RankingModel
from nextitem.nn.fields.fields import FieldCodes
from nextitem.pipeline.steering import objectives_of, ordered_by, with_guide_weight
from nextitem.testing.known_answers import cycle

BATCH = SequenceBatch(Jagged.from_rows([[1, 2], [5, 3]]))


class TwoOrders(RankingModel):
    """Ranker that finds the first items likeliest to be clicked, and the last ones likeliest to be bought."""

    Config = RankingConfig

    def logits(self, batch: SequenceBatch, codes: FieldCodes) -> Tensor:
        assert batch.candidates is not None
        items = batch.candidates.values.float()
        return torch.stack([-items, items / 10], 1)[:, : len(self.tasks)]


def guided(name: str) -> GuidedRecommender:
    guide = {"model": {"name": "support.planted_scorers:Planted", "right_after": 12}}
    model = small_model(name, identified(cycle()), guide=guide)
    assert isinstance(model, GuidedRecommender)
    assert model.guidance is not None
    model.guidance.use(GuideUse(0.3))
    return model


@pytest.mark.parametrize("name", ["depth-decoder", "tiger"])
def test_another_weight_of_the_guide_holds_for_the_copy_alone(name: str) -> None:
    model = guided(name)
    before = model.recommend(BATCH, 5)
    alone, led = with_guide_weight(model, 0), with_guide_weight(model, 1)
    assert alone.recommend(BATCH, 5).item_ids.equal(model.without_guide().recommend(BATCH, 5).item_ids)
    assert led.recommend(BATCH, 5).item_ids[:, 0].tolist() == [3, 4]
    same = with_guide_weight(model, 0.3).recommend(BATCH, 5)
    after = model.recommend(BATCH, 5)
    for answer in (same, after):
        assert answer.item_ids.equal(before.item_ids)
        assert answer.scores.equal(before.scores)
    assert alone.weights_fingerprint() == model.weights_fingerprint()  # states of histories stay valid


def test_a_weight_that_cannot_be_used_is_refused() -> None:
    for model in (small_model("sasrec", cycle()), small_model("tiger", identified(cycle()))):
        with pytest.raises(UserError, match="has no guide"):
            with_guide_weight(model, 0.5)
    with pytest.raises(UserError, match="0 to 1"):
        with_guide_weight(guided("tiger"), 1.5)


def test_one_objective_orders_the_list() -> None:
    model = TwoOrders(RankingConfig(tasks=("click", "buy")), cycle().catalog).eval()
    assert objectives_of(model) == ("click", "buy")
    assert ordered_by(model, "buy").recommend(BATCH, 3).item_ids[0].tolist() == [12, 11, 10]
    assert ordered_by(model, "click").recommend(BATCH, 3).item_ids[0].tolist() == [1, 2, 3]
    assert model.recommend(BATCH, 3).item_ids[0].tolist() == [1, 2, 3]
    assert model.config.order_by == {}


def test_a_cascade_orders_by_an_objective_of_its_ranker() -> None:
    channels = {"popular": {"model": {"name": "popularity"}, "quota": 12}}
    ranking = {"model": {"name": "lr", "tasks": ("click", "buy")}, "keep": 12}
    model = Cascade(CascadeConfig(candidates=12, channels=channels, ranking=ranking), cycle().catalog).eval()
    model.ranker = TwoOrders(RankingConfig(tasks=("click", "buy")), cycle().catalog)
    model.set_popularity_from(cycle())
    assert objectives_of(model) == ("click", "buy")
    assert ordered_by(model, "buy").recommend(BATCH, 3).item_ids[0].tolist() == [12, 11, 10]
    assert model.recommend(BATCH, 3).item_ids[0].tolist() == [1, 2, 3]


def test_objectives_that_do_not_exist_are_refused() -> None:
    model = TwoOrders(RankingConfig(tasks=("click", "buy")), cycle().catalog)
    with pytest.raises(UserError, match="no objective is called 'love'; there are click, buy"):
        ordered_by(model, "love")
    with pytest.raises(UserError, match="SASRec has none"):
        ordered_by(small_model("sasrec", cycle()), "click")
