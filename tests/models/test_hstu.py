"""Tests of HSTU: events that are read, query times, interleaved actions, and histories extended from a state."""

from __future__ import annotations

from dataclasses import replace
from operator import methodcaller

import pytest
import torch
from support.fixed_recommender import shop
from support.modules import part
from support.spies import spy
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.dataset import Dataset
from nextitem.core.history_state import HistoryState
from nextitem.core.jagged import Jagged
from nextitem.data.examples.next_item import NextItemBatch
from nextitem.losses.objectives import FullSoftmax
from nextitem.models import hstu
from nextitem.models.hstu import HSTU, HSTUConfig
from nextitem.nn.attention.hstu import HSTULayer
from nextitem.testing.known_answers import build, cycle

HOUR = 3_600_000
DAY = 24 * HOUR
HISTORIES = [[1, 2, 3], [4], [5, 6, 7, 8, 1, 2, 3], [2, 2]]


def tiny() -> Dataset:
    return build([[1, 2, 3, 4, 5], [3, 1]], [f"t{n}" for n in range(8)], name="tiny")


def model_of(**config: object) -> HSTU:
    torch.manual_seed(0)
    fields = {"width": 8, "heads": 2, "head_width": 4, "max_history_length": 5, **config}
    model = HSTU(HSTUConfig(**fields), tiny().catalog).double()
    with torch.no_grad():  # larger than at initialisation, so that differences are visible
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return model.eval()


def requests(histories: list[list[int]] = HISTORIES) -> SequenceBatch:
    """Return dated requests with actions, two hours after the last event."""
    items = Jagged.from_rows(histories)
    times = items.with_values(torch.arange(len(items.values)) * 7 * HOUR + items.values * DAY // 5)
    request_times = torch.tensor([int(t) for t in times.values[(items.offsets[1:] - 1).clamp(min=0)]]) + 2 * HOUR
    actions = items.with_values(items.values % 3)
    return SequenceBatch(items, actions=actions, timestamps=times, request_times=request_times)


def test_only_the_latest_events_are_read_and_the_future_never_leaks() -> None:
    model = model_of()
    batch = requests([[7, 8, 1, 2, 3, 4, 5]])
    torch.testing.assert_close(model.user_vectors(batch), model.user_vectors(batch.last(5)))
    assert batch.timestamps is not None
    columns = NextItemBatch(batch.items, batch.items, 0, batch.timestamps, batch.timestamps, batch.actions)
    for actions in ("ignored", "interleaved"):
        model = model_of(actions=actions, max_history_length=7)
        before = model._encode(columns, batch.timestamps.values)
        changed = replace(columns, items=Jagged.from_rows([[7, 8, 1, 2, 6, 6, 6]]))
        after = model._encode(changed, batch.timestamps.values)
        assert torch.equal(before[:4], after[:4])
        assert not torch.equal(before[4:], after[4:])


def test_the_query_time_is_the_request_s_or_without_one_the_last_event_s() -> None:
    model = model_of()
    batch = requests()
    assert batch.timestamps is not None
    assert batch.request_times is not None
    soon, late = model.user_vectors(batch), model.user_vectors(replace(batch, request_times=batch.request_times + DAY))
    assert not torch.allclose(soon, late)
    event_times = batch.timestamps.values[batch.items.offsets[1:] - 1]
    without_time = model.user_vectors(replace(batch, request_times=None))
    torch.testing.assert_close(without_time, model.user_vectors(replace(batch, request_times=event_times)))


def test_in_training_the_query_time_of_an_event_is_the_time_of_the_next() -> None:
    """So the last hidden state of a request at its target's time equals the one of training."""
    dataset = tiny()
    model = model_of(objective="full-softmax")
    examples = model.examples(dataset)
    batch = next(iter(examples.batches(2, epoch=0, seed=0)))
    assert batch.timestamps is not None
    assert batch.next_timestamps is not None
    hidden = model._encode(batch, batch.next_timestamps.values)
    ends = batch.items.offsets[1:] - 1
    request = SequenceBatch(batch.items, timestamps=batch.timestamps, request_times=batch.next_timestamps.values[ends])
    torch.testing.assert_close(model.scale_users(hidden[ends]), model.user_vectors(request))


@pytest.mark.parametrize("actions", ["ignored", "interleaved"])
def test_actions_have_an_effect_only_if_they_are_interleaved(actions: str) -> None:
    model = model_of(actions=actions)
    batch = requests()
    assert batch.actions is not None
    vectors = model.user_vectors(batch)
    other = model.user_vectors(replace(batch, actions=batch.actions.with_values(batch.actions.values + 1)))
    assert torch.allclose(vectors, other) == (actions == "ignored")
    without_actions = model.user_vectors(replace(batch, actions=None))  # a request without actions
    assert bool(torch.isfinite(without_actions).all())
    high_codes = model.user_vectors(replace(batch, actions=batch.actions.with_values(batch.actions.values + 99)))
    assert bool(torch.isfinite(high_codes).all())


@pytest.mark.parametrize("actions", ["ignored", "interleaved"])
@pytest.mark.parametrize(("dated", "residual"), [(True, "input"), (False, "input"), (True, "normed")])
def test_extending_a_state_equals_reading_all_events(actions: str, dated: bool, residual: str) -> None:
    """Rows with no, one and several new events; one that was empty before; two whose window slides."""
    model = model_of(actions=actions, layers=3, residual=residual)
    whole = requests([[1, 2, 3], [4, 5], [5, 6, 7, 8, 1, 2, 3], [2, 2, 7, 1, 5], [6, 1, 2, 3, 4, 8]])
    if not dated:
        whole = replace(whole, timestamps=None, request_times=None)
    counts = torch.tensor([3, 0, 6, 3, 5])

    def first(column: Jagged | None) -> Jagged | None:
        if column is None:
            return None
        rows = [row[:count] for row, count in zip(column.to_lists(), counts.tolist(), strict=True)]
        return Jagged.from_rows(rows)

    items = first(whole.items)
    assert items is not None
    earlier = replace(whole, items=items, timestamps=first(whole.timestamps), actions=first(whole.actions))
    rows_read = (counts > 0).nonzero()[:, 0]
    parts = [model.encode_history(earlier.select(rows_read)), HistoryState.unread(1)]
    joined = HistoryState.concat(parts).select(torch.tensor([0, 4, 1, 2, 3]))
    extended, expected = model.encode_history(whole, joined), model.encode_history(whole)
    torch.testing.assert_close(extended.vectors, expected.vectors)
    torch.testing.assert_close(extended.cache["keys_values"], expected.cache["keys_values"])
    assert torch.equal(extended.lengths, expected.lengths)
    torch.testing.assert_close(expected.vectors, model.user_vectors(whole))
    torch.testing.assert_close(model.user_vectors(replace(whole, state=joined)), expected.vectors)


def test_only_new_tokens_are_computed() -> None:
    model = model_of(max_history_length=50, layers=2)
    whole = requests([list(range(1, 9)) * 4])
    state = model.encode_history(whole.select(torch.tensor([0])))
    token_counts: list[int] = []
    project = model.get_submodule("layers.0.project")
    project.register_forward_hook(lambda module, args, out: token_counts.append(len(args[0])))
    model.encode_history(whole, state)
    model.encode_history(whole)
    assert token_counts == [1, 32]


def test_scores_are_cosines_over_the_temperature() -> None:
    model = model_of(temperature=0.05)
    answer = model.recommend(requests(), 8)
    assert float(answer.scores.abs().max()) <= 20 + 1e-5
    norms = model.item_vectors()[1:].norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms))


def test_stochastic_length_shortens_training_histories(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = build([[n % 8 + 1 for n in range(40)]] * 6, [f"t{n}" for n in range(8)], name="long")
    tokens: dict[str, list[int]] = {}
    for name, alpha in (("whole", None), ("part", 1.5)):
        model = model_of(max_history_length=39, stochastic_length=alpha).train()
        token_counts: list[int] = []
        project = model.get_submodule("layers.0.project")
        project.register_forward_hook(
            lambda module, args, out, token_counts=token_counts: token_counts.append(len(args[0]))
        )
        for epoch in range(6):
            for batch in model.examples(dataset).batches(3, epoch=epoch, seed=1):
                assert bool(torch.isfinite(model.training_loss(batch).total))
        tokens[name] = token_counts
    assert sum(tokens["whole"]) == 36 * 39
    assert sum(tokens["part"]) < 0.7 * 36 * 39  # 39 ** 0.75 = 15 events, or with probability 0.16 all
    assert tokens["part"] != sorted(tokens["part"])[:1] * len(tokens["part"])


def test_a_batch_without_targets_after_stochastic_length_has_no_loss() -> None:
    """The events may not be targets, and stochastic length keeps the most recent one."""
    model = model_of(stochastic_length=1.5).train()
    items = Jagged.from_rows([[1, 2, 3, 4, 5]])
    no_targets = NextItemBatch(items, items.with_values(torch.zeros_like(items.values)), 0)
    loss = model.training_loss(no_targets).total
    loss.backward()
    assert float(loss) == 0


@pytest.mark.parametrize("shared_by", ["batch", "sequence", "position"])
def test_negatives_are_shared_as_the_setting_says(shared_by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(objective={"shared_by": shared_by, "num_negatives": 6})
    shapes = spy(monkeypatch, hstu, "sampled_softmax", lambda *args, negatives, **rest: negatives.shape)
    batch = next(iter(model.examples(tiny()).batches(2, epoch=0, seed=0)))
    assert bool(torch.isfinite(model.training_loss(batch).total))
    assert shapes == [{"batch": (6,), "sequence": (2, 6), "position": (5, 6)}[shared_by]]


def test_the_loss_of_a_batch_is_the_mean_over_the_targets_of_its_sequences() -> None:
    dataset = cycle()
    torch.manual_seed(0)
    config = HSTUConfig(width=8, heads=1, head_width=8, objective=FullSoftmax(), max_history_length=6, dropout=0.0)
    model = HSTU(config, dataset.catalog).double().train()
    whole = next(iter(model.examples(dataset).batches(8, epoch=0, seed=0)))
    parts: list[Tensor] = []
    for row in range(whole.items.num_rows):
        one = whole.map(methodcaller("select", torch.tensor([row])))
        parts.append(model.training_loss(one).total * len(one.targets.values) / len(whole.targets.values))
    torch.testing.assert_close(torch.stack(parts).sum(), model.training_loss(whole).total)


def test_initial_weights_are_the_authors_except_positions() -> None:
    """Tables of biases and the projection: normal 0.02; output: Xavier uniform; items: truncated normal 0.02."""
    torch.manual_seed(0)
    catalog = shop([[1, 2]], items=300).catalog
    model = HSTU(HSTUConfig(width=64, head_width=32, heads=2, max_history_length=400), catalog)
    layer = part(model, "layers.0", HSTULayer)
    assert bool((layer.output.bias == 0).all())
    expected_std = {"items": 0.02, "positions": 0.02, "project": 0.02, "output": (2 / 128) ** 0.5}
    tables = {"items": model.items.weight[1:], "positions": model.positions.weight}
    tables |= {"project": layer.project.weight, "output": layer.output.weight}
    for name, table in tables.items():
        assert float(table.std()) == pytest.approx(expected_std[name], rel=0.05), name
    for weights in (layer.position_weights, layer.time_weights):
        assert float(weights.std()) == pytest.approx(0.02, rel=0.2)
