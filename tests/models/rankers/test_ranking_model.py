"""RankingModel: loss, scores aligned with candidates, lists of candidates, orders of tasks, calibration, slots."""

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


class TableRanker(RankingModel):
    """Ranker whose logit for item i and task t is `table[i] + t`."""

    Config = RankingConfig
    table: Tensor = torch.tensor([0.0, 3, 1, 2, 2, 5, 0, -1, -2, -3, -4, -5, -6])

    def logits(self, batch: SequenceBatch, codes: FieldCodes) -> Tensor:
        assert batch.candidates is not None
        logits = self.table[batch.candidates.values]
        return torch.stack([logits + task for task in range(len(self.tasks))], 1)


def table_ranker(**settings: object) -> TableRanker:
    return TableRanker(RankingConfig(**settings), cycle().catalog)


def requests_for(
    candidates: list[list[int]], labels: list[list[float]] | None = None, **fields: object
) -> SequenceBatch:
    """Return requests with the history [1] and these candidates, with values of the label `target` if there are any."""
    rows = Jagged.from_rows(candidates)
    candidate_labels = {}
    if labels is not None:
        candidate_labels["target"] = rows.with_values(torch.tensor([value for row in labels for value in row]))
    return SequenceBatch(
        Jagged.from_rows([[1]] * len(candidates)),
        candidates=rows,
        candidate_labels=candidate_labels,
        **fields,  # type: ignore[arg-type]
    )


def test_scores_are_in_the_order_of_the_candidates() -> None:
    scores = table_ranker().score(requests_for([[5, 2, 9], [1]]))["target"]
    expected = torch.tensor([[5.0, 1.0, -3.0]]).sigmoid()
    torch.testing.assert_close(scores[0], expected[0])
    assert scores[1].tolist() == [pytest.approx(torch.tensor(3.0).sigmoid()), -torch.inf, -torch.inf]


def test_lists_contain_candidates_alone_and_ties_go_to_the_smaller_item_number() -> None:
    excluded = Jagged.from_rows([[5], []])
    answer = table_ranker().recommend(requests_for([[4, 3, 5, 1, 4], [9, 2]], excluded=excluded), 4)
    assert answer.item_ids.tolist() == [[1, 3, 4, 0], [2, 9, 0, 0]]


def test_without_candidates_the_whole_catalogue_is_ranked() -> None:
    answer = table_ranker().recommend(SequenceBatch(Jagged.from_rows([[1], [2]])), 5)
    assert answer.item_ids.tolist() == [[5, 1, 3, 4, 2]] * 2


def test_tasks_are_combined_by_the_weights_of_order_by() -> None:
    model = table_ranker(tasks=("click", "buy"), order_by={"click": 1.0, "buy": 2.0})
    answer = model.recommend(requests_for([[5, 2]]), 2)
    logits = torch.tensor([5.0, 1.0])
    expected = torch.nn.functional.logsigmoid(logits) + 2 * torch.nn.functional.logsigmoid(logits + 1)
    torch.testing.assert_close(answer.scores[0], expected)


def test_the_pointwise_loss_weighs_all_requests_equally() -> None:
    loss = table_ranker().training_loss(requests_for([[5, 2, 9], [1]], [[1, 0, 0], [0]])).total
    softplus = torch.nn.functional.softplus
    first = (softplus(torch.tensor(-5.0)) + softplus(torch.tensor(1.0)) + softplus(torch.tensor(-3.0))) / 3
    torch.testing.assert_close(loss, (first + softplus(torch.tensor(3.0))) / 2)


def test_the_listwise_loss_is_the_softmax_over_the_candidates_of_a_request() -> None:
    loss = (
        table_ranker(objective="listwise").training_loss(requests_for([[5, 2, 9], [1, 3]], [[0, 1, 0], [1, 0]])).total
    )
    expected = -(torch.tensor([5.0, 1.0, -3.0]).log_softmax(0)[1] + torch.tensor([3.0, 2.0]).log_softmax(0)[0]) / 2
    torch.testing.assert_close(loss, expected)


NAN = float("nan")


@pytest.mark.parametrize("objective", ["pointwise", "listwise"])
def test_candidates_without_a_label_do_not_count_in_the_loss(objective: str) -> None:
    model = table_ranker(objective=objective)
    batch = requests_for([[5, 2, 9, 7], [1, 3], [4]], [[NAN, 1, 0, NAN], [1, NAN], [0]])
    loss = model.training_loss(batch).total
    torch.testing.assert_close(loss, model.training_loss(drop_unlabelled(batch)).total)
    as_negatives = requests_for([[5, 2, 9, 7], [1, 3], [4]], [[0, 1, 0, 0], [1, 0], [0]])
    assert not torch.isclose(loss, model.training_loss(as_negatives).total)


@pytest.mark.parametrize("objective", ["pointwise", "listwise"])
def test_a_request_without_any_label_has_no_gradient(objective: str) -> None:
    model = LR(LRConfig(fields=("item.id",), objective=objective), cycle().catalog)
    model.training_loss(requests_for([[5, 2], [1, 3]], [[NAN, NAN], [1, 0]])).total.backward()
    gradient = model.vectors.table.weight.grad
    assert gradient is not None
    assert bool(gradient.isfinite().all())
    touched = gradient.abs().sum(1).nonzero()[:, 0].tolist()
    assert len(touched) == 2


def test_a_task_without_any_label_is_refused() -> None:
    model = table_ranker(tasks=("target",))
    with pytest.raises(UserError, match="no impression to learn from has a known label 'target'"):
        model.examples_of(requests_for([[5, 2]], [[NAN, NAN]]), cycle().interactions)


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_calibration_ignores_candidates_without_a_label(kind: str) -> None:
    torch.manual_seed(0)
    rows = [torch.randint(1, 13, (6,)).tolist() for _ in range(50)]
    batch = requests_for(rows, [[float(torch.rand(()) < 0.4) for _ in row] for row in rows])
    hidden = hide_labels(batch)
    probabilities = []
    for requests in (hidden, drop_unlabelled(hidden), batch):
        model = table_ranker(calibration=kind)
        model.calibrate(requests)
        probabilities.append(model.score(requests_for([[1, 2, 3, 5]]))["target"])
    torch.testing.assert_close(probabilities[0], probabilities[1])
    assert not torch.allclose(probabilities[0], probabilities[2])


def test_an_error_names_an_unknown_task_and_the_labels_of_the_data() -> None:
    with pytest.raises(UserError, match="no label 'cart'; this data has target"):
        table_ranker(tasks=("cart",)).training_loss(requests_for([[1]], [[1]]))


def test_slots_are_read_in_training_and_ignored_in_scores() -> None:
    model = LR(LRConfig(fields=(), position="field"), cycle().catalog)
    torch.nn.init.normal_(model.vectors.table.weight)
    batch = requests_for([[5, 2]], [[1.0, 0.0]])
    batches = [
        replace(batch, candidate_features={"slot": Jagged.from_lengths(torch.tensor(slots), torch.tensor([2]))})
        for slots in ([1.0, 2.0], [2.0, 1.0])
    ]
    model.eval()
    assert torch.equal(*(model.score(other)["target"] for other in batches))
    assert not torch.equal(*(model.training_loss(other).total for other in batches))


def test_positives_in_slots_that_are_rarely_looked_at_weigh_more() -> None:
    model = table_ranker(position="weight")
    model.examined = torch.tensor([1.0, 1.0, 0.25])
    batch = requests_for([[5, 2]], [[0.0, 1.0]])
    with_slots = replace(
        batch, candidate_features={"slot": Jagged.from_rows([[1, 2]]).with_values(torch.tensor([1.0, 2.0]))}
    )
    softplus = torch.nn.functional.softplus
    expected = (softplus(torch.tensor(5.0)) + 4 * softplus(torch.tensor(-1.0))) / 2
    torch.testing.assert_close(model.training_loss(with_slots).total, expected)


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_calibrated_probabilities_are_close_to_the_true_ones(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    items = torch.randint(1, 13, (500, 4), generator=generator)
    # So the logits are too steep by a factor of two, and too high.
    truth = torch.sigmoid(0.5 * TableRanker.table[items] - 1)
    labels = (torch.rand(500, 4, generator=generator) < truth).float()
    validation = requests_for(items.tolist(), labels.tolist())
    model, plain = table_ranker(calibration=kind), table_ranker()
    model.calibrate(validation)
    scores = model.score(validation)["target"]
    assert float((scores - truth).abs().mean()) < 0.05
    assert float((plain.score(validation)["target"] - truth).abs().mean()) > 0.1
    assert model.recommend(validation, 4).item_ids.equal(plain.recommend(validation, 4).item_ids)
    plain.calibrate(requests_for([[1]]))  # without the setting there is nothing to fit
    with pytest.raises(UserError, match=r"model\.calibration needs labelled validation"):
        model.calibrate(requests_for([[1]]))


def test_order_by_combines_calibrated_probabilities() -> None:
    model = table_ranker(tasks=("click", "buy"), order_by={"buy": 2.0, "click": 1.0}, calibration="platt")
    rows = Jagged.from_rows([[5, 2, 9, 7]])
    labels = {"click": [1.0, 1, 0, 0], "buy": [1.0, 0, 0, 0]}
    batch = replace(
        requests_for([[5, 2, 9, 7]]),
        candidate_labels={name: rows.with_values(torch.tensor(values)) for name, values in labels.items()},
    )
    model.calibrate(batch)
    scores = model.score(batch)
    expected = scores["click"].log() + 2 * scores["buy"].log()
    torch.testing.assert_close(model.recommend(batch, 4).scores[0], expected[0].sort(descending=True).values)


def labelled(items: list[list[int]], **labels: Tensor) -> SequenceBatch:
    """Return requests with these candidates and several labels [P], by name."""
    rows = Jagged.from_rows(items)
    return replace(
        requests_for(items), candidate_labels={name: rows.with_values(values) for name, values in labels.items()}
    )


@pytest.mark.parametrize(
    "weights", [{"click": 1.0, "buy": 0.5}, {"click": 1.0, "buy": 0.0}, {"buy": 2.0, "click": -1.0}]
)
@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_lists_contain_every_candidate_in_the_order_of_calibrated_tasks(kind: str, weights: dict[str, float]) -> None:
    generator = torch.Generator().manual_seed(1)
    items = torch.stack([torch.randperm(12, generator=generator)[:10] + 1 for _ in range(200)])
    logits = TableRanker.table[items].flatten()
    click = (torch.rand(2000, generator=generator) < torch.sigmoid(2 * logits - 4)).float()
    buy = (logits > 2.5).float() * click  # the lowest steps have no positive
    model = table_ranker(tasks=("click", "buy"), order_by=weights, calibration=kind)
    validation = labelled(items.tolist(), click=click, buy=buy)
    assert model.calibrate(validation) == ()
    answer = model.recommend(validation, 10)
    assert bool((answer.item_ids > 0).all())
    assert answer.item_ids.sort().values.equal(items.sort().values)
    scores = model.score(validation)
    expected = sum(weight * scores[task].double().log() for task, weight in weights.items() if weight)
    assert isinstance(expected, Tensor)
    best = expected.sort(dim=1, descending=True).values
    torch.testing.assert_close(answer.scores.double(), best, rtol=1e-4, atol=1e-5)


def test_the_logit_orders_candidates_within_a_step_of_the_curve() -> None:
    model = table_ranker(tasks=("click", "buy"), order_by={"click": 1.0, "buy": 0.5}, calibration="isotonic")
    # Logits of items 12 .. 8: -6 .. -2. The one positive is above them all, so these five share the lowest step.
    model.calibrate(labelled([[12, 11, 10, 9, 8, 6]], click=torch.eye(6)[5], buy=torch.eye(6)[5]))
    answer = model.recommend(requests_for([[12, 11, 10, 9, 8]]), 5)
    assert len(set(model.score(requests_for([[12, 11, 10, 9, 8]]))["click"][0].tolist())) == 1
    assert answer.item_ids.tolist() == [[8, 9, 10, 11, 12]]
    whole = model.recommend(SequenceBatch(Jagged.from_rows([[1]]), excluded=Jagged.from_rows([[1, 2, 3, 4, 5, 6]])), 6)
    assert whole.item_ids.tolist() == [[7, 8, 9, 10, 11, 12]]


def test_order_by_must_name_tasks_and_give_one_a_weight() -> None:
    for weights, message in (
        ({"cart": 1.0}, "order_by names cart, but tasks are click, buy"),
        ({"click": 0.0}, "order_by gives every task the weight 0"),
        ({"click": float("nan")}, "order_by.click = nan: input should be a finite number"),
    ):
        with pytest.raises(UserError, match=f"^model known: {message}"):
            parse(RankingConfig, {"tasks": ["click", "buy"], "order_by": weights}, where="model known")


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_task_with_one_label_stays_uncalibrated_with_a_note(kind: str, value: float) -> None:
    model, plain = table_ranker(tasks=("click", "buy"), calibration=kind), table_ranker(tasks=("click", "buy"))
    items = [[5, 2, 9], [7, 1, 4]]
    validation = labelled(items, click=torch.tensor([1.0, 0, 0, 0, 1, 1]), buy=torch.full((6,), value))
    (note,) = model.calibrate(validation)
    assert note == (
        "model.calibration: the probabilities of 'buy' stay uncalibrated, since "
        f"{'each' if value else 'none'} of the 6 validation candidates has that label, and a curve needs both kinds"
    )
    torch.testing.assert_close(model.score(validation)["buy"], plain.score(validation)["buy"])
    assert not torch.equal(model.score(validation)["click"], plain.score(validation)["click"])


@pytest.mark.parametrize(("value", "which"), [(0.0, "none"), (1.0, "each")])
def test_training_data_with_one_label_is_refused(value: float, which: str) -> None:
    requests = labelled([[5, 2, 9]], click=torch.full((3,), value))
    with pytest.raises(UserError, match=f"{which} of the 3 candidates to learn from has the label 'click'"):
        table_ranker().examples_of(requests, cycle().interactions)


def test_settings_of_impressions_are_refused_without_impressions() -> None:
    for settings, message in (
        ({"delay_hours": 24.0}, "model.delay_hours applies to impressions, and training has none"),
        ({"position": "weight"}, "model.position applies to impressions, and training has none"),
    ):
        with pytest.raises(UserError, match=message):
            table_ranker(**settings).examples(cycle())
    requests = labelled([[5, 2, 9]], click=torch.tensor([1.0, 0, 0]))
    with pytest.raises(UserError, match='position = "weight" needs the column slot'):
        table_ranker(position="weight").examples_of(requests, cycle().interactions)


def test_scores_in_blocks_equal_scores_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = LR(LRConfig(), cycle().catalog)
    torch.nn.init.normal_(model.vectors.table.weight)
    model.eval()
    batch = requests_for([[5, 2, 9], [1], [3, 4], [12, 7, 8, 6]])
    whole = model.score(batch)["target"]
    monkeypatch.setattr("nextitem.models.rankers.ranking_model.BLOCK", 3)
    assert torch.equal(model.score(batch)["target"], whole)
