"""MTGR: equal to a dense computation, request by request; the six checks of its masks, norms and gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.rankers import BuildRanker
from torch import Tensor
from torch.nn import functional as F

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.config import parse
from nextitem.core.dataset import Split
from nextitem.core.history_state import StaleStateError
from nextitem.core.jagged import Jagged
from nextitem.data.examples.labelled_candidates import impression_examples, without_slots
from nextitem.models.rankers.mtgr import CANDIDATE, HISTORY, MTGR, RECENT, USER, MTGRConfig
from nextitem.nn.attention.grouped_layer import GroupedLayer, GroupLayerNorm
from nextitem.nn.ranking.user_streams import UserStreams
from nextitem.ops.hstu_attention import time_buckets

MINUTE, HOUR = 60_000, 3_600_000
SMALL = {
    "width": 4,
    "token_width": 8,
    "heads": 2,
    "head_width": 4,
    "layers": 3,
    "hidden": (8,),
    "max_history_length": 16,
    "max_recent_tokens": 30,
    "window_step": 4,
    "label_delay_minutes": 1.0,
    "period_hours": 24 * 60.0,
}
VARIANTS = [
    {},
    {"mask": "causal"},
    {"group_norm": False, "time_bias": False, "cross_features": False},
    {"reads_impressions": False, "sharing": "mmoe", "experts": 2, "tower": (4,), "field_gates": "sigmoid"},
]


@pytest.fixture(scope="module")
def user_requests(impressions: Split) -> SequenceBatch:
    """Return training requests of the users who have most of them, several of each."""
    requests = impression_examples(impressions.train)
    assert requests.user_ids is not None
    users, counts = torch.unique(requests.user_ids, return_counts=True)
    most = users[counts.argsort(descending=True)[:6]]
    return requests.select(torch.isin(requests.user_ids, most).nonzero()[:, 0])


def normalised(norm: GroupLayerNorm, x: Tensor, groups: list[int]) -> Tensor:
    """Return the normalised tokens, computed one by one."""
    numbers = groups if len(norm.weight) > 1 else [0] * len(groups)
    rows = []
    for token, group in zip(x, numbers, strict=True):
        centred = token - token.mean()
        rows.append(centred / (centred.square().mean() + norm.eps).sqrt() * norm.weight[group] + norm.bias[group])
    return torch.stack(rows)


def sees(i: int, j: int, groups: list[int], times: list[int], *, mask: str) -> bool:
    """Return whether token i may read token j, by the definition."""
    if i == j:
        return True
    if groups[j] == CANDIDATE:
        return False
    if mask == "causal":
        return j < i
    if groups[j] in (USER, HISTORY):
        return True
    return groups[i] in (RECENT, CANDIDATE) and times[j] < times[i]


def dense_logits(model: MTGR, batch: SequenceBatch) -> Tensor:
    """Return the logits of the candidates of one request by the formulas, with dense matrices."""
    batch = without_slots(batch)
    assert batch.candidates is not None
    assert batch.request_times is not None
    streams = model.streams(batch)
    assert streams.times is not None
    fields = model.vectors(model.fields(batch))
    x = torch.cat([model._tokens(streams), model.candidate_tokens(batch, fields)])
    now, count = int(batch.request_times[0]), len(batch.candidates.values)
    cut = now // int(model.config.period_hours * HOUR) * int(model.config.period_hours * HOUR)
    pairs = list(zip(streams.items.values.tolist(), streams.times.tolist(), strict=True))
    groups = [USER if item < 0 else HISTORY if time < cut else RECENT for item, time in pairs] + [CANDIDATE] * count
    times = [time for _, time in pairs] + [now] * count
    mask = torch.tensor(
        [[sees(i, j, groups, times, mask=model.config.mask) for j in range(len(x))] for i in range(len(x))]
    )
    elapsed = torch.tensor(times)[:, None] - torch.tensor(times)
    size = len(model.user_fields) + model.config.max_history_length + model.config.max_recent_tokens + 1
    for layer in model.layers:
        assert isinstance(layer, GroupedLayer)
        parts = F.silu(layer.projection(normalised(layer.input_norm, x, groups))).chunk(4, 1)
        u, v, q, k = (part.view(len(x), layer.heads, layer.head_width) for part in parts)
        scores = torch.einsum("ihk,jhk->hij", q, k)
        if layer.time_weights is not None:
            scores = scores + layer.time_weights[time_buckets(elapsed, "sqrt")]
        mixed = torch.einsum("hij,jhk->ihk", F.silu(scores) / size * mask, v)
        x = x + layer.output(normalised(layer.mixture_norm, (mixed * u).flatten(1), groups))
    logits: Tensor = model.deep(model.output_norm(x[-count:]))
    return logits


@pytest.mark.parametrize("settings", VARIANTS)
def test_scores_equal_dense_matrices_whatever_shares_a_pass(
    settings: dict[str, object], ranker: BuildRanker, user_requests: SequenceBatch
) -> None:
    model = ranker(MTGR, **{**SMALL, **settings})
    with torch.no_grad():
        streams = model.streams(user_requests)
        assert streams.items.num_rows < user_requests.num_requests  # requests of a user share a stream
        assert streams.num_static is not None
        assert bool((streams.items.lengths > streams.num_static).any())
        together = model._all_logits(user_requests)
        rows = torch.arange(user_requests.num_requests)
        alone = torch.cat([model._all_logits(user_requests.select(row[None])) for row in rows])
        torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)
        with_recent = streams.visible - streams.num_static[streams.streams]
        for row in (0, int(with_recent.argmax()), len(rows) - 1):
            batch = user_requests.select(torch.tensor([row]))
            torch.testing.assert_close(model._all_logits(batch), dense_logits(model, batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", VARIANTS)
def test_a_candidate_depends_on_no_other_candidate_nor_request_nor_label(
    settings: dict[str, object], ranker: BuildRanker, user_requests: SequenceBatch
) -> None:
    """Bit for bit: item, labels and slots of another candidate, and times of other requests."""
    model = ranker(MTGR, **{**SMALL, **settings})
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


def hand_made(last_item: int, last_minute: int) -> SequenceBatch:
    """Return two requests of one user in one period: at minute 100, and at minute 200 after two more events."""
    first, second = [1, 2, 3], [1, 2, 3, 4, last_item]
    times = [-50, 60, 80]
    return SequenceBatch(
        Jagged.from_rows([first, second]),
        user_ids=torch.tensor([9, 9]),
        timestamps=Jagged.from_rows(
            [[minute * MINUTE for minute in row] for row in (times, [*times, 120, last_minute])]
        ),
        request_times=torch.tensor([100, 200]) * MINUTE,
        candidates=Jagged.from_rows([[7, 8], [7, 8]]),
    )


@pytest.mark.parametrize("mask", ["dynamic", "causal"])
def test_a_real_time_event_later_than_a_candidate_changes_nothing(mask: str, ranker: BuildRanker) -> None:
    model = ranker(MTGR, **{**SMALL, "mask": mask})
    with torch.no_grad():
        assert model.streams(hand_made(5, 150)).items.num_rows == 1  # both requests read one stream
        before = model._all_logits(hand_made(5, 150))
        for item, minute in ((6, 150), (5, 199)):
            after = model._all_logits(hand_made(item, minute))
            assert torch.equal(after[:2], before[:2])
            assert not torch.equal(after[2:], before[2:])
        # An event at the time of the request, or after it, is none of those strictly before it. With fixed fields, as
        # those read the whole history of a request.
        codes = model.fields(hand_made(5, 150))
        at_request = model.logits(hand_made(5, 200), codes)
        assert torch.equal(model.logits(hand_made(6, 300), codes), at_request)
        assert not torch.equal(at_request[2:], before[2:])


def test_candidates_may_come_in_any_order_and_in_parts_of_any_size(
    ranker: BuildRanker, requests: SequenceBatch
) -> None:
    model = ranker(MTGR, **SMALL)
    requests = requests.select(torch.arange(0, 20, 5))
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


def test_gradients_weighted_by_the_number_of_requests_are_those_of_one_process(
    ranker: BuildRanker, user_requests: SequenceBatch
) -> None:
    """The shares of a batch differ in size, and some labels are missing."""
    model = ranker(MTGR, **{**SMALL, "stream_dropout": 0.0})
    label = user_requests.candidate_labels["click"]
    values = label.values.clone()
    values[::7] = torch.nan
    batch = replace(
        user_requests, candidate_labels={**user_requests.candidate_labels, "click": label.with_values(values)}
    )
    batch = batch.select(torch.arange(11))

    def gradients(part: SequenceBatch, weight: float) -> list[Tensor]:
        loss = model.training_loss(part).total * weight
        grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        return [torch.zeros(()) if grad is None else grad for grad in grads]

    model.train()
    whole = gradients(batch, 1.0)
    shares = [batch.share(rank, 3) for rank in range(3)]
    assert sorted(part.loss_count for part in shares) == [3, 4, 4]
    parts = [gradients(part, part.loss_count / batch.loss_count) for part in shares]
    for expected, *values_of_parts in zip(whole, *parts, strict=True):
        torch.testing.assert_close(sum(values_of_parts), expected, rtol=1e-4, atol=1e-6)


def later_requests(batch: SequenceBatch, dropped: int, hours: int) -> SequenceBatch:
    """Return the requests without their last events, some hours later."""
    assert batch.timestamps is not None
    assert batch.request_times is not None
    return replace(
        batch,
        items=batch.items.drop_last(dropped),
        actions=batch.actions.drop_last(dropped) if batch.actions is not None else None,
        timestamps=batch.timestamps.drop_last(dropped),
        features={name: column.drop_last(dropped) for name, column in batch.features.items()},
        request_times=batch.request_times + hours * HOUR,
    )


@pytest.mark.parametrize("settings", VARIANTS)
def test_a_continued_history_equals_one_that_is_read_at_once(
    settings: dict[str, object], ranker: BuildRanker, impressions: Split
) -> None:
    """Events come one by one or several at once, the period ends, windows move, and one event arrives late."""
    model = ranker(MTGR, **{**SMALL, **settings})
    rows = impressions.test.items.lengths.argsort(descending=True)[:8]
    batch = impressions.test.select(rows)
    state = None
    for dropped, hours in ((20, 0), (12, 1), (11, 2), (3, 3), (0, 5), (0, 24 * 70)):
        part = later_requests(batch, dropped, hours)
        expected = model._all_logits(part)
        torch.testing.assert_close(model._all_logits(replace(part, state=state)), expected, rtol=1e-4, atol=1e-5)
        state = model.encode_history(part, state)
        assert state.num_bytes > 0
    corrected = batch.items.values.clone()
    corrected[batch.items.offsets[1:] - 2] = 7
    late = later_requests(replace(batch, items=batch.items.with_values(corrected)), 0, 24 * 70)
    expected = model._all_logits(late)
    torch.testing.assert_close(model._all_logits(replace(late, state=state)), expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    model.train()
    model.eval()
    with pytest.raises(StaleStateError):
        model._all_logits(replace(batch, state=state))


def test_within_a_period_only_new_tokens_are_read(ranker: BuildRanker, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ranker(MTGR, **SMALL)
    first, second = (hand_made(5, 150).select(torch.tensor([row])) for row in (0, 1))
    next_period = replace(second, request_times=torch.tensor([24 * 60 * HOUR + MINUTE]))
    state = model.encode_history(first)
    counts: list[int] = []
    tokens = model._tokens

    def counted(streams: UserStreams, places: Tensor | None = None) -> Tensor:
        assert places is not None
        counts.append(len(places))
        return tokens(streams, places)

    monkeypatch.setattr(model, "_tokens", counted)
    model._all_logits(replace(first, state=state))
    state = model.encode_history(second, state)
    model._all_logits(replace(next_period, state=state))
    assert len(model.user_fields) == 1
    assert counts == [0, 2, 1 + 5]  # no token; two new events; the user's country and all five events


def test_labels_of_fresh_impressions_are_not_read(ranker: BuildRanker) -> None:
    """An impression becomes a real-time token once its labels have come, strictly before the request."""
    model = ranker(MTGR, **SMALL)

    def score(shown_time: int, label: float) -> Tensor:
        batch = SequenceBatch(
            Jagged.from_rows([[1, 2]]),
            timestamps=Jagged.from_rows([[10 * MINUTE, 11 * MINUTE]]),
            request_times=torch.tensor([100 * MINUTE]),
            shown_items=Jagged.from_rows([[5]]),
            shown_times=Jagged.from_rows([[shown_time]]),
            shown_labels={"click": Jagged(torch.tensor([label]), torch.tensor([0, 1]))},
            candidates=Jagged.from_rows([[3, 4]]),
        )
        with torch.no_grad():
            return model._all_logits(batch)

    assert torch.equal(score(99 * MINUTE, 1), score(99 * MINUTE, 0))
    assert not torch.equal(score(99 * MINUTE - 1, 1), score(99 * MINUTE - 1, 0))


def test_events_of_one_time_do_not_see_one_another_and_history_sees_all_of_it(ranker: BuildRanker) -> None:
    """A pair of real-time events may come in either order; so may all of the history, which has no positions."""
    model = ranker(MTGR, **{**SMALL, "time_bias": False})

    def score(items: list[int], minutes: list[int]) -> Tensor:
        batch = SequenceBatch(
            Jagged.from_rows([items]),
            timestamps=Jagged.from_rows([[minute * MINUTE for minute in minutes]]),
            request_times=torch.tensor([100 * MINUTE]),
            candidates=Jagged.from_rows([[8]]),
        )
        codes = model.fields(replace(batch, items=Jagged.from_rows([[1, 2, 3, 4]])))  # the same fields for all
        with torch.no_grad():
            return model.logits(batch, codes)

    former = score([1, 2, 3, 4], [-9, -8, 50, 50])
    torch.testing.assert_close(score([1, 2, 4, 3], [-9, -8, 50, 50]), former)
    torch.testing.assert_close(score([2, 1, 3, 4], [-9, -8, 50, 50]), former)
    assert not torch.allclose(score([1, 2, 4, 3], [-9, -8, 50, 51]), score([1, 2, 3, 4], [-9, -8, 50, 51]))


def test_ablations_remove_what_they_name(impressions: Split) -> None:
    def build(**settings: object) -> MTGR:
        config = parse(MTGRConfig, {**SMALL, **settings}, where="mtgr")
        catalog: Catalog = impressions.train.catalog
        assert isinstance(config, MTGRConfig)
        return MTGR(config, catalog)

    whole = build()
    names = [whole.fields.names[number] for number in whole.candidate_fields]
    assert any(name.startswith("cross.") for name in names)
    assert len(names) == len(whole.fields)
    without = build(cross_features=False)
    assert [whole.fields.names[n] for n in without.candidate_fields] == [
        name for name in names if not name.startswith(("cross.", "shown."))
    ]
    sizes = [sum(p.numel() for p in build(**s).parameters()) for s in ({}, {"group_norm": False})]
    assert sizes[0] - sizes[1] == 3 * 3 * 2 * (8 + 8)  # three more groups in two norms of weight and bias, three layers
    assert all(layer.time_weights is None for layer in build(time_bias=False).layers if isinstance(layer, GroupedLayer))
