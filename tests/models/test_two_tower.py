"""Tests of two towers: corrected softmax, inputs of training and serving, new items, and lists with a teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from support.optional import not_none
from support.unknown_labels import drop_unlabelled, hide_labels
from torch import Tensor
from torch.nn import functional as F

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog, ColumnEncoding
from nextitem.core.errors import UserError
from nextitem.core.ids import IdMap
from nextitem.core.jagged import Jagged
from nextitem.core.roles import Ranker, Trainable
from nextitem.core.vector_model import VectorModel
from nextitem.data.examples.labelled_candidates import LabelledRequests
from nextitem.data.negatives import sample_trained_items
from nextitem.data.readers import dataset_from_frames
from nextitem.losses.in_batch_softmax import in_batch_softmax
from nextitem.models import two_tower
from nextitem.models.two_tower import TwoTower, TwoTowerConfig
from nextitem.training.config import TrainingConfig
from nextitem.training.fit import fit


def catalog_of(items: int = 20) -> Catalog:
    ids = pl.Series("item_id", range(items))
    table = pl.DataFrame({"item_id": ids, "colour": [["red", "blue"][item % 2] for item in range(items)]})
    countries = ColumnEncoding("categorical", pl.Series(["FR", "NL"]))
    return Catalog(IdMap(ids), table, features={"colour": "categorical"}, requests={"user.country": countries})


def model_of(items: int = 20, **settings: object) -> TwoTower:
    torch.manual_seed(0)
    small = {"width": 8, "field_width": 4, "hidden": [8], "dropout": 0.0, "id_dropout": 0.0, "temperature": 0.5}
    model = TwoTower(TwoTowerConfig.model_validate(small | {"mixed_negatives": 0} | settings), catalog_of(items))
    model.set_popularity(torch.cat([torch.zeros(1), torch.ones(items)]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape))
    return model.train()


def batch_of(targets: list[int], histories: list[list[int]] | None = None, **fields: object) -> SequenceBatch:
    rows = [[target % 5 + 1, 3] for target in targets] if histories is None else histories
    return SequenceBatch(
        Jagged.from_rows(rows),
        targets=Jagged.from_rows([[target] for target in targets]),
        **fields,  # type: ignore[arg-type]
    )


def full_loss(model: TwoTower, batch: SequenceBatch) -> Tensor:
    """Return the softmax loss over the whole catalogue."""
    assert batch.targets is not None
    users, items = model._towers(batch, torch.arange(1, model.num_items + 1))
    return F.cross_entropy(users @ items.T, batch.targets.values - 1)


def gradient(model: TwoTower, loss: Tensor) -> Tensor:
    gradients = torch.autograd.grad(
        loss, list(model.users.parameters()) + list(model.items.parameters()), allow_unused=True
    )
    return torch.cat([part.flatten() for part in gradients if part is not None])


def test_the_correction_has_known_values() -> None:
    scores, p = torch.tensor([[2.0, 1.0]]), torch.tensor([0.5, 0.1])
    positives = torch.tensor([0])
    assert float(in_batch_softmax(scores, log_q=p.log(), positives=positives)) == pytest.approx(1.0435918, abs=1e-6)
    assert float(in_batch_softmax(scores, positives=positives)) == pytest.approx(0.3132617, abs=1e-6)


def test_rows_with_one_target_share_its_column(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Tensor, Tensor]] = []

    def spy(scores: Tensor, *, positives: Tensor) -> Tensor:
        calls.append((scores, positives))
        return in_batch_softmax(scores, positives=positives)

    monkeypatch.setattr(two_tower, "in_batch_softmax", spy)
    model_of().training_loss(batch_of([7, 4, 7, 9]))
    scores, positives = calls[0]
    assert scores.shape == (4, 3), "4, 7, 9: no duplicate of a positive is among the negatives"
    assert positives.tolist() == [1, 0, 1, 2]


def test_a_batch_that_covers_the_catalogue_has_the_full_softmax() -> None:
    model = model_of(mixed_negatives=20)
    batch = batch_of([7, 4, 7, 9])
    loss, full = model.training_loss(batch).total, full_loss(model, batch)
    torch.testing.assert_close(loss, full)
    torch.testing.assert_close(gradient(model, loss), gradient(model, full), rtol=1e-4, atol=1e-6)


def test_the_gradient_approaches_the_full_softmax_s_as_batches_grow() -> None:
    """Targets follow Zipf's law; probabilities are estimated from the stream."""
    zipf = 1 / torch.arange(1, 41).float()
    errors = []
    for size in (4, 32, 512):
        model = model_of(40, frequency_rate=0.001)
        generator = torch.Generator().manual_seed(1)

        def sample_targets(size: int = size, generator: torch.Generator = generator) -> list[int]:
            return (torch.multinomial(zipf, size, replacement=True, generator=generator) + 1).tolist()

        for _ in range(600):
            model.frequency.update(torch.unique(torch.tensor(sample_targets())))
        targets, histories = [5, 1, 17, 2], [[1, 2], [3], [30, 4], [9]]
        whole = gradient(model, full_loss(model, batch_of(targets, histories)))
        gradients = []
        for _ in range(max(1, 400 // size)):
            more_targets = sample_targets()
            batch = batch_of(targets + more_targets, histories + [[item % 7 + 1] for item in more_targets])
            assert batch.targets is not None
            columns = torch.unique(batch.targets.values)
            users, items = model._towers(batch.select(torch.arange(4)), columns)
            log_q = model.frequency.probability(columns).log()
            positives = torch.searchsorted(columns, batch.targets.values[:4])
            loss = in_batch_softmax(users @ items.T, log_q=log_q, positives=positives)
            gradients.append(gradient(model, loss))
        errors.append(float((torch.stack(gradients) - whole).norm(dim=1).mean() / whole.norm()))
    assert errors[0] > 1.5 * errors[1]
    assert errors[1] > 3 * errors[2]


@pytest.mark.slow
@pytest.mark.parametrize("num_hard", [0, 3])
def test_the_sampled_sum_is_an_unbiased_estimate(monkeypatch: pytest.MonkeyPatch, num_hard: int) -> None:
    """Of the sum of a softmax over the catalogue, for columns of every origin."""
    sums: list[Tensor] = []

    def spy(scores: Tensor, *, positives: Tensor) -> Tensor:
        sums.append(scores[0].exp().sum())
        return scores.sum()

    monkeypatch.setattr(two_tower, "in_batch_softmax", spy)
    model = model_of(mixed_negatives=5, hard_negatives=num_hard, refresh_steps=10**6)
    target_probability = torch.arange(1, 21) / 210  # probability that an item is a row's target
    in_batch_probability = 1 - (1 - target_probability) ** 6  # by any of six rows
    in_batch_probability[6] = 1  # the first row's own target
    model.frequency.gaps = torch.cat([torch.full((1,), torch.inf), 1 / in_batch_probability])
    monkeypatch.setattr(model.frequency, "update", lambda items: None)
    model.frequency.step.fill_(1)
    with torch.no_grad():
        users, items = model._towers(batch_of([7], [[2, 3]]), torch.arange(1, 21))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for step in range(3000):
            more_targets = (
                torch.multinomial(target_probability, 6, replacement=True, generator=generator) + 1
            ).tolist()
            model.frequency.step.fill_(1 if step == 0 else 2)
            model.training_loss(batch_of([7, *more_targets], [[2, 3]] + [[4]] * 6))
    whole = float((users[0] @ items.T).exp().sum())
    assert float(torch.stack(sums).mean()) == pytest.approx(whole, rel=0.03)


def test_hard_negatives_are_the_highest_scored_items_except_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    logits: list[Tensor] = []

    def spy(scores: Tensor, *, positives: Tensor) -> Tensor:
        logits.append(scores)
        return scores[:, :1].sum()

    monkeypatch.setattr(two_tower, "in_batch_softmax", spy)
    model = model_of(hard_negatives=4)
    batch = batch_of([7, 4])
    model.training_loss(batch)
    users, items = model._towers(batch, torch.arange(1, 21))
    scores = (users @ items.T).detach()
    scores[0, 6] = scores[1, 3] = -torch.inf
    torch.testing.assert_close(logits[0][:, -4:], scores.topk(4, dim=1).values)


def test_items_without_training_events_are_not_sampled() -> None:
    model = model_of()
    model.popularity[11:] = 0
    sampled, fraction = sample_trained_items(model.popularity, 20)
    assert sorted(sampled.tolist()) == list(range(1, 11))
    assert fraction == 1


def test_it_has_its_roles_and_scores_are_inner_products() -> None:
    model = model_of().eval()
    assert isinstance(model, Trainable)
    assert isinstance(model, VectorModel)
    assert isinstance(model, Ranker)
    batch = SequenceBatch(
        Jagged.from_rows([[1, 2], [3], [4, 5, 6]]), candidates=Jagged.from_rows([[4, 9, 2], [], [7, 7]])
    )
    with torch.no_grad():
        scores = model.user_vectors(batch) @ model.item_vectors().T
        padded = model.score(batch)["target"]
    torch.testing.assert_close(model.user_vectors(batch).norm(dim=1), torch.full((3,), 1 / 0.5))
    torch.testing.assert_close(model.item_vectors()[1:].norm(dim=1), torch.ones(20))
    assert padded.shape == (3, 3)
    torch.testing.assert_close(padded[0], scores[0, [4, 9, 2]])
    torch.testing.assert_close(padded[2], torch.cat([scores[2, [7, 7]], torch.tensor([-torch.inf])]))
    among_candidates = model.recommend(batch, 3)
    assert among_candidates.item_ids[1:].tolist() == [[0, 0, 0], [7, 0, 0]]
    assert among_candidates.item_ids[0].tolist() == [
        [4, 9, 2][place] for place in scores[0, [4, 9, 2]].argsort(descending=True)
    ]
    whole = model.recommend(replace(batch, candidates=None), 20)
    torch.testing.assert_close(whole.scores, scores[:, 1:].sort(dim=1, descending=True).values)


def test_item_vectors_are_cached_for_serving_and_dropped_by_training() -> None:
    model, other = model_of().eval(), model_of(temperature=0.4).eval()
    first = model.item_vectors()
    assert model.item_vectors().data_ptr() == first.data_ptr()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model.train().training_loss(batch_of([7, 4])).total.backward()
    optimizer.step()
    assert not torch.equal(model.eval().item_vectors(), first)
    other.recommend(batch_of([1]), 3)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other.item_vectors(), model.item_vectors())
    model.recommend(batch_of([1]), 3)  # the cache may be read outside of inference mode
    model.users(batch_of([1]), model.items.read(torch.tensor([2, 3]))).sum().backward()


def test_context_time_and_order_of_events_change_user_vectors() -> None:
    model = model_of().eval()
    hour = 3_600_000
    times = Jagged.from_rows([[0, hour], [0, hour]])
    batch = SequenceBatch(
        Jagged.from_rows([[1, 2], [1, 2]]),
        timestamps=times,
        request_times=torch.tensor([2 * hour, 2 * hour]),
        context={"user.country": torch.tensor([1, 1])},
    )

    def changes(**fields: object) -> bool:
        one, two = model.user_vectors(replace(batch, **fields))  # type: ignore[arg-type]
        return not torch.allclose(one, two, atol=1e-4)

    assert not changes()
    assert changes(context={"user.country": torch.tensor([1, 2])})
    assert changes(request_times=torch.tensor([2 * hour, 30 * hour]))
    assert changes(timestamps=Jagged.from_rows([[0, hour], [0, 2 * hour]]))
    assert changes(items=Jagged.from_rows([[1, 2], [2, 1]]))


def trained(model: TwoTower, examples: object, **settings: object) -> TwoTower:
    small = {"batch_size": 32, "learning_rate": 1e-2, "max_epochs": 10, "patience": None}
    fit(model, examples, TrainingConfig.model_validate(small | settings), progress=False, device="cpu")  # type: ignore[arg-type]
    return model.eval()


def test_a_new_item_is_scored_by_its_features() -> None:
    """Users read items of one colour; items 19 (red) and 20 (blue) are added after training."""
    rng = np.random.default_rng(0)
    users = [user for user in range(60) for _ in range(6)]
    items = [int(rng.choice(9)) * 2 + user % 2 for user in users]
    log = pl.DataFrame({"user_id": users, "item_id": items, "position": list(range(len(items)))})
    catalog = catalog_of(20).table
    data = dataset_from_frames(
        {"interactions": log, "items": catalog}, {"items": {"features": {"colour": "categorical"}}}
    )
    torch.manual_seed(0)
    settings = {"width": 8, "field_width": 8, "hidden": [16], "dropout": 0.0, "id_dropout": 0.3, "mixed_negatives": 8}
    model = TwoTower(TwoTowerConfig.model_validate(settings), data.catalog)
    model.set_popularity(torch.from_numpy(data.interactions.item_counts()).float())
    trained(model, model.examples(data))
    assert model.popularity[19:].tolist() == [0, 0]
    rankings = model.recommend(SequenceBatch(Jagged.from_rows([[1, 3], [2, 4]])), 20).item_ids.tolist()
    assert rankings[0].index(19) < 10 < rankings[0].index(20)
    assert rankings[1].index(20) < 10 < rankings[1].index(19)


def lists(teacher: Callable[[Tensor, Tensor], Tensor], has_clicks: bool = False) -> SequenceBatch:
    """Return requests with five candidates, a teacher's scores of them, and a label of its first candidate."""
    generator = torch.Generator().manual_seed(0)
    histories = torch.randint(1, 21, (200, 2), generator=generator)
    candidates = torch.rand(200, 20, generator=generator).argsort(1)[:, :5] + 1
    scores = teacher(histories[:, 1:], candidates)
    rows = Jagged.from_lengths(candidates.flatten(), torch.full((200,), 5))
    candidate_labels = {"teacher": rows.with_values(scores.flatten())}
    if has_clicks:
        candidate_labels["click"] = rows.with_values((scores == scores.max(1, keepdim=True).values).float().flatten())
    return SequenceBatch(
        Jagged.from_padded(histories, torch.full((200,), 2)), candidates=rows, candidate_labels=candidate_labels
    )


def test_it_learns_the_order_of_a_teacher() -> None:
    def teacher(last: Tensor, items: Tensor) -> Tensor:
        return torch.where(items % 2 == last % 2, 0.8, 0.1) * (1 + items / 5)  # by the item's colour and number

    requests = lists(teacher)
    model = model_of(temperature=0.1)
    assert requests.candidates is not None
    examples = model.examples_of(requests, dataset_from_frames({"interactions": LOG}, {}).interactions)
    assert isinstance(examples, LabelledRequests)
    before = agreement(model.eval(), requests)
    after = agreement(trained(model, examples, max_epochs=30), requests)
    assert before < 0.7
    assert after > 0.9


def test_candidates_without_a_known_label_do_not_count_in_the_loss_of_lists() -> None:
    requests = lists(
        lambda last, items: torch.where(items % 2 == last % 2, 0.8, 0.1) * (1 + items / 5), has_clicks=True
    )
    clicks = replace(requests, candidate_labels={"click": requests.candidate_labels["click"]})
    hidden, model = hide_labels(clicks), model_of().eval()
    loss = model.training_loss(hidden).total
    torch.testing.assert_close(loss, model.training_loss(drop_unlabelled(hidden)).total)
    assert not torch.isclose(loss, model.training_loss(clicks).total)
    unknown = not_none(clicks.candidates).with_values(
        torch.full_like(clicks.candidate_labels["click"].values, torch.nan)
    )
    log = dataset_from_frames({"interactions": LOG}, {}).interactions
    with pytest.raises(UserError, match="no impression to learn from has a known label 'click'"):
        model.examples_of(replace(clicks, candidate_labels={"click": unknown}), log)


LOG = pl.DataFrame({"user_id": [1] * 10 + [2] * 10, "item_id": list(range(20)), "position": list(range(20))})


def agreement(model: TwoTower, requests: SequenceBatch) -> float:
    """Return the share of pairs of candidates that model and teacher rank in the same order."""
    with torch.no_grad():
        scores = model.score(requests)["target"]
    teacher_scores = requests.candidate_labels["teacher"].to_padded()
    is_above = teacher_scores[:, :, None] > teacher_scores[:, None]
    return float((scores[:, :, None] > scores[:, None])[is_above].float().mean())


def test_the_loss_of_lists_by_hand() -> None:
    model = model_of(teacher_weight=0.25)
    rows = Jagged.from_rows([[1, 2, 3], [4, 5]])
    labels = {
        "click": rows.with_values(torch.tensor([0.0, 1, 1, 0, 0])),
        "teacher": rows.with_values(torch.tensor([0.2, 0.6, 0.0, 0.3, 0.1])),
        "buy": rows.with_values(torch.ones(5)),
    }
    batch = batch_of([1, 2], candidates=rows, candidate_labels=labels)
    logits = model.score(batch)["target"]
    first, second = logits[0].log_softmax(0), logits[1, :2].log_softmax(0)
    click = -(first[1] + first[2]) / 2 / 2
    teacher = -(0.25 * first[0] + 0.75 * first[1] + 0.75 * second[0] + 0.25 * second[1]) / 2
    terms = model.training_loss(batch)
    torch.testing.assert_close(terms.total, 0.75 * click + 0.25 * teacher)
    assert set(terms.named) == {"click", "teacher"}
    teacher_only = replace(batch, candidate_labels={"teacher": labels["teacher"]})
    torch.testing.assert_close(model.training_loss(teacher_only).total, teacher)
    clicks_only = replace(batch, candidate_labels={"click": labels["click"]})
    torch.testing.assert_close(model.training_loss(clicks_only).total, click)


def test_fields_of_the_wrong_tower_are_named_in_the_error() -> None:
    with pytest.raises(UserError, match=r"'history\.id' is no field of items; there are item\.id, item\.colour"):
        model_of(item_fields=("history.id",))
    with pytest.raises(UserError, match=r"'item\.id' is no field of requests; there are .*user\.country"):
        model_of(user_fields=("item.id",))
