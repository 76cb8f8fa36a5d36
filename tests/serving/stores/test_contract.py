"""The contract of event stores, on every kind of store."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.reference_store import ReferenceStore
from support.store_places import Place, all_events, event, follow, ids

from nextitem.core.errors import UserError
from nextitem.serving.stores import AppendOutcome, StoreConfig, StoredEvent, StoreUnavailable

TEXTS = [
    "a",
    "A",
    "ü 漢字 😀",
    "'; DROP TABLE x; --",
    '"\\',
    "line\nbreak",
    "%s {table} :1 ?",
    "user:a",
    "\x01",
    "\u2028",
]
USERS = st.sampled_from(TEXTS[:5])
TIMES = st.integers(-3, 6) | st.sampled_from([1_732_000_000_123, 2**53 - 1, -(2**53) + 1])
EVENTS = st.builds(
    StoredEvent,
    event_id=st.sampled_from([f"{text}{number}" for text in TEXTS for number in range(3)]),
    user_id=USERS,
    item_id=st.sampled_from(TEXTS),
    action=st.sampled_from(["clicked", "ü", None]),
    timestamp_ms=TIMES,
    request_id=st.sampled_from([*TEXTS, None]),
)
STEPS = st.lists(
    st.tuples(st.just("append"), st.lists(EVENTS, max_size=8))
    | st.tuples(st.just("delete_user"), USERS)
    | st.tuples(st.just("prune"), TIMES)
    | st.tuples(st.just("histories"), st.integers(1, 9)),
    max_size=12,
)


@given(steps=STEPS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_store_does_what_the_reference_does(place: Place, steps: list[tuple[str, Any]]) -> None:
    reference = ReferenceStore(StoreConfig(max_events_per_user=5))
    if not place.stores:
        place.open(max_events_per_user=5)
    store = place.stores[0]
    store.prune(2**53)  # what the example before has left
    begin = store.events_after(0, limit=1).cursor
    users = [*TEXTS[:5], "nobody"]
    for verb, argument in [*steps, ("histories", 3)]:
        if verb == "histories":
            expected: Any = reference.histories(users, limit=argument)
            assert store.histories(users, limit=argument) == expected
        else:
            assert getattr(store, verb)(argument) == getattr(reference, verb)(argument)
        assert store.events_after(begin, limit=10**6).events == reference.events_after(0, limit=10**6).events
    assert all_events(store, limit=2) == all_events(reference)


def test_an_event_id_is_stored_once(place: Place) -> None:
    store = place.open()
    first = event("e1")
    assert store.append([first, first._replace(item_id="stove"), event("e2")]) == AppendOutcome(2, 1)
    assert store.append([first._replace(user_id="bob"), event("e3")]) == AppendOutcome(1, 1)
    assert store.append([]) == AppendOutcome(0, 0)
    assert store.histories(["ada", "bob"], limit=9) == {"ada": [first, event("e2"), event("e3")], "bob": []}
    assert store.delete_user("ada") == 3
    assert store.append([first]) == AppendOutcome(1, 0)  # the removed user left no id behind


def test_a_history_has_the_latest_events_in_order_of_time_then_arrival(place: Place) -> None:
    store = place.open()
    times = {"e1": 50, "e2": 10, "e3": 50, "e4": 70, "e5": 50, "e6": 9}
    for name, time in times.items():
        store.append([event(name, timestamp_ms=time)])
    assert ids(store.histories(["ada"], limit=9)["ada"]) == ["e6", "e2", "e1", "e3", "e5", "e4"]
    assert ids(store.histories(["ada"], limit=3)["ada"]) == ["e3", "e5", "e4"]
    assert ids(all_events(store)) == list(times)


def test_max_events_per_user_bounds_a_history_but_not_the_log(place: Place) -> None:
    store = place.open(max_events_per_user=3)
    store.append(event(f"e{number}", timestamp_ms=-number) for number in range(7))
    assert ids(store.histories(["ada"], limit=100)["ada"]) == ["e2", "e1", "e0"]
    assert len(all_events(store)) == 7
    assert store.delete_user("ada") == 7
    assert all_events(store) == []


def test_pages_follow_each_other(place: Place) -> None:
    store = place.open()
    assert store.events_after(0, limit=5) == ([], 0)
    store.append(event(f"e{number}", user_id=f"u{number % 3}") for number in range(10))
    first = store.events_after(limit=4)
    assert ids(first.events) == ["e0", "e1", "e2", "e3"]
    store.delete_user("u0")
    second = store.events_after(first.cursor, limit=4)
    assert ids(second.events) == ["e4", "e5", "e7", "e8"]
    assert store.events_after(second.cursor, limit=4) == ([], second.cursor)
    store.delete_user("u1")
    store.delete_user("u2")
    store.append([event("e10")])  # a position is never used again, even if the last events were removed
    assert ids(store.events_after(second.cursor, limit=4).events) == ["e10"]


def test_prune_removes_what_is_before_a_time(place: Place) -> None:
    store = place.open(max_events_per_user=2)
    store.append(event(f"e{number}", timestamp_ms=100 - number) for number in range(5))
    assert store.prune(98) == 2
    assert ids(all_events(store)) == ["e0", "e1", "e2"]
    assert store.prune(98) == 0
    assert store.append([event("e4")]).num_new == 1  # its id was removed too
    assert store.prune(10**30) == 4


def test_namespaces_see_nothing_of_each_other(place: Place) -> None:
    if place.kind == "memory":
        pytest.skip("a store in memory has one namespace")
    stores = [place.open(f"{place.namespace}{end}") for end in ("", "_b", "_events")]
    for number, store in enumerate(stores):
        assert store.append([event("e1", timestamp_ms=number)]).num_new == 1
    assert stores[0].delete_user("ada") == 1
    assert stores[1].prune(10**9) == 1
    assert all_events(stores[0]) == all_events(stores[1]) == []
    assert stores[2].histories(["ada"], limit=1)["ada"] == [event("e1", timestamp_ms=2)]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("event_id", ""),
        ("user_id", "x" * 513),
        ("item_id", "nul\0"),
        ("action", "\ud800"),
        ("request_id", ""),
        ("timestamp_ms", 2**53),
    ],
)
def test_an_event_that_a_store_cannot_keep_is_refused_with_its_batch(place: Place, field: str, value: Any) -> None:
    store = place.open()
    with pytest.raises(UserError, match=rf"event 1: {field.removesuffix('_ms')}"):
        store.append([event("e1"), event("e2")._replace(**{field: value})])
    assert all_events(store) == []
    assert store.histories(["x" * 513, "nul\0", ""], limit=1) == {"x" * 513: [], "nul\0": [], "": []}
    assert store.delete_user("nul\0") == 0


def test_the_longest_ids_are_stored(place: Place) -> None:
    generator = random.Random(0)  # without repetitions, which PostgreSQL would compress

    def text() -> str:
        return "".join(chr(generator.randrange(0x10000, 0x20000)) for _ in range(512))

    longest = StoredEvent(text(), text(), text(), text(), 2**53 - 1, text())
    store = place.open()
    store.append([longest])
    assert store.histories([longest.user_id], limit=1)[longest.user_id] == [longest]
    assert store.append([longest]).num_duplicates == 1


def test_wrong_limits_are_errors(place: Place) -> None:
    store = place.open()
    with pytest.raises(ValueError, match="limit is 0"):
        store.histories(["ada"], limit=0)
    with pytest.raises(ValueError, match="limit"):
        store.events_after(0, limit=0)
    with pytest.raises(ValueError, match="cursor"):
        store.events_after(-1, limit=1)


def test_a_closed_store_is_unavailable(place: Place) -> None:
    store = place.open()
    store.append([event("e1")])
    store.close()
    store.close()
    for call in (
        lambda: store.append([event("e2")]),
        lambda: store.histories(["ada"], limit=1),
        lambda: store.events_after(0, limit=1),
        lambda: store.delete_user("ada"),
        lambda: store.prune(1),
        store.check,
    ):
        with pytest.raises(StoreUnavailable, match="closed"):
            call()


def test_threads_lose_nothing_and_readers_skip_nothing(place: Place) -> None:
    store = place.open(timeout=30)
    num_writers, num_events = 6, 25
    is_over = threading.Event()

    def write(writer: int) -> int:
        outcomes = [
            store.append([event(f"{writer}-{n}", f"u{writer}"), event(f"shared-{n}")]) for n in range(num_events)
        ]
        return sum(outcome.num_new for outcome in outcomes)

    with ThreadPoolExecutor(num_writers + 2) as threads:
        readers = [threads.submit(follow, store, limit, is_over.is_set) for limit in (1, 50)]
        num_new = sum(threads.map(write, range(num_writers)))
        is_over.set()
    assert num_new == (num_writers + 1) * num_events
    for reader in readers:
        assert len(reader.result()) == num_new
        assert len(set(ids(reader.result()))) == num_new
    histories = store.histories([f"u{writer}" for writer in range(num_writers)], limit=1000)
    assert all(len(history) == num_events for history in histories.values())


def test_two_processes_and_a_thread_write_and_an_event_counts_once(shared_place: Place) -> None:
    store = shared_place.open(timeout=30)
    processes = [shared_place.start_process("a", 30) for _ in range(2)]  # both send the same events
    with ThreadPoolExecutor(1) as threads:
        writer = threads.submit(lambda: [store.append([event(f"b-{number}")]) for number in range(30)])
        events = follow(store, 7, is_over=lambda: writer.done() and all(each.poll() is not None for each in processes))
    assert len(writer.result()) == 30
    for process in processes:
        output, _ = process.communicate()
        assert output.split() == [f"a-{number}" for number in range(30)]
    assert sorted(ids(events)) == sorted(f"{prefix}-{number}" for prefix in "ab" for number in range(30))
