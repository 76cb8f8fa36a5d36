"""SIM: its searches against filters and full attention; histories of ten thousand events."""

from __future__ import annotations

import pytest
import torch
from support.rankers import BuildRanker

from nextitem.core.batch import SequenceBatch
from nextitem.core.errors import UserError
from nextitem.core.jagged import Jagged
from nextitem.models.rankers.sim import SIM

SMALL = {"width": 2, "hidden": (5,), "unit": (6, 3), "time_width": 3, "search_width": 4}


def queries(model: SIM, batch: SequenceBatch) -> torch.Tensor:
    assert batch.candidates is not None
    return model.vectors.of_items(batch.candidates.values)


def full_attention(model: SIM, batch: SequenceBatch, kept: torch.Tensor) -> torch.Tensor:
    """The exact search unit over all events, of which candidate p sees `kept [P, T]`."""
    keys = torch.cat([model.vectors.of_items(batch.items.values), model.gaps(model._gaps(batch))], 1)
    attention: torch.Tensor = model.exact(queries(model, batch), keys.expand(len(kept), *keys.shape), kept)
    return attention


def own_events(batch: SequenceBatch) -> torch.Tensor:
    assert batch.candidates is not None
    return batch.candidates.row_ids()[:, None] == batch.items.row_ids()


def test_the_soft_search_for_all_events_is_full_attention(ranker: BuildRanker, requests: SequenceBatch) -> None:
    longest = int(requests.items.lengths.max())
    for found in (longest, 10_000):
        model = ranker(SIM, **SMALL, search="soft", found=found)
        interest = model.long_interest(requests, queries(model, requests))
        torch.testing.assert_close(interest, full_attention(model, requests, own_events(requests)))
    few = ranker(SIM, **SMALL, search="soft", found=3)
    assert not torch.allclose(few.long_interest(requests, queries(few, requests)), interest)


def test_the_hard_search_is_attention_to_the_events_of_the_category(
    ranker: BuildRanker, requests: SequenceBatch
) -> None:
    model = ranker(SIM, **SMALL, category="department", found=10_000)
    assert requests.candidates is not None
    column = model.catalog.table["department"].to_list()
    held = [column[item - 1] for item in requests.items.values.tolist()]
    wanted = [column[item - 1] for item in requests.candidates.values.tolist()]
    same = torch.tensor([[a == b for a in held] for b in wanted]) & own_events(requests)
    assert 0 < int(same.sum()) < int(own_events(requests).sum())
    interest = model.long_interest(requests, queries(model, requests))
    torch.testing.assert_close(interest, full_attention(model, requests, same))
    latest = ranker(SIM, **SMALL, category="department", found=2).search(requests, queries(model, requests))
    for p, row in enumerate(same):
        assert latest.places[p][latest.real[p]].tolist() == row.nonzero()[:, 0].tolist()[-2:]


def test_the_category_with_the_most_values_is_taken_unless_named(ranker: BuildRanker) -> None:
    table = ranker(SIM, **SMALL).catalog.table
    assert ranker(SIM, **SMALL).category.size == 1 + table["category"].n_unique()
    with pytest.raises(UserError, match=r"no categorical feature 'colour'.*department"):
        ranker(SIM, **SMALL, category="colour")
    with pytest.raises(UserError, match="heads = 7 does not divide"):
        ranker(SIM, **SMALL, heads=7)


def test_the_auxiliary_task_weighs_events_by_their_inner_products(ranker: BuildRanker, requests: SequenceBatch) -> None:
    model = ranker(SIM, **SMALL, search="soft", search_loss=0.5).train()
    codes = model.fields(requests)
    assert requests.candidates is not None
    asked, sums = queries(model, requests), []
    for p, row in enumerate(codes.rows.tolist()):
        events = model.vectors.of_items(requests.items.select(torch.tensor([row])).values)
        weights = model.of_event(events) @ model.of_candidate(asked[p])
        sums.append((weights[:, None] * events).sum(0) / max(1, len(events)))
    logits = model.auxiliary(torch.cat([torch.stack(sums), asked], 1))
    expected = 0.5 * model.cross_entropy(requests, logits).total
    torch.testing.assert_close(model.penalty(requests, codes), expected)
    model.penalty(requests, codes).backward()
    assert model.of_event.weight.grad is not None
    assert model.of_event.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("search", ["hard", "soft"])
def test_ten_thousand_events(search: str, ranker: BuildRanker) -> None:
    model = ranker(SIM, **SMALL, search=search, found=20, fields=("item.id", "item.category"))
    draw = torch.Generator().manual_seed(0)
    items = Jagged.from_rows([torch.randint(1, 151, (10_000,), generator=draw).tolist()])
    times = torch.arange(10_000) * 3_600_000
    batch = SequenceBatch(
        items,
        timestamps=items.with_values(times),
        request_times=torch.tensor([10_000 * 3_600_000]),
        candidates=Jagged.from_rows([list(range(1, 101))]),
    )
    scores = model.score(batch)["target"]
    assert bool(scores.isfinite().all())
    older = model.search(batch, queries(model, batch)).places.min()
    assert search == "hard" or int(older) < 5000  # the soft search reaches far back
