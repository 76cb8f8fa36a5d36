"""Counts of operations: equal to torch's own counter for each family, and without padding for histories of any lengths.

Dropout is on, since torch counts attention only if it is computed as plain products. For the same reason the kernels of
the package are replaced by their plain references, which other tests show to be equal.
"""

from __future__ import annotations

import inspect
from typing import Any, cast

import numpy as np
import pytest
import torch
from support.small_models import identified, small_model
from torch.utils.flop_counter import FlopCounterMode

from nextitem.core.dataset import Dataset
from nextitem.core.recommender import Recommender
from nextitem.core.roles import Trainable
from nextitem.ops.hstu_attention import hstu_attention_reference
from nextitem.ops.sampled_logits import sampled_logits_reference
from nextitem.ops.softmax_loss import softmax_loss_reference
from nextitem.pipeline.scaling import flops
from nextitem.pipeline.scaling.families import FAMILIES
from nextitem.pipeline.scaling.flops import Flops, count_epoch, count_parameters
from nextitem.testing.known_answers import build

NUM_ITEMS = 12
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "sasrec": ("sasrec", {"width": 8, "layers": 2, "heads": 2, "objective": "full-softmax"}),
    "hstu-ranking": ("hstu-ranking", {"width": 4, "token_width": 8, "head_width": 4, "hidden": [8]}),
    "hstu-ranking of one layer": ("hstu-ranking", {"width": 4, "layers": 1, "token_fields": False, "hidden": []}),
    "sasrec published": ("sasrec", {"width": 8, "block": "published", "objective": "full-softmax"}),
    "sasrec pre-norm": (
        "sasrec",
        {"width": 8, "block": "pre-norm", "objective": {"kind": "sampled-softmax", "num_negatives": 5}},
    ),
    "sasrec by position": (
        "sasrec",
        {"width": 8, "objective": {"kind": "sampled-softmax", "num_negatives": 5, "shared_by": "position"}},
    ),
    "sasrec by sequence": (
        "sasrec",
        {"width": 8, "objective": {"kind": "sampled-softmax", "num_negatives": 5, "shared_by": "sequence"}},
    ),
    "sasrec bce": ("sasrec", {"width": 8, "objective": {"kind": "bce", "num_negatives": 3}}),
    "sasrec gbce": ("sasrec", {"width": 8, "objective": {"kind": "gbce", "num_negatives": 3}}),
    "hstu": ("hstu", {"width": 8, "heads": 2, "head_width": 3, "layers": 2, "objective": "full-softmax"}),
    "hstu sampled": ("hstu", {"width": 8, "objective": {"kind": "sampled-softmax", "num_negatives": 5}}),
    "hstu interleaved": ("hstu", {"width": 8, "actions": "interleaved", "objective": "full-softmax"}),
    "gru4rec": ("gru4rec", {"layers": (6,), "objective": "bpr-max", "num_negatives": 7}),
    "gru4rec separate": (
        "gru4rec",
        {"layers": (6, 5), "embedding": "separate", "embedding_width": 4, "objective": "top1-max", "num_negatives": 7},
    ),
    "tiger": ("tiger", {"width": 8, "heads": 2, "head_width": 3, "ff_width": 10, "encoder_layers": 3}),
    "tiger users": ("tiger", {"width": 8, "user_buckets": 4, "ff_layers": 2}),
    "tiger several targets": ("tiger", {"width": 8, "target_weights": (1.0, 0.5)}),
}


@pytest.fixture(autouse=True)
def _plain_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nextitem.losses.full_softmax.softmax_loss", softmax_loss_reference)
    monkeypatch.setattr("nextitem.losses.sampled_softmax.sampled_logits", sampled_logits_reference)
    monkeypatch.setattr("nextitem.nn.attention.hstu.hstu_attention", hstu_attention_reference)
    monkeypatch.setattr("nextitem.nn.attention.stream.hstu_attention", hstu_attention_reference)


def log_of(lengths: list[int]) -> Dataset:
    """Return a data set with users of these numbers of events."""
    rng = np.random.default_rng(0)
    rows = [(1 + rng.permutation(NUM_ITEMS)[:length]).tolist() for length in lengths]
    return identified(build(rows, [f"item {number}" for number in range(NUM_ITEMS)], name="log"))


def model_of(case: str, data: Dataset) -> Recommender:
    name, settings = CASES[case]
    dropout = {"dropout_hidden": 0.1} if name == "gru4rec" else {"dropout": 0.1}
    return small_model(name, data, **settings, **dropout).train()


def batches_of(model: Recommender, data: Dataset, *, batch_size: int) -> list[Any]:
    return list(cast(Trainable[Any], model).examples(data).batches(batch_size, epoch=0, seed=0))


def measured(model: Recommender, batches: list[Any]) -> tuple[int, int]:
    """Return the operations of the forward and of the backward pass by torch's counter."""
    forward = total = 0
    for batch in batches:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            cast(Trainable[Any], model).training_loss(batch)
        forward += counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            cast(Trainable[Any], model).training_loss(batch).total.backward()
        total += counter.get_total_flops()
    return forward, total - forward


@pytest.mark.parametrize("case", CASES)
def test_counts_equal_those_of_torch_without_padding(case: str) -> None:
    is_tiger = CASES[case][0] == "tiger"  # each prefix is an example, so that lengths differ
    data = log_of([4] if is_tiger else [6, 6, 6, 6])
    model = model_of(case, data)
    # Torch's counter does not see a sum over one token, so requests share streams of several.
    batch_size = 64 if CASES[case][0] == "hstu-ranking" else 4
    batches = batches_of(model, data, batch_size=1 if is_tiger else batch_size)
    counted = count_epoch(model, batches, FAMILIES[CASES[case][0]].counter)
    forward, backward = measured(model, batches)
    assert counted.forward == forward
    assert counted.backward == backward


@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith(("gru4rec", "tiger ", "hstu-ranking"))])
def test_a_batch_of_different_histories_counts_as_its_histories_alone(case: str) -> None:
    data = log_of([3, 4] if CASES[case][0] == "tiger" else [3, 9, 5, 4])
    model, counter = model_of(case, data), FAMILIES[CASES[case][0]].counter
    together = count_epoch(model, batches_of(model, data, batch_size=16), counter)
    alone = batches_of(model, data, batch_size=1)
    assert together == count_epoch(model, alone, counter)
    forward, backward = measured(model, alone)
    assert (together.forward, together.backward) == (forward, backward)


def test_requests_of_a_user_count_the_shared_history_once() -> None:
    data = log_of([3, 9, 5, 4])
    model = model_of("hstu-ranking", data)
    together = count_epoch(model, batches_of(model, data, batch_size=64), "hstu_ranking")
    alone = count_epoch(model, batches_of(model, data, batch_size=1), "hstu_ranking")
    assert together.targets == alone.targets
    assert together.forward < alone.forward


def test_attention_grows_with_the_square_of_the_length_and_the_rest_with_the_length() -> None:
    model = model_of("sasrec", log_of([6]))
    counts = []
    for length in (2, 3, 5):
        data = log_of([length])
        counts.append(count_epoch(model, batches_of(model, data, batch_size=1), "sasrec").forward)
    per_token, per_pair = np.linalg.solve([[1, 1], [2, 4]], counts[:2])
    assert counts[2] == pytest.approx(4 * per_token + 16 * per_pair)
    assert per_pair == pytest.approx(2 * 4 * 8)  # two layers, two products of width 8
    assert per_token == pytest.approx(2 * 36 * 8**2 + 2 * 8 * NUM_ITEMS)  # two LiGR blocks; the logits


def test_a_gru_step_has_the_products_of_its_three_gates() -> None:
    data = log_of([6, 6, 6, 6])
    model = model_of("gru4rec", data)
    counted = count_epoch(model, batches_of(model, data, batch_size=4)[:1], "gru4rec")
    gates, scores = 2 * 4 * 3 * 6 * 6, 2 * 4 * 6 * (4 + 7)
    assert counted == Flops(2 * gates + scores, 3 * gates + 2 * scores, 4)


def test_sampled_items_count_as_often_as_they_are_sampled() -> None:
    """The cross-entropy of GRU4Rec scores equal items once, and the inputs if it shares their table."""
    data = log_of([6, 6, 6, 6])
    name, settings = "gru4rec", {"layers": (6,), "objective": "cross-entropy", "embedding": "separate"}
    model = small_model(name, data, **settings, embedding_width=6, num_negatives=0).train()
    batch = next(each for each in batches_of(model, data, batch_size=4) if len(each.targets.unique()) == 4)
    counted = count_epoch(model, [batch], "gru4rec")
    assert (counted.forward, counted.backward) == measured(model, [batch])


def test_stochastic_length_counts_the_events_that_training_reads() -> None:
    data = log_of([9, 9])
    model = small_model("hstu", data, width=8, stochastic_length=1.2, max_history_length=8, objective="full-softmax")
    batches = batches_of(model, data, batch_size=1)
    forward, _ = measured(model.train(), batches)
    assert count_epoch(model, batches, "hstu").forward == forward
    whole = small_model("hstu", data, width=8, max_history_length=8, objective="full-softmax")
    assert forward < count_epoch(whole, batches, "hstu").forward


def test_parameters_of_tables_are_counted_apart() -> None:
    data = log_of([6])
    model = model_of("sasrec published", data)
    counts = count_parameters(model)
    assert counts.embedding == 8 * (NUM_ITEMS + 1 + 50)  # items, padding, positions
    assert counts.other == 5 * (8 * 8 + 8) + 3 * 2 * 8  # query, key, value, two layers of the block; three norms
    assert counts.embedding + counts.other == sum(each.numel() for each in model.parameters())


def test_every_family_has_a_counter_and_a_case() -> None:
    assert {name for name, _ in CASES.values()} == set(FAMILIES)
    for family in FAMILIES.values():
        assert inspect.isfunction(getattr(flops, family.counter))
