"""Rankers with a deep part: common settings, training, and scores that are independent of other candidates."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.rankers import BuildRanker

from nextitem.core.batch import SequenceBatch
from nextitem.core.dataset import Split
from nextitem.core.errors import UserError
from nextitem.core.jagged import Jagged
from nextitem.core.registry import entry
from nextitem.models.rankers.deepfm import DeepFM
from nextitem.models.rankers.ranking_model import RankingModel

NAMES = ["wide-and-deep", "deepfm", "dcn", "din", "multi-behaviour", "sim"]
SMALL = {"width": 4, "hidden": (8,)}


def ranker_class(name: str) -> type[RankingModel]:
    """Return the class of a registered ranker."""
    kind: type[RankingModel] = entry("model", name).load()
    return kind


@pytest.mark.parametrize("name", [*NAMES, "lr"])
def test_a_score_does_not_depend_on_other_candidates_or_requests(
    name: str, ranker: BuildRanker, requests: SequenceBatch
) -> None:
    """Positives and negatives can be scored in separate batches (see the withdrawn results in din.py)."""
    model = ranker(ranker_class(name), **({} if name == "lr" else SMALL))
    together = model.score(requests)["target"]
    candidates = requests.candidates
    assert candidates is not None
    for is_positive in (True, False):
        labels = requests.candidate_labels["click"].values > 0
        mask = labels == is_positive
        rows = candidates.row_ids()[mask]
        lengths = torch.bincount(rows, minlength=requests.num_requests)
        part = replace(
            requests,
            candidates=Jagged.from_lengths(candidates.values[mask], lengths),
            candidate_features={},
            candidate_labels={},
        )
        scores = Jagged.from_padded(model.score(part)["target"], lengths).values
        expected = Jagged.from_padded(together, candidates.lengths).values[mask]
        torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-6)
    alone = torch.cat([model.score(requests.select(torch.tensor([row])))["target"] for row in range(5)])
    torch.testing.assert_close(alone, together[:5], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sharing", ["shared-bottom", "mmoe", "ple"])
@pytest.mark.parametrize("gates", [None, "relu", "sigmoid"])
def test_every_ranker_supports_several_tasks_and_field_gates(
    sharing: str, gates: str | None, ranker: BuildRanker, requests: SequenceBatch
) -> None:
    for name in NAMES:
        model = ranker(
            ranker_class(name), **SMALL, sharing=sharing, tower=(4,), field_gates=gates, tasks=("click", "purchase")
        )
        scores = model.score(requests)
        assert set(scores) == {"click", "purchase"}
        assert not torch.equal(scores["click"], scores["purchase"])
        terms = model.train().training_loss(requests)
        assert set(terms.named) == {"click", "purchase"}
        terms.total.backward()
        without_gradient = [key for key, parameter in model.named_parameters() if parameter.grad is None]
        assert not without_gradient


@pytest.mark.parametrize("name", [*NAMES, "lr"])
def test_the_loss_decreases_in_training(name: str, ranker: BuildRanker, impressions: Split) -> None:
    torch.manual_seed(0)
    model = ranker(ranker_class(name), **({} if name == "lr" else SMALL), l2=0.01).train()
    for module in model.modules():
        if (reset := getattr(module, "reset_parameters", None)) is not None:
            reset()
    examples = model.examples(impressions.train)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    means = []
    for epoch in range(4):
        losses = []
        for batch in examples.batches(64, epoch=epoch, seed=0):
            optimizer.zero_grad()
            loss = model.training_loss(batch).total
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        means.append(sum(losses) / len(losses))
    assert means[-1] < means[0]


def test_the_l2_penalty_has_a_gradient_for_the_codes_of_the_batch_alone(
    ranker: BuildRanker, impressions: Split, requests: SequenceBatch
) -> None:
    model = ranker(DeepFM, **SMALL, l2=0.5)
    examples = model.examples(impressions.train)
    model.train()
    codes = model.fields(requests)
    rows = codes.code_occurrences()[0].unique()
    model.penalty(requests, codes).backward()
    table = model.vectors.table.weight
    expected = torch.zeros_like(table)
    expected[rows] = 0.5 * table.detach()[rows] / model.counts[rows].clamp(min=1)[:, None]
    torch.testing.assert_close(table.grad, expected)
    # An item's own code is counted as often as the item was shown.
    batch = next(iter(examples.batches(10_000, epoch=0, seed=0)))
    assert batch.candidates is not None
    field = model.fields.names.index("item.id")
    start, item = int(model.fields.starts[field]), int(batch.candidates.values[0])
    assert int(model.counts[start + item]) == int((batch.candidates.values == item).sum())


@pytest.mark.parametrize("name", ["din", "multi-behaviour", "sim"])
def test_fields_without_an_item_field_are_refused_and_empty_histories_are_scored(
    name: str, ranker: BuildRanker, requests: SequenceBatch
) -> None:
    with pytest.raises(UserError, match=r"model\.fields names no field of items alone"):
        ranker(ranker_class(name), **SMALL, fields=("user.country", "cross.category"))
    no_items = Jagged.from_rows([[]] * requests.num_requests)
    empty = replace(requests, items=no_items, actions=None, timestamps=None, features={})
    assert bool(ranker(ranker_class(name), **SMALL).score(empty)["target"].isfinite().any(1).all())
