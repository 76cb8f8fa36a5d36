"""Validation losses of models: those of training over the whole catalogue, or errors of the lists and scores."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
from support.small_models import identified, small_model

from nextitem.core.batch import SequenceBatch
from nextitem.core.config import Config
from nextitem.core.jagged import Jagged
from nextitem.core.recommendations import Recommendations
from nextitem.core.recommender import Recommender
from nextitem.core.roles import Trainable
from nextitem.evaluation.evaluate import quick_score
from nextitem.evaluation.target_loss import judged_requests, loss_name, target_loss
from nextitem.testing.known_answers import planted_clusters

NATS = "nats a target"


def requests(*rows: tuple[list[int], list[int]]) -> SequenceBatch:
    """Return requests of (history, targets)."""
    return SequenceBatch(
        Jagged.from_rows([history for history, _ in rows]), targets=Jagged.from_rows([targets for _, targets in rows])
    )


def training_loss(model: Recommender, batch: Any) -> float:
    """Return the loss that training minimises, without dropout."""
    return float(cast(Trainable[Any], model.eval()).training_loss(batch).total.detach())


ROWS = [([1, 2, 3], [4]), ([5, 6], [7]), ([2, 9, 4, 1], [3])]


@pytest.mark.parametrize("name", ["sasrec", "hstu"])
def test_the_loss_of_a_softmax_is_that_of_training_at_the_last_positions(name: str) -> None:
    data = planted_clusters()
    model = small_model(name, data, objective="full-softmax", dropout=0.3)
    model.train()
    loss = target_loss(model, requests(*ROWS))
    assert model.training  # as before
    assert loss_name(model, requests(*ROWS)) == NATS
    with torch.no_grad():
        logits = model.eval().user_vectors(requests(*ROWS)) @ model.item_vectors()[1:].T  # type: ignore[operator]
    targets = torch.tensor([target for _, (target,) in ROWS])
    assert loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, targets - 1)), rel=1e-5)


def test_biases_of_items_are_part_of_the_softmax() -> None:
    model = small_model("gru4rec", planted_clusters(), objective="cross-entropy")
    loss = target_loss(model, requests(*ROWS))
    with torch.no_grad():
        cast(Any, model).bias.weight[4] += 20.0  # the item of the first target
    assert target_loss(model, requests(ROWS[0])) < 1e-3
    assert target_loss(model, requests(*ROWS)) > loss


def test_the_loss_of_a_generator_is_the_sum_over_the_levels_of_its_training_loss() -> None:
    data = identified(planted_clusters(), (6, 8))
    model = small_model("tiger", data)
    batch = requests(*ROWS)
    num_levels = 2
    assert target_loss(model, batch) == pytest.approx(num_levels * training_loss(model, batch), rel=1e-5)
    assert loss_name(model, batch) == NATS


def test_each_of_several_targets_counts() -> None:
    data = identified(planted_clusters(), (6, 8))
    for model in (small_model("tiger", data), small_model("sasrec", data, objective="full-softmax")):
        together = target_loss(model, requests(([1, 2], [3, 4, 5]), ([4], [6])))
        pairs = [([1, 2], 3), ([1, 2], 4), ([1, 2], 5), ([4], 6)]
        alone = [target_loss(model, requests((history, [target]))) for history, target in pairs]
        assert together == pytest.approx(sum(alone) / 4, rel=1e-5)


def test_scores_that_are_no_logits_are_judged_by_the_lists() -> None:
    model = small_model("sasrec", planted_clusters(), objective="bce")
    batch = requests(*ROWS)
    assert loss_name(model, batch) == "1 - ndcg@10"
    assert target_loss(model, batch) == pytest.approx(1 - quick_score(model, batch, metric="ndcg@10"))


def test_requests_that_no_size_can_answer_are_dropped() -> None:
    trained = torch.tensor([False, True, True, True, False, True])
    batch = requests(([1], [2, 4]), ([2], [4]), ([], [3]), ([5, 1], [5, 1]))
    judged = judged_requests(batch, trained)
    assert judged.items.to_lists() == [[1], [5, 1]]
    assert judged.targets is not None
    assert judged.targets.to_lists() == [[2], [5, 1]]


class FixedRanker(Recommender):
    """Scores of candidates that a test chooses."""

    Config = Config
    scale = 1.0

    def _recommend(self, batch: SequenceBatch, k: int) -> Recommendations:
        raise AssertionError("it ranks candidates only")

    def score(self, batch: SequenceBatch) -> dict[str, torch.Tensor]:
        assert batch.candidates is not None
        return {"click": self.scale * batch.candidates.to_padded() / 10}


def test_a_ranker_is_judged_by_its_log_loss_on_impressions() -> None:
    labels = Jagged.from_rows([[1, 0], [1]], dtype=torch.float32)
    batch = SequenceBatch(
        Jagged.from_rows([[1], [2]]), candidates=Jagged.from_rows([[8, 3], [5]]), candidate_labels={"click": labels}
    )
    ranker = FixedRanker(Config(), planted_clusters().catalog)
    assert loss_name(ranker, batch) == "log-loss"
    assert target_loss(ranker, batch) == pytest.approx(-(math.log(0.8) + math.log(0.7) + math.log(0.5)) / 3)
    ranker.scale = 3.0
    with pytest.raises(ValueError, match="scores of FixedRanker are no probabilities"):
        target_loss(ranker, batch)
