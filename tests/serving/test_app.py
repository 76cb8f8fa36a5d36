"""The HTTP API: answers equal those of Python, events count at once, and every mistake has a status and one line."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from support.trained_models import rich_run

from nextitem.core.config import parse
from nextitem.core.errors import UserError
from nextitem.pipeline.recommend import RecommendationList
from nextitem.serving import service as services
from nextitem.serving.app import make_app
from nextitem.serving.batching import QueueFullError
from nextitem.serving.config import ServiceConfig
from nextitem.serving.exploration import propensities
from nextitem.serving.impressions import ImpressionLog
from nextitem.serving.requests import ServedRequest
from nextitem.serving.schemas import ListAnswer, SimilarAnswer
from nextitem.serving.service import Service
from nextitem.serving.stores import StoreUnavailable, open_store

HISTORY = ["i03", "i04", "i05"]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    runs = {name: rich_run(name) for name in ("item-cf", "sasrec")}
    store, log = open_store(f"sqlite:///{tmp_path / 'events.db'}"), ImpressionLog(tmp_path / "log", is_synced=True)
    new_service = Service(runs, store, ServiceConfig(deadline_seconds=20), impressions=log)
    new_service.warm_up()
    yield new_service
    new_service.close()


@pytest.fixture
def client(service: Service) -> TestClient:
    return TestClient(make_app(service))


def event(number: int, **changes: Any) -> dict[str, Any]:
    return {"event_id": f"e{number}", "user_id": "stranger", "item_id": f"i{number:02d}", "action": "view", **changes}


def test_lists_equal_those_of_python(client: TestClient) -> None:
    run = rich_run("item-cf")
    for body, arguments in (
        ({"user_id": "u03"}, {"user": "u03"}),
        ({"history": HISTORY}, {"history": HISTORY}),
        ({"history": HISTORY, "only": {"category": "tent"}}, {"history": HISTORY, "only": ["category=tent"]}),
        ({"history": HISTORY, "only": ["category=tent"]}, {"history": HISTORY, "only": ["category=tent"]}),
        ({"history": HISTORY, "exclude": ["i06", "i07"]}, {"history": HISTORY, "exclude_items": ["i06", "i07"]}),
        ({"history": HISTORY, "exclude_seen": False}, {"history": HISTORY, "exclude_seen": False}),
    ):
        answer = client.post("/v1/recommend", json={**body, "k": 4, "model": "item-cf"}).json()
        expected = run.recommend(k=4, **arguments)
        assert [item["item_id"] for item in answer["items"]] == expected.item_ids
        assert [item["title"] for item in answer["items"]] == expected.titles
        assert (answer["fallback"], answer["model"]) == (False, "item-cf")
        assert answer["version"] == run.model.weights_fingerprint()
        assert len(answer["request_id"]) == 32


def test_rank_and_similar_equal_those_of_python(client: TestClient) -> None:
    run = rich_run("sasrec")
    candidates = ["i02", "i09", "i05", "i02"]
    answer = client.post("/v1/rank", json={"user_id": "u03", "candidates": candidates, "model": "sasrec"}).json()
    expected = run.rank(user="u03", candidates=candidates)
    assert [item["item_id"] for item in answer["items"]] == expected["item_id"].to_list()
    similar = client.post("/v1/similar", json={"item_id": "i03", "k": 3, "model": "sasrec"}).json()
    assert [item["item_id"] for item in similar["items"]] == run.similar("i03", k=3)["item_id"].to_list()


def test_pages_continue_a_list_without_repeating(client: TestClient) -> None:
    body = {"history": HISTORY, "k": 4, "model": "item-cf"}
    pages, token = [], None
    for _ in range(5):
        answer = client.post("/v1/recommend", json={**body, "page": token}).json()
        pages.append([item["item_id"] for item in answer["items"]])
        token = answer.get("next_page")
        if token is None:
            break
    shown_ids = [item for page in pages for item in page]
    assert len(shown_ids) == len(set(shown_ids)) == 12 - len(HISTORY)
    assert pages[0] + pages[1] == rich_run("item-cf").recommend(history=HISTORY, k=8).item_ids


def test_events_count_at_once_and_only_once(client: TestClient) -> None:
    before = client.post("/v1/recommend", json={"user_id": "stranger", "model": "item-cf"}).json()
    assert (before["fallback"], before["fallback_reason"]) == (True, "no history")
    events = [event(3), event(4), event(5, item_id="unheard of")]
    for _ in range(2):
        answer = client.post("/v1/events", json={"events": events})
        assert answer.json() == {"accepted": 3, "unknown_items": ["unheard of"]}
    after = client.post("/v1/recommend", json={"user_id": "stranger", "k": 5, "model": "item-cf"}).json()
    expected = rich_run("item-cf").recommend(history=["i03", "i04"], k=5, exclude_seen=False)
    assert [item["item_id"] for item in after["items"]] == expected.item_ids
    assert after["fallback"] is False


def test_a_deleted_user_leaves_no_trace(client: TestClient, service: Service) -> None:
    client.post("/v1/events", json={"events": [event(3), event(4), event(5, user_id="another")]})
    client.post("/v1/recommend", json={"user_id": "stranger"})
    assert client.delete("/v1/users/stranger").json() == {"deleted_events": 2}
    assert not any("stranger" in str(model.version.last_lists) for model in service.models.values())
    assert service.impressions is not None
    assert not any(b"stranger" in file.read_bytes() for file in service.impressions.folder.iterdir())
    assert client.post("/v1/recommend", json={"user_id": "stranger"}).json()["fallback"]
    assert [stored.user_id for stored in service.store.events_after(limit=10).events] == ["another"]


def test_no_file_contains_a_deleted_user(client: TestClient, service: Service, tmp_path: Path) -> None:
    """After events, lists, pages, fallbacks and a deletion, no file and nothing in memory has the id."""
    ada = "ada-of-the-test"
    client.post("/v1/events", json={"events": [event(3, user_id=ada), event(4, user_id=ada)]})
    for body in ({"k": 3}, {"k": 3, "model": "sasrec"}, {"history": HISTORY}, {"k": 3, "explore": 1.0}):
        assert client.post("/v1/recommend", json={"user_id": ada, **body}).status_code == 200
    assert any(ada.encode() in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert client.delete(f"/v1/users/{ada}").json() == {"deleted_events": 2}
    assert not any(ada.encode() in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    tenant = service.default_tenant
    assert not tenant._in_progress
    for model in service.all_models:
        assert not any(ada in key for key in model.version.last_lists)
        assert ada not in repr([vars(engine) for engine in model.version.engines.values()])


def test_lists_are_sampled_if_a_request_says_so(client: TestClient, service: Service) -> None:
    body = {"history": HISTORY, "k": 4, "model": "sasrec"}
    plain = client.post("/v1/recommend", json=body).json()
    assert not any("propensity" in item for item in plain["items"])
    answers = [client.post("/v1/recommend", json={**body, "explore": 3.0}).json() for _ in range(8)]
    lists = {tuple(item["item_id"] for item in answer["items"]) for answer in answers}
    assert len(lists) > 1
    last = answers[-1]
    head = rich_run("sasrec").recommend(history=HISTORY, k=100).item_ids
    places = [head.index(item["item_id"]) for item in last["items"]]
    expected = propensities(places, head_size=len(head), temperature=3.0).tolist()
    assert [item["propensity"] for item in last["items"]] == pytest.approx(expected)
    assert service.impressions is not None
    row = service.impressions.table().filter(impression_id=last["request_id"])
    assert row["propensity"].to_list() == pytest.approx(expected)
    assert set(row["policy"]) == {f"sasrec {last['version']} explore 3"}
    page = client.post("/v1/recommend", json={**body, "explore": 3.0, "page": last["next_page"]}).json()
    assert not {item["item_id"] for item in page["items"]} & {item["item_id"] for item in last["items"]}
    assert client.post("/v1/recommend", json={**body, "explore": -1}).status_code == 422


def test_answers_have_the_declared_fields(client: TestClient) -> None:
    """The routes return JSON without checking it against its schema, so this test does."""
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    for path, body in (
        ("recommend", {"history": HISTORY, "explore": 1.0, "k": 3}),
        ("recommend", {"user_id": "nobody", "model": "sasrec"}),
        ("rank", {"history": HISTORY, "candidates": ["i01", "i02"]}),
    ):
        answer = client.post(f"/v1/{path}", json=body).json()
        checked = ListAnswer.model_validate(answer, strict=True)
        assert checked.model_dump(exclude_none=True) == answer
        assert set(schemas["ListAnswer"]["required"]) <= set(answer) <= set(schemas["ListAnswer"]["properties"])
    similar = client.post("/v1/similar", json={"item_id": "i03", "k": 3}).json()
    assert SimilarAnswer.model_validate(similar, strict=True).model_dump() == similar


def test_settings_of_a_server_have_bounds() -> None:
    for values in ({"max_batch": 0}, {"max_queue": 0}, {"deadline_seconds": 0}, {"max_wait": -1}, {"explore": -0.1}):
        with pytest.raises(UserError, match="nextitem serve: "):
            parse(ServiceConfig, values, where="nextitem serve")


def test_recommended_lists_are_logged_as_impressions(client: TestClient, service: Service) -> None:
    def answer_to(path: str, body: dict[str, Any]) -> dict[str, Any]:
        response = client.post(path, json=body)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    answer = answer_to("/v1/recommend", {"user_id": "u03", "k": 4, "model": "item-cf"})
    answer_to("/v1/rank", {"user_id": "u03", "candidates": ["i01"]})
    fallback = answer_to("/v1/recommend", {"user_id": "new", "k": 2, "model": "sasrec"})
    assert service.impressions is not None
    table = service.impressions.table()
    assert table["impression_id"].to_list() == [answer["request_id"]] * 4 + [fallback["request_id"]] * 2
    assert table["item_id"].to_list() == [item["item_id"] for item in answer["items"] + fallback["items"]]
    assert table["slot"].to_list() == [1, 2, 3, 4, 1, 2]
    assert table["policy"].unique(maintain_order=True).to_list() == [
        f"item-cf {answer['version']}",
        f"sasrec {fallback['version']} fallback: no history",
    ]


def test_a_full_disk_is_said_if_the_log_is_synced(client: TestClient, service: Service) -> None:
    def full(_: Any) -> None:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service.impressions, "append", full)
        answer = client.post("/v1/recommend", json={"user_id": "u03"})
    assert (answer.status_code, answer.json()) == (
        503,
        {"error": "the log of impressions cannot be written: No space left on device"},
    )


def test_users_are_shared_out_and_stay_with_their_model(client: TestClient) -> None:
    def model_of(user: int) -> str:
        return str(client.post("/v1/recommend", json={"user_id": f"v{user}"}).json()["model"])

    models = [model_of(user) for user in range(60)]
    assert models == [model_of(user) for user in range(60)]
    assert 15 < models.count("sasrec") < 45


def test_items_models_health_and_metrics_are_answered(client: TestClient) -> None:
    item = client.get("/v1/items/i03").json()
    assert item == rich_run("item-cf").model.catalog.table.row(3, named=True)
    assert client.get("/v1/items/nothing").status_code == 404
    assert [(model["name"], model["weight"]) for model in client.get("/v1/models").json()] == [
        ("item-cf", 0.5),
        ("sasrec", 0.5),
    ]
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ok", "models": ["item-cf", "sasrec"]}
    client.post("/v1/recommend", json={"user_id": "nobody", "model": "item-cf"})
    text = client.get("/metrics").text
    assert 'nextitem_requests_total{path="/v1/recommend",status="200"} 1.0' in text
    assert 'nextitem_fallbacks_total{model="item-cf",reason="no history"} 1.0' in text


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("recommend", {}, 400, "user_id or history"),
        ("recommend", {"history": ["nothing"]}, 400, "no item is called nothing"),
        ("recommend", {"history": HISTORY, "only": {"colour": "red"}}, 400, "no column 'colour'"),
        ("recommend", {"history": HISTORY, "only": {"category": "x"}}, 400, "no item is left"),
        ("recommend", {"history": HISTORY, "model": "tiger"}, 400, "no model is called 'tiger'"),
        ("recommend", {"history": HISTORY, "context": {"colour": 1}}, 400, "no such feature"),
        ("recommend", {"history": HISTORY, "page": "W10x"}, 400, "no token"),
        ("recommend", {"history": HISTORY, "k": 0}, 422, "k: "),
        ("recommend", {"history": HISTORY, "k": 10**6}, 422, "k: "),
        ("recommend", {"history": HISTORY, "file": "/etc/passwd"}, 422, "file: "),
        ("recommend", {"history": ["i03"] * 2_001}, 422, "history"),
        ("rank", {"history": HISTORY, "candidates": []}, 422, "candidates"),
        ("rank", {"history": HISTORY, "candidates": ["nothing"]}, 400, "no item is called nothing"),
        ("similar", {"item_id": "nothing"}, 400, "no item is called nothing"),
        ("events", {"events": []}, 422, "events"),
        ("events", {"events": [{"event_id": "e1", "user_id": "u"}]}, 422, "item_id"),
        ("events", {"events": [event(1, timestamp=4_000_000_000)]}, 400, "future"),
        ("events", {"events": [event(1, timestamp=-1)]}, 422, "timestamp"),
    ],
)
def test_mistakes_have_a_status_and_one_line(
    client: TestClient, path: str, body: dict[str, Any], status: int, words: str
) -> None:
    answer = client.post(f"/v1/{path}", json=body)
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    assert words in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


@pytest.mark.parametrize(
    "body",
    [
        r'{"user_id": "\ud800"}',
        r'{"history": ["\ud800"]}',
        r'{"history": [{"item_id": "i03", "action": "\ud800", "timestamp": 1e400}]}',
        r'{"history": ["i03"], "exclude": ["\ud800"]}',
        r'{"history": ["i03"], "only": {"\ud800": "\udfff"}}',
        r'{"history": ["i03"], "context": {"user.country": ["\ud800", 3, null]}}',
        r'{"history": ["i03"], "context": {"user.age": "old", "user.hobbies": 7, "user.country": 1e308}}',
        '{"history": ["i03"], "page": "WyJcdWQ4MDAiXQ=="}',
        '{"history": ["i03"], "page": "' + "W1tb" * 20000 + '"}',
        '{"history": [{"item_id": "i03", "columns": {"price": "cheap", "device": 3, "item_id": "x"}}, "i04"]}',
        '{"history": [9223372036854775807, -1, "i03"], "k": 1000}',
        '{"history": [NaN], "k": Infinity}',
        '{"user_id": true, "k": "ten"}',
        "[" * 50000,
        '"text"',
        "null",
    ],
)
def test_hostile_bodies_never_break_the_server(client: TestClient, body: str) -> None:
    for path in ("recommend", "rank", "similar", "events"):
        answer = client.post(f"/v1/{path}", content=body.encode(), headers={"Content-Type": "application/json"})
        assert answer.status_code in (200, 400, 422), answer.text
        assert answer.status_code == 200 or list(answer.json()) == ["error"]


def test_large_and_unmeasured_bodies_are_refused(client: TestClient) -> None:
    assert client.post("/v1/recommend", content=b"x" * (2 * 2**20 + 1)).status_code == 413
    assert client.post("/v1/recommend", content=iter([b"{}"])).status_code == 411
    assert client.post("/v1/recommend", content=b"{").status_code == 422


def test_tokens_are_asked_for_except_by_those_who_watch(service: Service) -> None:
    client = TestClient(make_app(service, tokens=["s3cret", "other"]))
    body = {"history": HISTORY}
    assert client.post("/v1/recommend", json=body).status_code == 401
    for header, status in (("Bearer wrong", 401), ("s3cret", 401), ("Bearer other", 200), ("bearer s3cret", 200)):
        assert client.post("/v1/recommend", json=body, headers={"Authorization": header}).status_code == status
    assert client.get("/healthz").status_code == 200


def test_without_its_store_the_server_recommends_and_takes_no_events(client: TestClient, service: Service) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise StoreUnavailable("the store is down")

    expected = client.post("/v1/recommend", json={"user_id": "u03", "model": "item-cf"}).json()["items"]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("append", "histories", "check", "delete_user"):
            patch.setattr(service.store, name, fail)
        assert client.post("/v1/recommend", json={"user_id": "u03", "model": "item-cf"}).json()["items"] == expected
        answer = client.post("/v1/events", json={"events": [event(3)]})
        assert (answer.status_code, answer.json()) == (503, {"error": "the store is down"})
        assert "retry-after" in answer.headers
        assert client.get("/readyz").status_code == 503
        assert client.get("/healthz").status_code == 200
    assert client.post("/v1/events", json={"events": [event(3)]}).status_code == 200


def test_late_and_failing_models_are_replaced_by_the_last_list_and_popularity(
    client: TestClient, service: Service
) -> None:
    model = service.models["item-cf"]
    body = {"user_id": "u03", "k": 5, "model": "item-cf"}
    last = client.post("/v1/recommend", json=body).json()["items"]
    may_answer = threading.Event()
    recommend = model.engine.recommend

    def slow(*arguments: Any) -> Any:
        assert may_answer.wait(20)
        return recommend(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service, "config", ServiceConfig(deadline_seconds=0.05))
        patch.setattr(model.engine, "recommend", slow)
        answer = client.post("/v1/recommend", json={**body, "exclude": [last[0]["item_id"]]}).json()
        assert (answer["fallback"], answer["fallback_reason"]) == (True, "deadline")
        items = [item["item_id"] for item in answer["items"]]
        assert items[:4] == [item["item_id"] for item in last[1:]]
        assert len(set(items)) == 5
        assert last[0]["item_id"] not in items
        may_answer.set()
    with pytest.MonkeyPatch.context() as patch:

        def failing(requests: Sequence[ServedRequest], _: Any) -> list[RecommendationList | Exception]:
            return [RuntimeError("planted")] * len(requests)

        patch.setattr(model.engine, "recommend", failing)
        answer = client.post("/v1/recommend", json={"history": HISTORY, "k": 3, "model": "item-cf"}).json()
        assert (answer["fallback"], answer["fallback_reason"]) == (True, "error")
        popularity = dict(
            zip(model.run.model.catalog.ids.external, model.run.model.popularity[1:].tolist(), strict=True)
        )
        best = sorted((item for item in popularity if item not in HISTORY), key=lambda item: -popularity[item])
        assert sorted(popularity[item["item_id"]] for item in answer["items"]) == sorted(
            popularity[item] for item in best[:3]
        )


def test_the_api_is_described_and_loads_nothing_from_elsewhere(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/v1/recommend", "/v1/rank", "/v1/similar", "/v1/events", "/v1/users/{user_id}", "/readyz"} <= set(paths)
    assert set(paths["/v1/recommend"]["post"]["responses"]) >= {"200", "400", "401", "422", "429", "503"}
    assert client.get("/docs").status_code == 404
    assert client.get("/docs").json() == {"error": "Not Found"}


def test_a_full_queue_is_answered_by_429(client: TestClient, service: Service) -> None:
    model = service.models["item-cf"]

    def full(*_: Any) -> None:
        raise QueueFullError("512 requests wait already")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.batcher, "submit", full)
        answer = client.post("/v1/recommend", json={"history": HISTORY, "model": "item-cf"})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")


def test_metrics_show_drift_states_and_updates(client: TestClient, service: Service) -> None:
    class FakeUpdater:
        started = stopped = False

        def start(self) -> None:
            self.started = True

        def stop(self) -> None:
            self.stopped = True

        def figures(self) -> dict[str, dict[str, float]]:
            return {"sasrec": {"update_promoted": 1.0}}

    updater = FakeUpdater()
    service.update_with(updater)  # type: ignore[arg-type]
    assert updater.started
    events = [event(number, item_id="unheard of" if number % 4 == 0 else "i03") for number in range(100)]
    client.post("/v1/events", json={"events": events})
    for number in range(200):
        version = service.models["item-cf"].version
        version.drift.add_list([f"i{number % 12:02d}"], [1.0], is_fallback=number < 20)
    text = client.get("/metrics").text
    for line in (
        'nextitem_unknown_item_share{model="item-cf"} 0.25',
        'nextitem_fallback_share{model="item-cf"} 0.1',
        'nextitem_coverage{model="item-cf"} 1.0',
        'nextitem_state_cache{figure="hits",model="sasrec"} 0.0',
        'nextitem_update_promoted{model="sasrec"} 1.0',
    ):
        assert line in text
    assert 'nextitem_coverage{model="sasrec"}' not in text  # too few lists
    service.close()
    assert updater.stopped


def test_previews_are_not_logged_and_count_in_no_figure(client: TestClient, service: Service) -> None:
    body = {"history": HISTORY, "k": 3, "model": "sasrec", "preview": True, "explore": 1.0}
    assert len(client.post("/v1/recommend", json=body).json()["items"]) == 3
    assert service.impressions is not None
    assert service.impressions.table().height == 0
    assert not service.models["sasrec"].version.drift._lists


def test_a_full_server_refuses_before_it_reads(client: TestClient, service: Service) -> None:
    """If no model accepts a request, the body is not even parsed; other routes are answered."""
    with pytest.MonkeyPatch.context() as patch:
        for model in service.models.values():
            patch.setattr(model.batcher, "refusal", lambda *_, **__: QueueFullError("9 requests wait already", 2.3))
        answer = client.post("/v1/recommend", content=b"no json")
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")
        assert answer.json() == {"error": "9 requests wait already"}
        assert client.post("/v1/events", json={"events": [event(3)]}).status_code == 200
    assert 'nextitem_requests_total{path="/v1/recommend",status="429"} 1.0' in client.get("/metrics").text


def test_calls_of_events_that_are_stored_together_are_judged_apart(service: Service) -> None:
    good = [services.stored_event("e1", "u", "i03", None, 1, None)]
    bad = [services.stored_event("", "u", "i03", None, 1, None)]

    async def both() -> list[BaseException | None]:
        return list(await asyncio.gather(service.append(good), service.append(bad), return_exceptions=True))

    first, second = asyncio.run(both())
    assert first is None
    assert isinstance(second, UserError)
    assert [stored.event_id for stored in service.store.events_after(limit=10).events] == ["e1"]
