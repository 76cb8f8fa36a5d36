"""What all rankers share: loss, scores aligned with candidates, lists within the request, slots unread."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.unknown_labels import drop_unlabelled, hide_labels
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.config import parse
from nextitem.core.errors import UserError
from nextitem.core.jagged import Jagged
from nextitem.models.rankers.config import RankingConfig
from nextitem.models.rankers.lr import LR, LRConfig
from nextitem.models.rankers.ranking_model import RankingModel
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
    return Known(RankingConfig(**settings), cycle().catalog)


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
    model = LR(LRConfig(fields=("item.id",), objective=objective), cycle().catalog)
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
        replace(batch, candidate_features={"slot": Jagged.from_lengths(torch.tensor(slots), torch.tensor([2]))})
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


def labelled(items: list[list[int]], **labels: Tensor) -> SequenceBatch:
    rows = Jagged.from_rows(items)
    return replace(asked(items), candidate_labels={name: rows.with_values(each) for name, each in labels.items()})


@pytest.mark.parametrize(
    "weights", [{"click": 1.0, "buy": 0.5}, {"click": 1.0, "buy": 0.0}, {"buy": 2.0, "click": -1.0}]
)
@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_every_candidate_comes_back_in_the_order_of_calibrated_tasks(kind: str, weights: dict[str, float]) -> None:
    draw = torch.Generator().manual_seed(1)
    items = torch.stack([torch.randperm(12, generator=draw)[:10] + 1 for _ in range(200)])
    logits = Known.table[items].flatten()
    click = (torch.rand(2000, generator=draw) < torch.sigmoid(2 * logits - 4)).float()
    buy = (logits > 2.5).float() * click  # the lowest steps have no positive at all
    model = known(tasks=("click", "buy"), order_by=weights, calibration=kind)
    held = labelled(items.tolist(), click=click, buy=buy)
    assert model.calibrate(held) == ()
    found = model.recommend(held, 10)
    assert bool((found.item_ids > 0).all())
    assert found.item_ids.sort().values.equal(items.sort().values)
    scores = model.score(held)
    expected = sum(weight * scores[task].double().log() for task, weight in weights.items() if weight)
    assert isinstance(expected, Tensor)
    best = expected.sort(dim=1, descending=True).values
    torch.testing.assert_close(found.scores.double(), best, rtol=1e-4, atol=1e-5)


def test_within_a_step_of_the_curve_the_logit_decides() -> None:
    model = known(tasks=("click", "buy"), order_by={"click": 1.0, "buy": 0.5}, calibration="isotonic")
    # Logits of items 12 .. 8: -6 .. -2. One positive above them all, so that these five share the lowest step.
    model.calibrate(labelled([[12, 11, 10, 9, 8, 6]], click=torch.eye(6)[5], buy=torch.eye(6)[5]))
    found = model.recommend(asked([[12, 11, 10, 9, 8]]), 5)
    assert len(set(model.score(asked([[12, 11, 10, 9, 8]]))["click"][0].tolist())) == 1
    assert found.item_ids.tolist() == [[8, 9, 10, 11, 12]]
    whole = model.recommend(SequenceBatch(Jagged.from_rows([[1]]), excluded=Jagged.from_rows([[1, 2, 3, 4, 5, 6]])), 6)
    assert whole.item_ids.tolist() == [[7, 8, 9, 10, 11, 12]]


def test_an_order_must_name_tasks_and_weigh_one_of_them() -> None:
    for weights, message in (
        ({"cart": 1.0}, "order_by names cart, but tasks are click, buy"),
        ({"click": 0.0}, "order_by gives every task the weight 0"),
        ({"click": float("nan")}, "order_by.click = nan: input should be a finite number"),
    ):
        with pytest.raises(UserError, match=f"^model known: {message}"):
            parse(RankingConfig, {"tasks": ["click", "buy"], "order_by": weights}, where="model known")


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_task_with_one_label_keeps_its_probabilities_and_this_is_said(kind: str, value: float) -> None:
    model, plain = known(tasks=("click", "buy"), calibration=kind), known(tasks=("click", "buy"))
    items = [[5, 2, 9], [7, 1, 4]]
    held = labelled(items, click=torch.tensor([1.0, 0, 0, 0, 1, 1]), buy=torch.full((6,), value))
    (note,) = model.calibrate(held)
    assert note == (
        "model.calibration: the probabilities of 'buy' stay as they were learnt, since "
        f"{'each' if value else 'none'} of the 6 validation candidates has that label, and a curve needs both kinds"
    )
    torch.testing.assert_close(model.score(held)["buy"], plain.score(held)["buy"])
    assert not torch.equal(model.score(held)["click"], plain.score(held)["click"])


@pytest.mark.parametrize(("value", "which"), [(0.0, "none"), (1.0, "each")])
def test_nothing_is_learnt_from_one_label(value: float, which: str) -> None:
    requests = labelled([[5, 2, 9]], click=torch.full((3,), value))
    with pytest.raises(UserError, match=f"{which} of the 3 candidates to learn from has the label 'click'"):
        known().examples_of(requests, cycle().interactions)


def test_settings_about_impressions_are_refused_without_any() -> None:
    for settings, message in (
        ({"delay_hours": 24.0}, "model.delay_hours is about impressions, and training has none"),
        ({"position": "weight"}, "model.position is about impressions, and training has none"),
    ):
        with pytest.raises(UserError, match=message):
            known(**settings).examples(cycle())
    requests = labelled([[5, 2, 9]], click=torch.tensor([1.0, 0, 0]))
    with pytest.raises(UserError, match='position = "weight" needs the column slot'):
        known(position="weight").examples_of(requests, cycle().interactions)


def test_many_candidates_are_scored_in_blocks_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = LR(LRConfig(), cycle().catalog)
    torch.nn.init.normal_(model.vectors.table.weight)
    model.eval()
    batch = asked([[5, 2, 9], [1], [3, 4], [12, 7, 8, 6]])
    whole = model.score(batch)["target"]
    monkeypatch.setattr("nextitem.models.rankers.ranking_model.BLOCK", 3)
    assert torch.equal(model.score(batch)["target"], whole)
