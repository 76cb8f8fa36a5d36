"""The engine: what is served equals what `Run` returns, for every model, alone and in a mixed batch."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import polars as pl
import pytest
from support.small_models import identified, small_model
from support.trained_models import rich_run

from nextitem.core.batch import SequenceBatch
from nextitem.core.errors import UserError
from nextitem.core.recommendations import Recommendations
from nextitem.core.registry import MODELS
from nextitem.core.roles import Incremental
from nextitem.data.readers import dataset_from_frames
from nextitem.decoding.guidance import GuidedRecommender, GuideUse
from nextitem.pipeline.recommend import RecommendationList
from nextitem.serving.engine import Engine
from nextitem.serving.requests import HistoryEvent, ServedRequest
from nextitem.serving.schemas import ListExplanation
from nextitem.serving.states import StateCache
from nextitem.testing.rich_log import SETTINGS, rich_frames

HOUR_MS = 3_600_000
NOW = 1_700_000_000_000
DATED = tuple(
    HistoryEvent(item, action, NOW + place * HOUR_MS, {"device": "phone", "price": 3.5})
    for place, (item, action) in enumerate([("i03", "view"), ("i04", "buy"), ("i05", "view")])
)
UNDATED = (HistoryEvent("i07"), HistoryEvent("unknown"), HistoryEvent("i08"))


@cache
def engine_of(name: str) -> Engine:
    run = rich_run(name)
    return with_states(Engine(run.model, run.dataset))


def with_states(engine: Engine) -> Engine:
    """Return the engine, with states of histories even in small batches."""
    if isinstance(engine.model, Incremental):
        engine.states = StateCache(engine.model, max_bytes=2**24, min_events=1)
    return engine


def users_of(name: str) -> list[str]:
    return rich_run(name).dataset.users.ids.external.head(4).to_list()


def mixed(name: str) -> list[ServedRequest]:
    """Return requests of all kinds."""
    first, second, third, fourth = users_of(name)
    return [
        ServedRequest(first, k=5),
        ServedRequest(history=DATED, k=5),
        ServedRequest(history=UNDATED, k=5),
        ServedRequest("a new user", k=5),
        ServedRequest(second, k=3, exclude=("i01", "nothing")),
        ServedRequest(third, k=5, only=("category=tent",), exclude_seen=True),
        ServedRequest(history=DATED, k=4, context={"user.country": "FR"}, exclude_seen=False),
        ServedRequest(fourth, candidates=("i02", "i09", "i05")),
        ServedRequest(history=(), k=5),
    ]


def from_run(name: str, request: ServedRequest) -> RecommendationList:
    """Return the answer of `Run` to the request."""
    run = rich_run(name)
    arguments: dict[str, object] = {}
    if request.history is None:
        arguments["user"] = request.user_id
    elif all(event.timestamp_ms is not None for event in request.history) and request.history:
        arguments["history"] = pl.DataFrame(
            {
                "item_id": [event.item_id for event in request.history],
                "action": [event.action for event in request.history],
                "timestamp": [event.timestamp_ms for event in request.history],
                **{name: [event.columns[name] for event in request.history] for name in ("device", "price")},
            }
        )
    else:
        arguments["history"] = [event.item_id for event in request.history]
    if request.history is not None and request.context:
        arguments["context"] = request.context
    if request.candidates is not None:
        frame = run.rank(candidates=request.candidates, **arguments)  # type: ignore[arg-type]
        return RecommendationList(frame["item_id"].to_list(), frame["score"].to_list(), [], False)
    return run.recommend(
        k=request.k,
        only=request.only,
        exclude_items=request.exclude,
        exclude_seen=request.exclude_seen,
        **arguments,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("name", MODELS)
def test_a_mixed_batch_is_answered_as_python_answers_each_request(name: str) -> None:
    requests = [request for request in mixed(name) if request.user_id != "a new user"]
    for request, answer in zip(requests, engine_of(name).recommend(requests), strict=True):
        expected = from_run(name, request)
        assert isinstance(answer, RecommendationList), answer
        assert answer.item_ids == expected.item_ids, request
        assert answer.scores == pytest.approx(expected.scores, rel=1e-5, abs=1e-5)
        if request.candidates is None:
            assert replace(answer, scores=[]) == replace(expected, scores=[])


@pytest.mark.parametrize("name", MODELS)
def test_an_answer_does_not_depend_on_the_other_requests_of_its_batch(name: str) -> None:
    requests, engine = mixed(name), engine_of(name)
    together = engine.recommend(requests)
    for request, answer in zip(requests, together, strict=True):
        alone = engine.recommend([request])[0]
        assert isinstance(answer, RecommendationList)
        assert isinstance(alone, RecommendationList)
        assert answer.item_ids == alone.item_ids
        assert answer.scores == pytest.approx(alone.scores, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_events_since_training_count_as_if_the_data_set_had_them(name: str) -> None:
    engine = with_states(Engine(rich_run(name).model, rich_run(name).dataset))
    frames = rich_frames()
    log = frames["interactions"]
    times = log["timestamp"].to_list()
    start = (max(times) + 60) * 1000
    events = [HistoryEvent(item, "view", start + n * 1000, {"price": 2.0}) for n, item in enumerate(["i07", "i02"])]
    first_time = min(time for user, time in zip(log["user_id"], times, strict=True) if user == "u01")
    early = HistoryEvent("i05", "buy", first_time * 1000 + 1)
    new_events = {"u00": events, "u01": [early, events[1]], "stranger": events}
    rows = [
        {
            "user_id": user,
            "item_id": event.item_id,
            "timestamp": (event.timestamp_ms or 0) / 1000,
            "action": event.action,
            "price": event.columns.get("price"),
        }
        for user, part in new_events.items()
        for event in part
    ]
    log = log.with_columns(pl.col("timestamp").cast(pl.Float64))
    frames["interactions"] = pl.concat([log, pl.DataFrame(rows)], how="diagonal_relaxed")
    users = pl.DataFrame({"user_id": ["stranger"]})
    frames["users"] = pl.concat([frames["users"], users], how="diagonal_relaxed")
    run = replace(rich_run(name)).use_data(dataset_from_frames(frames, SETTINGS, name="later"))
    for event in events:
        engine.histories.advance(event.timestamp_ms or 0)
    users_asked = ["u00", "u01", "stranger", "u02"]
    answers = engine.recommend([ServedRequest(user, k=5) for user in users_asked], new_events)
    for user, answer in zip(users_asked, answers, strict=True):
        assert isinstance(answer, RecommendationList), answer
        expected = run.recommend(user=user, k=5)
        assert answer.item_ids == expected.item_ids, user
        assert answer.scores == pytest.approx(expected.scores, rel=1e-5, abs=1e-5)
        assert answer.fallback == expected.fallback


@pytest.mark.parametrize("name", ["item-cf", "hstu"])
def test_an_invalid_request_has_an_error_and_the_others_their_lists(name: str) -> None:
    bad = [
        ServedRequest(history=(HistoryEvent("nothing"),)),
        ServedRequest(history=DATED, only=("colour=red",)),
        ServedRequest(history=DATED, only=("category=Violins of old",)),
        ServedRequest(history=DATED, context={"colour": "red"}),
        ServedRequest(history=DATED, candidates=("nothing",)),
        ServedRequest(history=DATED, candidates=()),
        ServedRequest(history=DATED, k=0),
    ]
    good, engine = mixed(name), engine_of(name)
    answers = engine.recommend([*bad, *good])
    assert all(isinstance(answer, UserError) for answer in answers[: len(bad)])
    assert answers[len(bad) :] == engine.recommend(good)


def test_a_request_on_which_the_model_fails_does_not_spoil_the_others() -> None:
    run = rich_run("item-cf")
    engine = Engine(run.model, run.dataset)
    recommend = run.model.recommend

    def failing(batch: SequenceBatch, k: int) -> Recommendations:
        if bool((batch.items.values == 9).any()):
            raise RuntimeError("planted")
        return recommend(batch, k)

    requests = [ServedRequest(history=(HistoryEvent(item),), k=4) for item in ("i03", "i08", "i04")]
    expected = engine.recommend(requests)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.model, "recommend", failing)
        answers = engine.recommend(requests)
    assert [answers[0], answers[2]] == [expected[0], expected[2]]
    assert isinstance(answers[1], RuntimeError)


@pytest.mark.parametrize("name", MODELS)
def test_an_explained_list_is_the_same_list_and_names_events_of_the_history(name: str) -> None:
    engine = engine_of(name)
    requests = [request for request in mixed(name) if request.only or request.candidates or request.k == 5]
    explained = engine.recommend([replace(request, explain=True) for request in requests])
    for request, answer, plain in zip(requests, explained, engine.recommend(requests), strict=True):
        assert isinstance(answer, RecommendationList), answer
        assert isinstance(plain, RecommendationList)
        assert answer.item_ids == plain.item_ids
        assert answer.scores == pytest.approx(plain.scores, rel=1e-5, abs=1e-5)
        assert plain.explanation is None
        assert answer.explanation is not None
        explanation = ListExplanation(**answer.explanation.to_json())
        assert [item.item_id for item in explanation.items] == answer.item_ids
        for item in explanation.items:
            assert not item.neighbours or sum(one.share for one in item.neighbours) == pytest.approx(1, abs=0.002)
            if request.history is not None:
                assert {one.item_id for one in item.neighbours} <= {event.item_id for event in request.history}
        is_generator = isinstance(engine.model, GuidedRecommender)
        assert bool(explanation.levels) == (is_generator and not answer.fallback)


def test_requests_with_different_knobs_share_no_batch() -> None:
    model = small_model("depth-decoder", identified(rich_run("item-cf").dataset), guide={"model": {"name": "item-cf"}})
    assert isinstance(model, GuidedRecommender)
    assert model.guidance is not None
    model.guidance.scorer = rich_run("item-cf").model
    model.guidance.use(GuideUse(0.5))
    engine = Engine(model, rich_run("item-cf").dataset, state_bytes=2**20)
    requests = [ServedRequest(history=DATED, k=5, guide_weight=weight) for weight in (0.0, None, 1.0, 0.5)]
    answers = engine.recommend(requests)
    for request, answer in zip(requests, answers, strict=True):
        assert isinstance(answer, RecommendationList), answer
        assert answer == engine.recommend([request])[0]
    ids = [answer.item_ids for answer in answers if isinstance(answer, RecommendationList)]
    assert ids[1] == ids[3]
    assert ids[0] != ids[2]


def test_knobs_that_a_model_does_not_have_are_errors_of_their_requests_alone() -> None:
    engine = engine_of("item-cf")
    requests = [
        ServedRequest(history=DATED, k=4, guide_weight=0.5),
        ServedRequest(history=DATED, k=4, objective="click"),
        ServedRequest(history=DATED, k=4),
    ]
    first, second, third = engine.recommend(requests)
    assert str(first).startswith("guide_weight: ItemCF has no guide")
    assert str(second).startswith("objective: no objective is called 'click'; ItemCF has none")
    assert isinstance(first, UserError)
    assert isinstance(second, UserError)
    assert third == engine.recommend(requests[2:])[0]
