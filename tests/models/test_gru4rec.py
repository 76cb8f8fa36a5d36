"""Tests of GRU4Rec: session-parallel training against a naive loop, and each known mistake of third-party ports."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from support.spies import spy
from torch import Tensor, nn
from torch.nn import functional as F

from nextitem.core.batch import SequenceBatch
from nextitem.core.components import component_class
from nextitem.core.dataset import Dataset
from nextitem.core.jagged import Jagged
from nextitem.core.roles import has_step_state
from nextitem.data.examples.session_lanes import LaneBatch, SessionLanes
from nextitem.losses.bpr_max import bpr_max
from nextitem.models import gru4rec
from nextitem.models.gru4rec import CrossEntropy, GRU4Rec, GRU4RecConfig
from nextitem.nn.recurrent import GRULayer, OneHotGRULayer
from nextitem.pipeline.recipe import resolve_recipe
from nextitem.testing.known_answers import build, cycle
from nextitem.training.adagrad import Adagrad
from nextitem.training.config import TrainingConfig
from nextitem.training.fit import fit

SESSIONS = [[1, 2, 3], [4, 5], [6, 7, 8, 2, 1], [3, 8], [5, 4, 6, 1], [2, 7]]
EMBEDDINGS = ["shared", "separate", "one-hot"]
real_dropout = F.dropout


def tiny(sessions: list[list[int]] = SESSIONS) -> Dataset:
    return build(sessions, [f"t{n}" for n in range(8)], name="tiny")


def model_of(dataset: Dataset, **settings: object) -> GRU4Rec:
    torch.manual_seed(0)
    fields = {"layers": (6,), "embedding_width": 5, "num_negatives": 4, **settings}
    model = GRU4Rec(GRU4RecConfig(**fields), dataset.catalog)
    model.set_popularity(torch.from_numpy(dataset.interactions.item_counts()).float())
    with torch.no_grad():
        model.bias.weight.normal_()
    return model


def lanes(model: GRU4Rec, dataset: Dataset, count: int) -> list[LaneBatch]:
    return list(model.examples(dataset).batches(count, epoch=0, seed=0))


def requests(histories: list[list[int]]) -> SequenceBatch:
    return SequenceBatch(Jagged.from_rows(histories))


def hidden_of(model: GRU4Rec, batches: list[LaneBatch]) -> dict[tuple[int, ...], Tensor]:
    """Return the hidden state that scored each prefix of each session, by training in lanes."""
    prefix_of_lane: dict[int, list[int]] = {}
    states = {}
    for batch in batches:
        model.training_loss(batch)
        rows = zip(batch.lanes.tolist(), batch.items.tolist(), batch.begins.tolist(), strict=True)
        for lane, item, begins in rows:
            prefix_of_lane[lane] = [item] if begins else [*prefix_of_lane[lane], item]
            states[tuple(prefix_of_lane[lane])] = model.step_state[lane].clone()
    return states


@pytest.mark.parametrize("embedding", EMBEDDINGS)
@pytest.mark.parametrize("layers", [(6,), (5, 7, 6)])
def test_lanes_equal_a_naive_loop_over_sessions(embedding: str, layers: tuple[int, ...]) -> None:
    """Wrong resets, states of other lanes and states that survive a session would change the result."""
    dataset = tiny()
    model = model_of(dataset, embedding=embedding, layers=layers).eval()
    lane_states = hidden_of(model, lanes(model, dataset, 3))
    prefixes = [tuple(session[:n]) for session in SESSIONS for n in range(1, len(session))]
    assert set(lane_states) == set(prefixes)
    for prefix in prefixes:
        out: Tensor = torch.tensor(prefix[:1])
        states = [torch.zeros(1, width) for width in layers]
        for item in prefix:
            out = model._embed(torch.tensor([item]))
            for number, layer in enumerate(model.layers):
                assert isinstance(layer, GRULayer | OneHotGRULayer)
                out = states[number] = layer.step(out, states[number])
        torch.testing.assert_close(lane_states[prefix], torch.cat(states, 1)[0])
        answered = model.encode_history(requests([list(prefix)]))  # a request reads the same state
        torch.testing.assert_close(answered.cache["hidden"][0], lane_states[prefix])


def test_order_of_lanes_does_not_matter() -> None:
    dataset = tiny()
    model = model_of(dataset)
    batch = lanes(model, dataset, 4)[0]
    order = torch.tensor([2, 0, 3, 1])
    model.step_state = torch.randn(4, 6)
    states = model.step_state.clone()
    begins = torch.tensor([True, False, False, True])
    first = model.training_loss(replace(batch, begins=begins)).total
    model.step_state = states[order]
    moved = replace(batch, items=batch.items[order], targets=batch.targets[order], begins=begins[order])
    torch.testing.assert_close(model.training_loss(moved).total, first)


def test_states_of_training_do_not_change_answers() -> None:
    dataset = tiny()
    model = model_of(dataset).eval()
    before = model.recommend(requests([[1, 2], [3]]), 3)
    for batch in lanes(model, dataset, 2):
        model.training_loss(batch)
    after = model.recommend(requests([[1, 2], [3]]), 3)
    assert torch.equal(before.scores, after.scores)
    assert "step_state" not in model.state_dict()
    assert has_step_state(model)


def record_scores(monkeypatch: pytest.MonkeyPatch, name: str) -> list[Tensor]:
    return spy(monkeypatch, gru4rec, name, lambda scores, **rest: scores)


def record_columns(model: GRU4Rec) -> list[Tensor]:
    """Return a list that grows by the ids of targets and samples with each step."""
    column_ids: list[Tensor] = []
    original = model._look_up

    def look_up(items: Tensor, targets: Tensor, seed: int) -> tuple[Tensor | None, Tensor, Tensor, Tensor, Tensor]:
        result = original(items, targets, seed)
        column_ids.append(result[1])
        return result

    model._look_up = look_up  # type: ignore[method-assign]
    return column_ids


def test_only_the_columns_of_the_batch_and_its_samples_are_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = tiny()
    model = model_of(dataset, num_negatives=3, objective="bpr")
    scores = record_scores(monkeypatch, "bpr")
    columns, looked_up = record_columns(model), []
    model.items.register_forward_hook(lambda module, args, out: looked_up.append(args[0].tolist()))
    batch = lanes(model, dataset, 4)[0]
    model.training_loss(batch)
    assert scores[0].shape == (4, 7)
    # Inputs, targets and samples at once, each row of the table a single time: its gradient needs no summation.
    assert looked_up == [sorted({*batch.items.tolist(), *columns[0].tolist()})]


def test_cross_entropy_is_one_softmax_over_raw_scores_minus_log_q() -> None:
    """Not of probabilities, and not of a softmax computed before the columns were selected."""
    dataset = tiny()
    model = model_of(dataset, negatives_power=0.75, objective={"log_q": "published"}).eval()
    batch = lanes(model, dataset, 4)[0]
    columns = record_columns(model)
    loss = model.training_loss(batch).total
    column_ids = columns[0]
    assert column_ids[:4].tolist() == batch.targets.tolist()
    counts = torch.from_numpy(dataset.interactions.item_counts()).float()[column_ids]
    scores = scores_of(model, batch, column_ids) - torch.cat([counts[:4], counts[4:] ** 0.75]).log()
    torch.testing.assert_close(loss, F.cross_entropy(scores, torch.arange(4)))


def test_the_textbook_log_q_uses_expected_samples_and_skips_collisions() -> None:
    dataset = tiny()
    model = model_of(dataset, objective={"log_q": "textbook"}, negatives_power=0.5, num_negatives=30).eval()
    columns = record_columns(model)
    batch = lanes(model, dataset, 4)[0]
    loss = model.training_loss(batch).total
    column_ids = columns[0]
    counts = torch.from_numpy(dataset.interactions.item_counts()).float()
    expected_counts = torch.cat(
        [4 * counts[column_ids[:4]] / counts.sum(), 30 * counts[column_ids[4:]] ** 0.5 / (counts[1:] ** 0.5).sum()]
    )
    is_collision = (column_ids[:4, None] == column_ids) & ~torch.eye(4, 34, dtype=torch.bool)
    assert bool(is_collision.any())
    scores = (scores_of(model, batch, column_ids) - expected_counts.log()).masked_fill(is_collision, -torch.inf)
    torch.testing.assert_close(loss, F.cross_entropy(scores, torch.arange(4)))


def test_log_q_can_be_switched_off_in_a_recipe() -> None:
    settings = resolve_recipe(
        [("test", {"data": {"path": "x"}, "model": {"name": "gru4rec"}})], overrides=["model.objective.log_q=none"]
    )
    _, config = component_class("model", settings.model)
    assert isinstance(config, GRU4RecConfig)
    assert isinstance(config.objective, CrossEntropy)
    assert config.objective.log_q is None
    dataset = tiny()
    model = model_of(dataset, objective={"log_q": None}).eval()
    columns = record_columns(model)
    batch = lanes(model, dataset, 4)[0]
    loss = model.training_loss(batch).total
    torch.testing.assert_close(loss, F.cross_entropy(scores_of(model, batch, columns[0]), torch.arange(4)))


def scores_of(model: GRU4Rec, batch: LaneBatch, columns: Tensor) -> Tensor:
    """Return the raw scores of the last step."""
    return model.step_state[batch.lanes] @ model.items.weight[columns].T + model.bias.weight[columns, 0]


def test_settings_of_bpr_max_reach_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = tiny()
    model = model_of(dataset, objective={"kind": "bpr-max", "regularisation": 1.95, "elu": 0.5})
    scores = record_scores(monkeypatch, "bpr_max")
    loss = model.training_loss(lanes(model, dataset, 4)[0]).total
    torch.testing.assert_close(loss, bpr_max(scores[0], regularisation=1.95, elu=0.5))


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_dropout_is_applied_in_the_same_places_as_by_the_authors(
    embedding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the embedded input and on every layer's output, each at its own rate; the dropped output is the next state."""
    dataset = tiny()
    model = model_of(dataset, embedding=embedding, layers=(7, 6), dropout_embedding=0.25, dropout_hidden=0.5)
    calls: list[tuple[tuple[int, ...], float]] = []
    outputs: list[Tensor] = []

    def drop(values: Tensor, rate: float, training: bool) -> Tensor:
        calls.append((tuple(values.shape), rate))
        outputs.append(real_dropout(values, rate, training))
        return outputs[-1]

    monkeypatch.setattr(F, "dropout", drop)
    model.train()
    model.training_loss(lanes(model, dataset, 4)[0])
    width = {"shared": 6, "separate": 5}.get(embedding)
    expected = [((4, 7), 0.5), ((4, 6), 0.5)]
    assert calls == ([((4, width), 0.25)] if width else []) + expected
    assert torch.equal(model.step_state, torch.cat(outputs[-2:], 1))
    assert bool((model.step_state == 0).any())


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_negatives_are_sampled_by_count_to_the_power(power: float) -> None:
    dataset = cycle()
    model = model_of(dataset, num_negatives=50_000, negatives_power=power)
    columns = record_columns(model)
    model.training_loss(lanes(model, dataset, 1)[0])
    sampled_counts = np.bincount(columns[0][1:].numpy(), minlength=13)[1:]
    weights = dataset.interactions.item_counts()[1:].astype(float) ** power
    assert chisquare(sampled_counts, 50_000 * weights / weights.sum()).pvalue > 1e-3


def test_an_item_that_is_no_target_in_training_is_never_sampled() -> None:
    dataset = tiny([[1, 2, 3], [2, 1]])
    model = model_of(dataset, num_negatives=1000)
    columns = record_columns(model)
    model.training_loss(lanes(model, dataset, 1)[0])
    assert set(columns[0].tolist()) == {1, 2, 3}


def test_initial_weights_and_sizes_are_those_of_the_config() -> None:
    dataset = tiny()
    model = model_of(dataset, layers=(11, 13), embedding="separate", embedding_width=9)
    assert model.items.weight.shape == (9, 13)
    assert model.inputs is not None
    assert model.inputs.weight.shape == (9, 9)
    for table in (model.items, model.inputs):
        bound = (6 / sum(table.weight.shape)) ** 0.5
        assert 0.9 * bound < float(table.weight.detach().abs().max()) <= bound


def test_the_loss_is_the_sum_over_rows_divided_by_the_lanes_of_a_full_batch() -> None:
    dataset = tiny()
    model = model_of(dataset, objective="top1").eval()
    batch = lanes(model, dataset, 4)[0]
    two_lanes = replace(batch, **{name: getattr(batch, name)[:2] for name in ("items", "targets", "lanes", "begins")})
    alone = model.training_loss(replace(two_lanes, num_lanes=2)).total
    torch.testing.assert_close(model.training_loss(two_lanes).total, alone / 2)


def test_a_last_lane_without_negatives_ends_the_epoch_without_error() -> None:
    dataset = tiny([[1, 2, 3, 4, 5], [6, 7]])
    for objective in ("cross-entropy", "bpr-max", "top1-max", "bpr", "top1"):
        model = model_of(dataset, num_negatives=0, objective=objective)
        result = fit(
            model,
            model.examples(dataset),
            TrainingConfig(optimizer="adagrad", max_epochs=2, batch_size=2),
            progress=False,
        )
        assert np.isfinite(result.epoch_log[-1]["loss"])


def test_events_that_may_not_be_targets_are_read_but_not_scored() -> None:
    dataset = tiny()
    positive = np.ones(len(dataset.interactions), np.bool_)
    positive[1] = False
    model = model_of(dataset).eval()
    log = replace(dataset.interactions, positive=positive)
    batches = list(model.examples(dataset.with_interactions(log)).batches(6, epoch=0, seed=0))
    assert batches[0].targets[0] == 0
    states = hidden_of(model, batches)
    torch.testing.assert_close(states[1, 2], model.encode_history(requests([[1, 2]])).cache["hidden"][0])


def test_rows_without_gradient_do_not_change() -> None:
    dataset = tiny()
    model = model_of(dataset, num_negatives=0, objective="bpr")
    before = model.items.weight.detach().clone()
    optimizer = Adagrad(model.parameters(), lr=0.1, momentum=0.2)
    batch = lanes(model, dataset, 2)[0]
    model.training_loss(batch).total.backward()
    optimizer.step()
    changed_rows = (model.items.weight != before).any(1).nonzero()[:, 0]
    assert set(changed_rows.tolist()) == {*batch.items.tolist(), *batch.targets.tolist()}


def test_a_run_interrupted_within_an_epoch_resumes_with_its_lanes(tmp_path: Path) -> None:
    dataset = cycle()
    config = TrainingConfig(optimizer="adagrad", learning_rate=0.05, momentum=0.2, max_epochs=2, batch_size=5)

    class Interrupted(SessionLanes):
        """Examples that send Ctrl-C while the 7th step of the second epoch is read."""

        def batches(self, batch_size: int, *, epoch: int, seed: int, start: int = 0) -> Iterator[LaneBatch]:
            for step, batch in enumerate(super().batches(batch_size, epoch=epoch, seed=seed, start=start), start):
                if (epoch, step) == (1, 6):
                    os.kill(os.getpid(), signal.SIGINT)
                yield batch

    def train(examples: type[SessionLanes], *, resume: bool = False) -> tuple[GRU4Rec, str]:
        model = model_of(dataset, dropout_hidden=0.3)
        result = fit(model, examples(dataset.interactions), config, out=tmp_path, resume=resume, progress=False)
        return model, result.stop_reason

    whole, _ = train(SessionLanes)
    assert train(Interrupted)[1] == "interrupted"
    resumed, stopped = train(SessionLanes, resume=True)
    assert stopped == "finished"
    for (name, value), other in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(value, other), name


def test_scores_are_inner_products_plus_biases() -> None:
    model = model_of(tiny()).eval()
    batch = requests([[1, 2], [3, 4, 5]])
    answer = model.recommend(batch, 8)
    scores = model.user_vectors(batch) @ model.item_vectors().T + model.item_biases()
    torch.testing.assert_close(answer.scores, scores[:, 1:].sort(descending=True).values)
    assert isinstance(model.layers[0], nn.Module)
