"""The state cache: answers are those without it, whatever happens to the histories, and its memory is bounded."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache

import pytest
import torch
from support.small_models import identified, small_model

from nextitem.core.batch import SequenceBatch
from nextitem.core.dataset import Dataset
from nextitem.core.history_state import HistoryState
from nextitem.core.jagged import Jagged
from nextitem.core.recommender import Recommender
from nextitem.core.registry import MODELS
from nextitem.core.roles import Incremental
from nextitem.data.readers import dataset_from_frames
from nextitem.models.sasrec import SASRec
from nextitem.pipeline.recommend import RecommendationList
from nextitem.serving.engine import Engine
from nextitem.serving.requests import HistoryEvent, ServedRequest
from nextitem.serving.states import StateCache
from nextitem.testing.rich_log import SETTINGS, rich_frames

WINDOW = 7
START = 1_800_000_000_000
HOUR_MS = 3_600_000
CASES: list[tuple[str, dict[str, object]]] = [
    ("sasrec", {"positions": "from-last"}),
    ("sasrec", {"positions": "from-first", "layers": 2}),
    ("sasrec", {"positions": "from-first", "window_step": 3}),
    ("gru4rec", {}),
    ("gru4rec", {"window_step": 3}),
    ("hstu", {}),
    ("hstu", {"window_step": 3, "actions": "interleaved"}),
    ("depth-decoder", {}),
    ("depth-decoder", {"window_step": 3}),
    ("onerec", {}),
    ("onerec", {"window_step": 3, "decodes_first": True}),
    ("onerec-tr", {"short_length": 3, "window_step": 2}),
    ("hstu-ranking", {"window_step": 3}),
    ("hstu-ranking", {"actions": "interleaved"}),
    ("mtgr", {"window_step": 3, "period_hours": 1000.0}),
]


@cache
def data() -> Dataset:
    return identified(dataset_from_frames(rich_frames(), SETTINGS, name="rich"))


def model_of(name: str, **settings: object) -> Recommender:
    return small_model(name, data(), max_history_length=WINDOW, **settings)


def extensible() -> SASRec:
    """Return a model whose states can be extended."""
    model = model_of("sasrec", positions="from-first")
    assert isinstance(model, SASRec)
    return model


def batch_of(*histories: list[int]) -> SequenceBatch:
    return SequenceBatch(Jagged.from_rows(histories))


def read(cache: StateCache, **histories: list[int]) -> HistoryState:
    state = cache.read(batch_of(*histories.values()), list(histories))
    assert state is not None
    return state


def test_the_cases_are_all_models_that_can_extend_a_state() -> None:
    assert {name for name, _ in CASES} == {
        name for name, entry in MODELS.items() if issubclass(entry.load(), Incremental)
    }


Event = tuple[int, int, int]  # item, action, time


def changed(events: list[Event], rng: random.Random, turn: int) -> list[Event]:
    """Return the events of a user after something has happened: most often nothing, or a new event."""
    kind = rng.choice(["nothing", "new", "new", "new", "late", "removed", "other action", "slides"])
    if kind == "new":
        return [*events, (rng.randint(1, 12), rng.randint(0, 2), START + turn * HOUR_MS)]
    if kind == "nothing" or not events:
        return events
    place = rng.randrange(len(events))
    item, action, time = events[place]
    if kind == "late":
        return [*events[:place], (rng.randint(1, 12), action, time - 1), *events[place:]]
    if kind == "removed":
        return [*events[:place], *events[place + 1 :]]
    if kind == "other action":
        return [*events[:place], (item, (action + 1) % 3, time), *events[place + 1 :]]
    return events[-4:]


def requests_of(histories: list[list[Event]], time: int) -> SequenceBatch:
    items, actions, times = (Jagged.from_rows([[event[n] for event in part] for part in histories]) for n in range(3))
    now = torch.full((len(histories),), time)
    return SequenceBatch(items, actions=actions, timestamps=times, request_times=now)


@pytest.mark.parametrize("num_users", [20, 3], ids=["all fit", "most are evicted"])
@pytest.mark.parametrize(("name", "settings"), CASES, ids=[f"{name} {settings}" for name, settings in CASES])
def test_answers_are_those_without_the_cache(name: str, settings: dict[str, object], num_users: int) -> None:
    model, rng = model_of(name, **settings), random.Random(1)
    states = StateCache(model, max_bytes=2**24, min_events=1)
    states.read(requests_of([[(1, 1, START)] * WINDOW], START), ["a"])
    can_extend = settings.get("positions") != "from-last"
    assert (states.num_bytes > 0) == can_extend
    states = StateCache(model, max_bytes=(num_users + 1) * max(1, states.num_bytes), min_events=1)
    users = [*"abcdefgh"]
    events: dict[str, list[Event]] = {user: [] for user in users}
    for turn in range(12):
        for user in users:
            events[user] = changed(events[user], rng, turn)
        if turn == 6:
            states.forget("a")
        askers = [rng.choice([*users, None]) for _ in range(6)]
        batch = requests_of([[(3, 1, START)] if user is None else events[user] for user in askers], START + 10**9)
        answer = model.recommend(replace(batch, state=states.read(batch, askers)), 5)
        expected = model.recommend(batch, 5)
        assert answer.item_ids.equal(expected.item_ids)
        torch.testing.assert_close(answer.scores, expected.scores, rtol=1e-4, atol=1e-4)
        assert states.num_bytes <= states._max_bytes
    assert (states.hits > 0) == can_extend
    assert (states.evictions > 0) == (can_extend and num_users == 3)


@pytest.mark.parametrize("name", ["sasrec", "hstu", "depth-decoder"])
def test_an_engine_answers_the_same_with_and_without_states(name: str) -> None:
    positions = {"positions": "from-first"} if name == "sasrec" else {}
    model = small_model(name, data(), max_history_length=20, **positions)
    engines = Engine(model, data(), state_bytes=2**20), Engine(model, data())
    states = engines[0].states = StateCache(model, max_bytes=2**20, min_events=1)
    first, second, *_ = data().users.ids.external.to_list()
    new = [HistoryEvent(f"i{n:02d}", "view", START + n * HOUR_MS) for n in (5, 7, 2)]
    requests = [
        ServedRequest(first, k=5),
        ServedRequest("stranger", k=5),
        ServedRequest(second, k=3),
        ServedRequest(second, candidates=("i01", "i02")),
        ServedRequest(first, k=5, history=(HistoryEvent("i03"),)),
    ]
    for stored in ({}, {"stranger": new[:1]}, {"stranger": new[:2], second: new[1:2]}, {"stranger": new[1:]}):
        answers, expected = (engine.recommend(requests, stored) for engine in engines)
        for answer, right in zip(answers, expected, strict=True):
            assert isinstance(answer, RecommendationList), answer
            assert isinstance(right, RecommendationList)
            assert answer.item_ids == right.item_ids
            assert answer.scores == pytest.approx(right.scores, rel=1e-4, abs=1e-4)
    assert states.hits >= 8  # the events of the data set were read once
    assert len(states) == 3
    engines[0].forget("stranger")
    assert len(states) == 2


def test_a_model_that_reads_histories_as_a_whole_has_no_states() -> None:
    engine = Engine(small_model("item-cf", data()), data(), state_bytes=2**20)
    assert engine.states is None
    engine.forget("ada")


def test_only_new_events_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    model = extensible()
    cache, lengths = StateCache(model, max_bytes=2**20, min_events=1), []
    embed = model._embed

    def counting(items_BL: torch.Tensor) -> torch.Tensor:
        lengths.append(int((items_BL > 0).sum()))
        return embed(items_BL)

    monkeypatch.setattr(model, "_embed", counting)
    read(cache, ada=[1, 2, 3, 4], bob=[5, 6])
    assert lengths == [6]
    read(cache, ada=[1, 2, 3, 4, 5], bob=[5, 6])
    assert lengths == [6, 1]
    read(cache, bob=[5, 6, 7, 8], eve=[1, 2])
    assert lengths[2:] in ([2, 2],)
    assert (cache.hits, cache.misses) == (3, 3)
    assert len(cache) == 3


@pytest.mark.parametrize("history", [[1, 9, 2, 3, 4], [1, 2, 4], [1, 2, 4, 4, 5], [2, 3, 4, 5]])
def test_a_history_that_does_not_go_on_is_read_from_the_start(history: list[int]) -> None:
    model = extensible()
    cache = StateCache(model, max_bytes=2**20, min_events=1)
    read(cache, ada=[1, 2, 3, 4])
    state = read(cache, ada=history)
    torch.testing.assert_close(state.user_vectors, model.encode_history(batch_of(history)).user_vectors)
    assert (cache.hits, cache.misses) == (0, 2)


def test_columns_of_events_count_even_if_the_items_are_the_same() -> None:
    cache = StateCache(extensible(), max_bytes=2**20, min_events=1)
    items = Jagged.from_rows([[1, 2, 3]])

    def with_actions(*actions: int) -> SequenceBatch:
        return SequenceBatch(items, actions=items.with_values(torch.tensor(actions)))

    for batch in (with_actions(1, 1, 2), with_actions(1, 2, 2), SequenceBatch(items), SequenceBatch(items)):
        cache.read(batch, ["ada"])
    assert (cache.hits, cache.misses) == (1, 3)


def test_a_window_that_moves_with_each_event_is_not_stored() -> None:
    model = extensible()
    cache = StateCache(model, max_bytes=2**20, min_events=1)
    history = list(range(1, 12))
    for stop in range(4, 10):
        read(cache, ada=history[:stop])
    assert (cache.hits, cache.misses) == (3, 3)  # 4 is new; 5, 6 and 7 events fit the window; 8 and 9 do not
    assert cache.read(batch_of(history[:8]), ["bob"]) is None  # the window of 9 begins elsewhere
    assert cache.read(batch_of(history[:8], history[:5]), ["bob", "eve"]) is not None
    assert len(cache) == 2  # ada and eve
    stepping = model_of("sasrec", positions="from-first", window_step=3)
    cache = StateCache(stepping, max_bytes=2**20, min_events=1)
    for stop in range(4, 12):
        cache.read(batch_of(history[:stop]), ["ada"])
    assert (cache.hits, cache.misses) == (5, 3)  # 4 is new, and the window moves with the events 8 and 11


def test_the_least_recent_user_is_evicted_first() -> None:
    model = extensible()
    cache = StateCache(model, max_bytes=2**20, min_events=1)
    read(cache, ada=[1, 2])
    row = cache.num_bytes
    cache = StateCache(model, max_bytes=3 * row, min_events=1)  # one row is for unread histories
    read(cache, ada=[1, 2])
    read(cache, bob=[3, 4])
    read(cache, ada=[1, 2])
    read(cache, eve=[5])
    assert (len(cache), cache.evictions, cache.num_bytes) == (2, 1, 2 * row)
    before = cache.hits
    read(cache, ada=[1, 2])
    assert cache.hits == before + 1
    read(cache, bob=[3, 4])
    assert cache.hits == before + 1


def test_more_users_at_once_than_fit_are_answered_right() -> None:
    model = extensible()
    cache = StateCache(model, max_bytes=2**20, min_events=1)
    read(cache, ada=[1, 2])
    cache = StateCache(model, max_bytes=3 * cache.num_bytes, min_events=1)
    histories = {f"u{n}": [n, n + 1] for n in range(1, 8)}
    for _ in range(2):
        state = read(cache, **histories)
        expected = model.encode_history(batch_of(*histories.values()))
        torch.testing.assert_close(state.user_vectors, expected.user_vectors)
    assert len(cache) == 2
    assert read(cache, u7=[7, 8, 9]).lengths.tolist() == [3]
    assert cache.hits == 3  # two of the second round, and this one


def test_a_cache_without_room_for_a_state_stores_nothing() -> None:
    model = extensible()
    cache = StateCache(model, max_bytes=100, min_events=1)
    for _ in range(2):
        state = read(cache, ada=[1, 2, 3])
    torch.testing.assert_close(state.user_vectors, model.encode_history(batch_of([1, 2, 3])).user_vectors)
    assert (len(cache), cache.num_bytes, cache.hits) == (0, 0, 0)


def test_the_pool_grows_with_the_histories_and_keeps_the_states() -> None:
    model = small_model("sasrec", data(), max_history_length=40, positions="from-first")
    assert isinstance(model, SASRec)
    cache = StateCache(model, max_bytes=2**20, min_events=1)
    read(cache, ada=[1, 2, 3], bob=[4])
    long = [n % 12 + 1 for n in range(30)]
    read(cache, eve=long)
    state = read(cache, ada=[1, 2, 3, 4], bob=[4, 5], eve=[*long, 1])
    assert (cache.hits, cache.misses) == (3, 3)
    expected = model.encode_history(batch_of([1, 2, 3, 4], [4, 5], [*long, 1]))
    torch.testing.assert_close(state.user_vectors, expected.user_vectors, rtol=1e-4, atol=1e-5)


def test_growing_evicts_the_least_recent_users_if_fewer_fit() -> None:
    model = small_model("sasrec", data(), max_history_length=40, positions="from-first")
    cache = StateCache(model, max_bytes=50_000, min_events=1)
    for n in range(1, 9):
        read(cache, **{f"u{n}": [n]})
    assert cache.evictions == 0
    read(cache, eve=[n % 12 + 1 for n in range(38)])
    assert cache.evictions > 0
    assert cache.num_bytes <= 50_000
    before = cache.hits
    read(cache, eve=[n % 12 + 1 for n in range(38)])
    assert cache.hits == before + 1


def test_forgetting_leaves_no_trace_of_a_user_in_memory() -> None:
    cache = StateCache(extensible(), max_bytes=2**16, min_events=1)
    read(cache, ada=[1, 2, 3], bob=[4, 5])
    cache.forget("ada")
    cache.forget("nobody")
    assert len(cache) == 1
    assert cache._pool is not None
    is_used = cache._pool.lengths > 0
    assert int(is_used.sum()) == 1
    for tensor in (cache._pool.user_vectors, *cache._pool.cache.values()):
        assert not bool(tensor[~is_used].any())
    read(cache, ada=[1, 2, 3])
    assert cache.hits == 0


def test_a_user_who_is_forgotten_while_a_batch_is_answered_is_not_stored() -> None:
    model = extensible()
    cache = StateCache(model, max_bytes=2**16, min_events=1)
    encode = cache._encode

    def forgetting(batch: SequenceBatch, state: HistoryState | None = None) -> HistoryState:
        cache.forget("ada")
        return encode(batch, state)

    cache._encode = forgetting
    read(cache, ada=[1, 2, 3])
    assert len(cache) == 0


def test_states_of_former_weights_are_dropped() -> None:
    model = extensible()
    cache = StateCache(model, max_bytes=2**16, min_events=1)
    read(cache, ada=[1, 2, 3])
    other = {name: value + 0.1 for name, value in model.state_dict().items()}
    model.load_state_dict(other)
    state = read(cache, ada=[1, 2, 3, 4])
    torch.testing.assert_close(state.user_vectors, model.encode_history(batch_of([1, 2, 3, 4])).user_vectors)
    assert cache.hits == 0


def test_visitors_and_small_batches_are_not_stored() -> None:
    cache = StateCache(extensible(), max_bytes=2**16, min_events=3)
    assert cache.read(batch_of([1, 2, 3, 4]), [None]) is None
    assert cache.read(batch_of([1, 2]), ["ada"]) is None
    assert cache.read(batch_of([1, 2], [3, 4, 5]), ["ada", None]) is None
    state = cache.read(batch_of([1, 2], [], [1], [4, 5, 6]), ["ada", "bob", "eve", None])
    assert state is not None
    assert state.lengths.tolist() == [2, 0, 1, 3]
    assert len(cache) == 2
