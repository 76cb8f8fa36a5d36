"""What all rankers share: loss, scores aligned with candidates, lists within the request, slots unread."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.unknown_labels import drop_unlabelled, hide_labels
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.errors import UserError
from nextitem.core.jagged import Jagged
from nextitem.models.rankers.lr import LR, LRConfig
from nextitem.models.rankers.ranking_model import RankingConfig, RankingModel
from nextitem.nn.fields.fields import FieldCodes
from nextitem.testing.known_answers import cycle


class Known(RankingModel):
    """A ranker whose logit of item i is `table[i]`."""

    Config = RankingConfig
    table: Tensor = torch.tensor([0.0, 3, 1, 2, 2, 5, 0, -1, -2, -3, -4, -5, -6])

    def logits(self, batch: SequenceBatch, codes: FieldCodes) -> Tensor:
        assert batch.candidates is not None
        each = self.table[batch.candidates.values]
        return torch.stack([each + task for task in range(len(self.tasks))], 1)


def known(**settings: object) -> Known:
    return Known(RankingConfig(**settings), cycle().catalog)  # type: ignore[arg-type]


def asked(candidates: list[list[int]], labels: list[list[float]] | None = None, **fields: object) -> SequenceBatch:
    rows = Jagged.from_rows(candidates)
    given = (
        {} if labels is None else {"target": rows.with_values(torch.tensor([each for row in labels for each in row]))}
    )
    return SequenceBatch(
        Jagged.from_rows([[1]] * len(candidates)),
        candidates=rows,
        candidate_labels=given,
        **fields,  # type: ignore[arg-type]
    )


def test_scores_stand_as_the_candidates_do() -> None:
    found = known().score(asked([[5, 2, 9], [1]]))["target"]
    expected = torch.tensor([[5.0, 1.0, -3.0]]).sigmoid()
    torch.testing.assert_close(found[0], expected[0])
    assert found[1].tolist() == [pytest.approx(torch.tensor(3.0).sigmoid()), -torch.inf, -torch.inf]


def test_lists_stay_within_the_candidates_and_ties_go_to_the_smaller_item() -> None:
    excluded = Jagged.from_rows([[5], []])
    found = known().recommend(asked([[4, 3, 5, 1, 4], [9, 2]], excluded=excluded), 4)
    assert found.item_ids.tolist() == [[1, 3, 4, 0], [2, 9, 0, 0]]


def test_without_candidates_the_whole_catalogue_is_ranked() -> None:
    found = known().recommend(SequenceBatch(Jagged.from_rows([[1], [2]])), 5)
    assert found.item_ids.tolist() == [[5, 1, 3, 4, 2]] * 2


def test_tasks_are_put_together_by_the_weights_of_the_order() -> None:
    model = known(tasks=("click", "buy"), order_by={"click": 1.0, "buy": 2.0})
    found = model.recommend(asked([[5, 2]]), 2)
    logits = torch.tensor([5.0, 1.0])
    expected = torch.nn.functional.logsigmoid(logits) + 2 * torch.nn.functional.logsigmoid(logits + 1)
    torch.testing.assert_close(found.scores[0], expected)
    with pytest.raises(ValueError, match="order_by names cart, but tasks are click, buy"):
        known(tasks=("click", "buy"), order_by={"cart": 1.0})


def test_pointwise_loss_counts_requests_alike() -> None:
    loss = known().training_loss(asked([[5, 2, 9], [1]], [[1, 0, 0], [0]])).total
    softplus = torch.nn.functional.softplus
    first = (softplus(torch.tensor(-5.0)) + softplus(torch.tensor(1.0)) + softplus(torch.tensor(-3.0))) / 3
    torch.testing.assert_close(loss, (first + softplus(torch.tensor(3.0))) / 2)


def test_listwise_loss_is_the_softmax_over_a_request() -> None:
    loss = known(objective="listwise").training_loss(asked([[5, 2, 9], [1, 3]], [[0, 1, 0], [1, 0]])).total
    expected = -(torch.tensor([5.0, 1.0, -3.0]).log_softmax(0)[1] + torch.tensor([3.0, 2.0]).log_softmax(0)[0]) / 2
    torch.testing.assert_close(loss, expected)


NAN = float("nan")


@pytest.mark.parametrize("objective", ["pointwise", "listwise"])
def test_candidates_without_a_known_label_are_left_out_of_the_loss(objective: str) -> None:
    model = known(objective=objective)
    batch = asked([[5, 2, 9, 7], [1, 3], [4]], [[NAN, 1, 0, NAN], [1, NAN], [0]])
    loss = model.training_loss(batch).total
    torch.testing.assert_close(loss, model.training_loss(drop_unlabelled(batch)).total)
    as_no = asked([[5, 2, 9, 7], [1, 3], [4]], [[0, 1, 0, 0], [1, 0], [0]])
    assert not torch.isclose(loss, model.training_loss(as_no).total)


@pytest.mark.parametrize("objective", ["pointwise", "listwise"])
def test_a_request_without_any_known_label_teaches_nothing(objective: str) -> None:
    model = LR(LRConfig(fields=("item.id",), objective=objective), cycle().catalog)  # type: ignore[arg-type]
    model.training_loss(asked([[5, 2], [1, 3]], [[NAN, NAN], [1, 0]])).total.backward()
    gradient = model.vectors.table.weight.grad
    assert gradient is not None
    assert bool(gradient.isfinite().all())
    touched = gradient.abs().sum(1).nonzero()[:, 0].tolist()
    assert len(touched) == 2


def test_a_task_of_which_no_label_is_known_is_refused() -> None:
    model = known(tasks=("target",))
    with pytest.raises(UserError, match="label 'target' is not known of any impression"):
        model.examples_of(asked([[5, 2]], [[NAN, NAN]]), cycle().interactions)


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_calibration_reads_known_labels_only(kind: str) -> None:
    torch.manual_seed(0)
    rows = [torch.randint(1, 13, (6,)).tolist() for _ in range(50)]
    batch = asked(rows, [[float(torch.rand(()) < 0.4) for _ in row] for row in rows])
    hidden = hide_labels(batch)
    curves = []
    for requests in (hidden, drop_unlabelled(hidden), batch):
        model = known(calibration=kind)
        model.calibrate(requests)
        curves.append(model.score(asked([[1, 2, 3, 5]]))["target"])
    torch.testing.assert_close(curves[0], curves[1])
    assert not torch.allclose(curves[0], curves[2])


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(UserError, match="no label 'cart'; this data has target"):
        known(tasks=("cart",)).training_loss(asked([[1]], [[1]]))


def test_slots_are_read_in_training_alone() -> None:
    model = LR(LRConfig(fields=(), position="field"), cycle().catalog)
    torch.nn.init.normal_(model.vectors.table.weight)
    batch = asked([[5, 2]], [[1.0, 0.0]])
    shown = [
        replace(batch, candidate_features={"slot": Jagged.from_rows([slots]).with_values(torch.tensor(slots))})
        for slots in ([1.0, 2.0], [2.0, 1.0])
    ]
    model.eval()
    assert torch.equal(*(model.score(each)["target"] for each in shown))
    assert not torch.equal(*(model.training_loss(each).total for each in shown))


def test_positives_in_slots_that_are_rarely_seen_weigh_more() -> None:
    model = known(position="weight")
    model.examined = torch.tensor([1.0, 1.0, 0.25])
    batch = asked([[5, 2]], [[0.0, 1.0]])
    shown = replace(
        batch, candidate_features={"slot": Jagged.from_rows([[1, 2]]).with_values(torch.tensor([1.0, 2.0]))}
    )
    softplus = torch.nn.functional.softplus
    expected = (softplus(torch.tensor(5.0)) + 4 * softplus(torch.tensor(-1.0))) / 2
    torch.testing.assert_close(model.training_loss(shown).total, expected)


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_calibration_gives_probabilities_that_can_be_taken_at_their_word(kind: str) -> None:
    draw = torch.Generator().manual_seed(0)
    items = torch.randint(1, 13, (500, 4), generator=draw)
    truth = torch.sigmoid(0.5 * Known.table[items] - 1)  # logits are twice too steep, and too high
    labels = (torch.rand(500, 4, generator=draw) < truth).float()
    held = asked(items.tolist(), labels.tolist())
    model, plain = known(calibration=kind), known()
    model.calibrate(held)
    found = model.score(held)["target"]
    assert float((found - truth).abs().mean()) < 0.05
    assert float((plain.score(held)["target"] - truth).abs().mean()) > 0.1
    assert model.recommend(held, 4).item_ids.equal(plain.recommend(held, 4).item_ids)
    plain.calibrate(asked([[1]]))  # nothing is asked of it
    with pytest.raises(UserError, match=r"model\.calibration needs labelled validation"):
        model.calibrate(asked([[1]]))


def test_calibrated_tasks_are_put_together_by_their_probabilities() -> None:
    model = known(tasks=("click", "buy"), order_by={"buy": 2.0, "click": 1.0}, calibration="platt")
    rows = Jagged.from_rows([[5, 2, 9, 7]])
    labels = {"click": [1.0, 1, 0, 0], "buy": [1.0, 0, 0, 0]}
    batch = replace(
        asked([[5, 2, 9, 7]]), candidate_labels={name: rows.with_values(torch.tensor(v)) for name, v in labels.items()}
    )
    model.calibrate(batch)
    scores = model.score(batch)
    expected = scores["click"].log() + 2 * scores["buy"].log()
    torch.testing.assert_close(model.recommend(batch, 4).scores[0], expected[0].sort(descending=True).values)


def test_many_candidates_are_scored_in_blocks_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = LR(LRConfig(), cycle().catalog)
    torch.nn.init.normal_(model.vectors.table.weight)
    model.eval()
    batch = asked([[5, 2, 9], [1], [3, 4], [12, 7, 8, 6]])
    whole = model.score(batch)["target"]
    monkeypatch.setattr("nextitem.models.rankers.ranking_model.BLOCK", 3)
    assert torch.equal(model.score(batch)["target"], whole)
