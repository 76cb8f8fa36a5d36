"""What the rankers with a deep part share: options, and that a candidate's score is its own."""

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


def kind_of(name: str) -> type[RankingModel]:
    kind: type[RankingModel] = entry("model", name).load()
    return kind


@pytest.mark.parametrize("name", [*NAMES, "lr"])
def test_a_score_does_not_depend_on_what_else_is_scored(
    name: str, ranker: BuildRanker, requests: SequenceBatch
) -> None:
    """Neither on other candidates nor on other requests: positives and negatives may come apart (see din.py)."""
    model = ranker(kind_of(name), **({} if name == "lr" else SMALL))
    together = model.score(requests)["target"]
    given = requests.candidates
    assert given is not None
    for positive in (True, False):
        labels = requests.candidate_labels["click"].values > 0
        kept = labels == positive
        rows = given.row_ids()[kept]
        lengths = torch.bincount(rows, minlength=requests.num_requests)
        part = replace(
            requests,
            candidates=Jagged.from_lengths(given.values[kept], lengths),
            candidate_features={},
            candidate_labels={},
        )
        found = Jagged.from_padded(model.score(part)["target"], lengths).values
        expected = Jagged.from_padded(together, given.lengths).values[kept]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    alone = torch.cat([model.score(requests.select(torch.tensor([row])))["target"] for row in range(5)])
    torch.testing.assert_close(alone, together[:5], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sharing", ["shared-bottom", "mmoe", "ple"])
@pytest.mark.parametrize("gates", [None, "relu", "sigmoid"])
def test_tasks_and_field_gates_are_options_of_all(
    sharing: str, gates: str | None, ranker: BuildRanker, requests: SequenceBatch
) -> None:
    for name in NAMES:
        model = ranker(
            kind_of(name), **SMALL, sharing=sharing, tower=(4,), field_gates=gates, tasks=("click", "purchase")
        )
        scores = model.score(requests)
        assert set(scores) == {"click", "purchase"}
        assert not torch.equal(scores["click"], scores["purchase"])
        terms = model.train().training_loss(requests)
        assert set(terms.named) == {"click", "purchase"}
        terms.total.backward()
        lacking = [key for key, parameter in model.named_parameters() if parameter.grad is None]
        assert not lacking


@pytest.mark.parametrize("name", [*NAMES, "lr"])
def test_the_loss_falls(name: str, ranker: BuildRanker, shown: Split) -> None:
    torch.manual_seed(0)
    model = ranker(kind_of(name), **({} if name == "lr" else SMALL), l2=0.01).train()
    for module in model.modules():
        if (reset := getattr(module, "reset_parameters", None)) is not None:
            reset()
    examples = model.examples(shown.train)
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


def test_l2_pulls_what_a_batch_reads(ranker: BuildRanker, shown: Split, requests: SequenceBatch) -> None:
    model = ranker(DeepFM, **SMALL, l2=0.5)
    examples = model.examples(shown.train)
    model.train()
    codes = model.fields(requests)
    rows = codes.looked_up()[0].unique()
    model.penalty(requests, codes).backward()
    table = model.vectors.table.weight
    expected = torch.zeros_like(table)
    expected[rows] = 0.5 * table.detach()[rows] / model.counts[rows].clamp(min=1)[:, None]
    torch.testing.assert_close(table.grad, expected)
    # An item's own code is counted as often as the item was shown.
    batch = next(iter(examples.batches(10_000, epoch=0, seed=0)))
    assert batch.candidates is not None
    place = model.fields.names.index("item.id")
    start, item = int(model.fields.starts[place]), int(batch.candidates.values[0])
    assert int(model.counts[start + item]) == int((batch.candidates.values == item).sum())


@pytest.mark.parametrize("name", ["din", "multi-behaviour", "sim"])
def test_a_history_without_anything_to_read_is_named(name: str, ranker: BuildRanker, requests: SequenceBatch) -> None:
    with pytest.raises(UserError, match=r"model\.fields names nothing of items alone"):
        ranker(kind_of(name), **SMALL, fields=("user.country", "cross.category"))
    nothing = Jagged.from_rows([[]] * requests.num_requests)
    empty = replace(requests, items=nothing, actions=None, timestamps=None, features={})
    assert bool(ranker(kind_of(name), **SMALL).score(empty)["target"].isfinite().any(1).all())
