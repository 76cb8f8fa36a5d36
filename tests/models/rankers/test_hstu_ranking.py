"""HSTU as a ranker: equal to a dense computation, request by request; candidates, requests and the future never mix."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.rankers import BuildRanker
from torch import Tensor
from torch.nn import functional as F

from nextitem.core.batch import SequenceBatch
from nextitem.core.dataset import Split
from nextitem.core.history_state import StaleStateError
from nextitem.core.jagged import Jagged
from nextitem.data.examples.labelled_candidates import impression_examples, without_slots
from nextitem.models.rankers.hstu_ranking import HSTURanking
from nextitem.nn.attention.stu import STULayer
from nextitem.nn.ranking.user_streams import UserStreams
from nextitem.ops.hstu_attention import time_buckets

SMALL = {
    "width": 4,
    "token_width": 8,
    "heads": 2,
    "head_width": 4,
    "layers": 3,
    "hidden": (8,),
    "max_history_length": 24,
    "window_step": 8,
    "label_delay_minutes": 1.0,
}
VARIANTS = [
    {},
    {"actions": "interleaved"},
    {"actions": "ignored", "time_bias": False, "token_fields": False},
    {"mixture_norm": "group", "reads_impressions": False},
    {"deep_window": 3},
    {"deep_window": 2, "deep_window_from": 1, "actions": "interleaved"},
]


@pytest.fixture(scope="module")
def user_requests(impressions: Split) -> SequenceBatch:
    """Return training requests of the users who have most of them, several of each."""
    requests = impression_examples(impressions.train)
    assert requests.user_ids is not None
    users, counts = torch.unique(requests.user_ids, return_counts=True)
    most = users[counts.argsort(descending=True)[:6]]
    return requests.select(torch.isin(requests.user_ids, most).nonzero()[:, 0])


def alone(model: HSTURanking, batch: SequenceBatch) -> Tensor:
    """Return the logits of the candidates, one request at a time."""
    rows = torch.arange(batch.num_requests)
    return torch.cat([model._all_logits(batch.select(row[None])) for row in rows])


def dense_logits(model: HSTURanking, batch: SequenceBatch) -> Tensor:
    """Return the logits of the candidates of one request by the formulas, with dense matrices."""
    batch = without_slots(batch)
    streams = model.reader.read(batch)
    factor = model.tokens_per_event
    assert batch.candidates is not None
    assert batch.request_times is not None
    assert streams.times is not None
    fields = model.vectors(model.fields(batch))
    history, candidates = model._tokens(streams), model.candidate_tokens(batch, fields)
    n, k = len(history), len(candidates)
    x = torch.cat([history, candidates])
    place = torch.cat([torch.arange(n), torch.full((k,), n)])
    times = torch.cat([streams.times.repeat_interleave(factor), batch.request_times.expand(k)])
    sees = torch.zeros(n + k, n + k)
    for i in range(n + k):
        sees[i, : min(i + 1, n)] = 1
        sees[i, i] = 1
    for layer in model.layers:
        assert isinstance(layer, STULayer)
        part = layer.project(x)
        scores = torch.einsum("ihk,jhk->hij", part.query, part.key) * layer.head_width**-0.5
        middle = (len(layer.position_weights) - 1) // 2
        scores = scores + layer.position_weights[middle - (place[:, None] - place).clamp(min=0)]
        if layer.time_weights is not None:
            scores = scores + layer.time_weights[time_buckets(times[:, None] - times, "sqrt")]
        near = torch.ones(n + k, n + k, dtype=torch.bool)
        if layer.window is not None:
            near[:n] = torch.arange(n + k) > torch.arange(n)[:, None] - layer.window
            near[n:, :n] = torch.arange(n) >= n - layer.window
        mixed = torch.einsum("hij,jhv->ihv", F.silu(scores) * sees * near, part.value) / layer.normaliser
        x = layer.combine(x, part.gate, mixed.flatten(1))
    return model.task_logits(x[n:], fields)


@pytest.mark.parametrize("settings", VARIANTS)
def test_scores_equal_dense_matrices_whatever_shares_a_pass(
    settings: dict[str, object], ranker: BuildRanker, user_requests: SequenceBatch
) -> None:
    model = ranker(HSTURanking, **{**SMALL, **settings})
    with torch.no_grad():
        streams = model.reader.read(user_requests)
        assert streams.items.num_rows < user_requests.num_requests  # requests of a user share a stream
        together = model._all_logits(user_requests)
        torch.testing.assert_close(alone(model, user_requests), together, rtol=1e-4, atol=1e-5)
        for row in (0, 3, user_requests.num_requests - 1):
            batch = user_requests.select(torch.tensor([row]))
            torch.testing.assert_close(model._all_logits(batch), dense_logits(model, batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", VARIANTS)
def test_a_candidate_depends_on_no_other_candidate_nor_request(
    settings: dict[str, object], ranker: BuildRanker, user_requests: SequenceBatch
) -> None:
    """Bit for bit: item, labels and slots of another candidate, and histories, times and users of other requests."""
    model = ranker(HSTURanking, **{**SMALL, **settings})
    candidates = user_requests.candidates
    assert candidates is not None
    assert user_requests.request_times is not None
    with torch.no_grad():
        before = model._all_logits(user_requests)
        items = candidates.values.clone()
        items[5] = items[5] % 150 + 1
        former = user_requests.candidate_labels
        labels = {name: column.with_values(1 - column.values) for name, column in former.items()}
        changed = replace(user_requests, candidates=candidates.with_values(items), candidate_labels=labels)
        after = model._all_logits(changed)
        assert not torch.equal(after[5], before[5])
        rest = torch.arange(len(items)) != 5
        assert torch.equal(after[rest], before[rest])
        last = user_requests.request_times.argmax()
        times = user_requests.request_times.clone()
        times[last] += 10**9
        later = model._all_logits(replace(user_requests, request_times=times))
        rows = candidates.row_ids()
        assert torch.equal(later[rows != last], before[rows != last])


def test_candidates_may_come_in_any_order_and_in_parts_of_any_size(
    ranker: BuildRanker, requests: SequenceBatch
) -> None:
    model = ranker(HSTURanking, **SMALL)
    candidates = requests.candidates
    assert candidates is not None
    with torch.no_grad():
        before = model._all_logits(requests)
        for limits in ({"max_candidates": 1}, {"max_candidates": 7}, {"max_cached_tokens": 20, "max_candidates": 3}):
            model.config = model.config.model_copy(update=limits)
            torch.testing.assert_close(model._all_logits(requests), before, rtol=1e-4, atol=1e-5)
        rows = candidates.row_ids()
        order = (rows * 1000 - torch.arange(len(rows))).argsort()  # each request's candidates backwards
        backwards = replace(
            requests, candidates=candidates.with_values(candidates.values[order]), candidate_features={}
        )
        torch.testing.assert_close(model._all_logits(backwards), before[order], rtol=1e-4, atol=1e-5)
        twice = replace(
            requests.select(torch.tensor([0])),
            candidates=Jagged.from_rows([[3, 9, 3]]),
            candidate_features={},
            candidate_labels={},
        )
        scores = model._all_logits(twice)
        assert torch.equal(scores[0], scores[2])


@pytest.mark.parametrize("settings", VARIANTS)
def test_a_continued_history_equals_one_that_is_read_at_once(
    settings: dict[str, object], ranker: BuildRanker, impressions: Split
) -> None:
    """Events come one by one or several at once, the window moves, and one event arrives late."""
    model = ranker(HSTURanking, **{**SMALL, **settings})
    test = impressions.test
    rows = test.items.lengths.argsort(descending=True)[:8]
    batch = test.select(rows)
    assert batch.timestamps is not None
    state = None
    for dropped in (20, 12, 11, 3, 0):
        part = replace(
            batch,
            items=batch.items.drop_last(dropped),
            actions=batch.actions.drop_last(dropped) if batch.actions is not None else None,
            timestamps=batch.timestamps.drop_last(dropped),
            features={name: column.drop_last(dropped) for name, column in batch.features.items()},
        )
        expected = model._all_logits(part)
        torch.testing.assert_close(model._all_logits(replace(part, state=state)), expected, rtol=1e-4, atol=1e-5)
        state = model.encode_history(part, state)
        assert state.num_bytes > 0
    corrected = batch.items.values.clone()
    corrected[batch.items.offsets[1:] - 2] = 7
    late = replace(batch, items=batch.items.with_values(corrected))
    expected = model._all_logits(late)
    torch.testing.assert_close(model._all_logits(replace(late, state=state)), expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    model.train()
    model.eval()
    with pytest.raises(StaleStateError):
        model._all_logits(replace(batch, state=state))


def test_only_new_tokens_are_read(
    ranker: BuildRanker, requests: SequenceBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ranker(HSTURanking, **SMALL)
    state = model.encode_history(requests)
    counts: list[int] = []
    tokens = model._tokens

    def counted(streams: UserStreams, places: Tensor | None = None) -> Tensor:
        assert places is not None
        counts.append(len(places))
        return tokens(streams, places)

    monkeypatch.setattr(model, "_tokens", counted)
    model._all_logits(replace(requests, state=state))
    assert counts == [0]


def test_labels_of_fresh_impressions_are_not_read(ranker: BuildRanker) -> None:
    """An impression becomes a token once its labels have come; its label then matters."""
    model = ranker(HSTURanking, **SMALL)
    minute = 60_000

    def score(shown_time: int, label: float) -> Tensor:
        batch = SequenceBatch(
            Jagged.from_rows([[1, 2]]),
            timestamps=Jagged.from_rows([[10 * minute, 11 * minute]]),
            request_times=torch.tensor([100 * minute]),
            shown_items=Jagged.from_rows([[5]]),
            shown_times=Jagged.from_rows([[shown_time]]),
            shown_labels={"click": Jagged(torch.tensor([label]), torch.tensor([0, 1]))},
            candidates=Jagged.from_rows([[3, 4]]),
        )
        with torch.no_grad():
            return model._all_logits(batch)

    assert torch.equal(score(100 * minute - 1, 1), score(100 * minute - 1, 0))
    assert not torch.equal(score(99 * minute, 1), score(99 * minute, 0))


def test_labels_with_one_value_are_no_tasks(impressions: Split, ranker: BuildRanker) -> None:
    train = impressions.train
    assert train.impressions is not None
    columns = train.impressions.columns.with_columns(purchase=train.impressions.columns["purchase"] * 0)
    model = ranker(HSTURanking, **SMALL)
    assert list(model.tasks) == ["click", "purchase"]
    model.examples(replace(train, impressions=replace(train.impressions, columns=columns)))
    assert list(model.tasks) == ["click"]
    assert list(model.score(impressions.test.select(torch.arange(3)))) == ["click"]
    notes = model.calibrate(impressions.validation)
    assert any("'purchase'" in note for note in notes)


def test_training_options_read_less(ranker: BuildRanker, user_requests: SequenceBatch) -> None:
    model = ranker(HSTURanking, **{**SMALL, "stochastic_length": 1.2, "layer_drop": 0.4, "stream_dropout": 0.0}).train()
    torch.manual_seed(0)
    reads = [model.read(user_requests) for _ in range(30)]
    whole = model.eval().read(user_requests)
    assert {len(part.layers) for part in reads} == {1, 2, 3}
    assert all(len(part.streams.items.values) <= len(whole.streams.items.values) for part in reads)
    assert any(len(part.streams.items.values) < len(whole.streams.items.values) for part in reads)
    loss = model.train().training_loss(user_requests).total
    loss.backward()
    assert bool(loss.isfinite())
