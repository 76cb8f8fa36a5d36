"""SIM: the searches equal filters and full attention; histories of ten thousand events."""

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
    """Return the vectors of the candidates, [P, X]."""
    assert batch.candidates is not None
    return model.vectors.of_items(batch.candidates.values)


def full_attention(model: SIM, batch: SequenceBatch, mask: torch.Tensor) -> torch.Tensor:
    """Return the attention of the exact search unit over all events, of which candidate p reads `mask [P, T]`."""
    keys = torch.cat([model.vectors.of_items(batch.items.values), model.gaps(model._gaps(batch))], 1)
    attention: torch.Tensor = model.exact(queries(model, batch), keys.expand(len(mask), *keys.shape), mask)
    return attention


def history_mask(batch: SequenceBatch) -> torch.Tensor:
    """Return which events are in the history of the request of each candidate, bool [P, T]."""
    assert batch.candidates is not None
    return batch.candidates.row_ids()[:, None] == batch.items.row_ids()


def test_a_soft_search_that_selects_all_events_equals_full_attention(
    ranker: BuildRanker, requests: SequenceBatch
) -> None:
    longest = int(requests.items.lengths.max())
    for num_events in (longest, 10_000):
        model = ranker(SIM, **SMALL, search="soft", max_search_results=num_events)
        interest = model.long_interest(requests, queries(model, requests))
        torch.testing.assert_close(interest, full_attention(model, requests, history_mask(requests)))
    selective = ranker(SIM, **SMALL, search="soft", max_search_results=3)
    assert not torch.allclose(selective.long_interest(requests, queries(selective, requests)), interest)


def test_the_hard_search_attends_to_the_events_of_the_candidates_category(
    ranker: BuildRanker, requests: SequenceBatch
) -> None:
    model = ranker(SIM, **SMALL, category="department", max_search_results=10_000)
    assert requests.candidates is not None
    column = model.catalog.table["department"].to_list()
    event_values = [column[item - 1] for item in requests.items.values.tolist()]
    candidate_values = [column[item - 1] for item in requests.candidates.values.tolist()]
    is_same = torch.tensor([[a == b for a in event_values] for b in candidate_values]) & history_mask(requests)
    assert 0 < int(is_same.sum()) < int(history_mask(requests).sum())
    interest = model.long_interest(requests, queries(model, requests))
    torch.testing.assert_close(interest, full_attention(model, requests, is_same))
    latest = ranker(SIM, **SMALL, category="department", max_search_results=2).search(
        requests, queries(model, requests)
    )
    for p, row in enumerate(is_same):
        assert latest.places[p][latest.real[p]].tolist() == row.nonzero()[:, 0].tolist()[-2:]


def test_the_hard_search_uses_the_category_with_the_most_values_unless_one_is_named(ranker: BuildRanker) -> None:
    table = ranker(SIM, **SMALL).catalog.table
    assert ranker(SIM, **SMALL).category.size == 1 + table["category"].n_unique()
    with pytest.raises(UserError, match=r"no categorical feature 'colour'.*department"):
        ranker(SIM, **SMALL, category="colour")
    with pytest.raises(UserError, match="heads = 7 does not divide"):
        ranker(SIM, **SMALL, heads=7)


def test_the_auxiliary_task_weighs_events_by_inner_products(ranker: BuildRanker, requests: SequenceBatch) -> None:
    model = ranker(SIM, **SMALL, search="soft", search_loss=0.5).train()
    codes = model.fields(requests)
    assert requests.candidates is not None
    candidate_vectors, sums = queries(model, requests), []
    for p, row in enumerate(codes.rows.tolist()):
        events = model.vectors.of_items(requests.items.select(torch.tensor([row])).values)
        weights = model.of_event(events) @ model.of_candidate(candidate_vectors[p])
        sums.append((weights[:, None] * events).sum(0) / max(1, len(events)))
    logits = model.auxiliary(torch.cat([torch.stack(sums), candidate_vectors], 1))
    expected = 0.5 * model.cross_entropy(requests, logits).total
    torch.testing.assert_close(model.penalty(requests, codes), expected)
    model.penalty(requests, codes).backward()
    assert model.of_event.weight.grad is not None
    assert model.of_event.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("search", ["hard", "soft"])
def test_histories_of_ten_thousand_events_are_searched(search: str, ranker: BuildRanker) -> None:
    model = ranker(SIM, **SMALL, search=search, max_search_results=20, fields=("item.id", "item.category"))
    generator = torch.Generator().manual_seed(0)
    items = Jagged.from_rows([torch.randint(1, 151, (10_000,), generator=generator).tolist()])
    times = torch.arange(10_000) * 3_600_000
    batch = SequenceBatch(
        items,
        timestamps=items.with_values(times),
        request_times=torch.tensor([10_000 * 3_600_000]),
        candidates=Jagged.from_rows([list(range(1, 101))]),
    )
    scores = model.score(batch)["target"]
    assert bool(scores.isfinite().all())
    earliest = model.search(batch, queries(model, batch)).places.min()
    assert search == "hard" or int(earliest) < 5000  # the soft search reaches far back
