"""Batches of whole users: every request once, users together, about equal work, by time if it is asked for."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextitem.core.batch import SequenceBatch
from nextitem.core.jagged import Jagged, offsets_of
from nextitem.data.examples.user_requests import MS_PER_DAY, UserRequests, batches_of_work


def make(users: list[int], *, days: list[int] | None = None, lengths: list[int] | None = None) -> SequenceBatch:
    """Return requests of these users (0: unknown), whose candidate is their number; by default all on day 0."""
    count = len(users)
    history_lengths = torch.tensor(lengths or [1] * count)
    return SequenceBatch(
        Jagged(torch.ones(int(history_lengths.sum()), dtype=torch.int64), offsets_of(history_lengths)),
        user_ids=torch.tensor(users),
        request_times=torch.tensor(days or [0] * count) * MS_PER_DAY + torch.arange(count),
        candidates=Jagged(torch.arange(1, count + 1), torch.arange(count + 1)),
    )


def numbers(batches: list[SequenceBatch]) -> list[list[int]]:
    """Return the requests of each batch, by number from 1 on."""
    return [batch.candidates.values.tolist() for batch in batches if batch.candidates is not None]


@settings(max_examples=60, deadline=None)
@given(
    users=st.lists(st.integers(0, 4), min_size=1, max_size=30),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 9),
)
def test_each_request_is_in_one_batch_and_users_stay_together(users: list[int], batch_size: int, seed: int) -> None:
    stream = UserRequests(make(users))
    batches = numbers(list(stream.batches(batch_size, epoch=1, seed=seed)))
    assert len(batches) == stream.num_batches(batch_size)
    assert all(batches)
    assert sorted(chain.from_iterable(batches)) == list(range(1, len(users) + 1))
    for user in set(users) - {0}:
        own = [number + 1 for number, each in enumerate(users) if each == user]
        num_batches = sum(bool(set(own) & set(batch)) for batch in batches)
        assert num_batches <= -(-len(own) // batch_size)
    again = numbers(list(stream.batches(batch_size, epoch=1, seed=seed, start=1)))
    assert again == batches[1:]


def test_epochs_differ_and_equal_arguments_yield_equal_batches() -> None:
    stream = UserRequests(make([1, 1, 2, 2, 3, 3, 4, 4, 5, 6]))
    first, second = (numbers(list(stream.batches(2, epoch=epoch, seed=0))) for epoch in (1, 2))
    assert first != second
    assert first == numbers(list(stream.batches(2, epoch=1, seed=0)))


def test_by_time_no_batch_has_a_request_before_those_of_an_earlier_day() -> None:
    days = [5, 1, 3, 1, 5, 2, 3]
    stream = UserRequests(make([1, 1, 1, 2, 2, 3, 3], days=days), order="time")
    order = list(chain.from_iterable(numbers(list(stream.batches(2, epoch=1, seed=0)))))
    assert [days[number - 1] for number in order] == sorted(days)
    assert numbers(list(stream.batches(2, epoch=9, seed=4))) == numbers(list(stream.batches(2, epoch=1, seed=0)))


def test_batches_have_about_equal_work() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 400, 300).tolist()
    stream = UserRequests(make(list(range(1, 301)), lengths=lengths))
    work = [len(batch.items.values) + 2 * batch.num_requests for batch in stream.batches(20, epoch=1, seed=0)]
    assert max(work) < 1.25 * sum(work) / len(work)
    assert min(work) > 0.75 * sum(work) / len(work)


def test_a_history_counts_once_a_period_with_the_tokens_that_are_read() -> None:
    """Users of one request and of five days of requests: batches have about equal numbers of tokens."""
    rng = np.random.default_rng(0)
    users, days, lengths = [], [], []
    for user in range(1, 201):
        length = int(rng.integers(1, 400))
        for day in range(5 if user % 4 == 0 else 1):
            for _ in range(3):
                users.append(user)
                days.append(day)
                lengths.append(length)
    requests = make(users, days=days, lengths=lengths)
    tokens = requests.items.lengths.clamp(max=100)
    stream = UserRequests(requests, lengths=tokens, period_ms=MS_PER_DAY)

    def num_tokens(batch: SequenceBatch) -> int:
        assert batch.user_ids is not None
        assert batch.request_times is not None
        keys = torch.stack([batch.user_ids, batch.request_times // MS_PER_DAY], 1)
        streams, rows = torch.unique(keys, dim=0, return_inverse=True)
        first = torch.zeros(len(streams), dtype=torch.int64)
        return int(first.scatter(0, rows, batch.items.lengths.clamp(max=100)).sum()) + batch.num_requests

    batches = list(stream.batches(60, epoch=1, seed=0))
    work = [num_tokens(batch) for batch in batches]
    assert max(work) < 1.25 * sum(work) / len(work)
    assert min(work) > 0.75 * sum(work) / len(work)
    by_events = [num_tokens(batch) for batch in UserRequests(requests).batches(60, epoch=1, seed=0)]
    assert max(by_events) / min(by_events) > 1.5 * max(work) / min(work)


@settings(max_examples=200, deadline=None)
@given(work=st.lists(st.integers(1, 1000), min_size=1, max_size=40), share=st.floats(0, 1))
def test_no_batch_is_empty(work: list[int], share: float) -> None:
    count = max(1, round(share * len(work)))
    batches = batches_of_work(np.array(work), count)
    assert len(batches) == count
    assert all(len(batch) for batch in batches)
    assert np.concatenate(batches).tolist() == list(range(len(work)))


def test_candidates_are_needed() -> None:
    with pytest.raises(AssertionError, match="candidates"):
        UserRequests(SequenceBatch(Jagged.from_rows([[1]])))
