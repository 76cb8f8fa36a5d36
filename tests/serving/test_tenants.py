"""Tenants see nothing of each other: events, users, deletions, page tokens, request ids, fallback lists and logs."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from support.trained_models import rich_run

from nextitem.core.errors import UserError
from nextitem.serving.app import make_app
from nextitem.serving.config import ServiceConfig
from nextitem.serving.impressions import ImpressionLog
from nextitem.serving.service import Service
from nextitem.serving.stores import open_store
from nextitem.serving.tenants import Tenant, Tokens

TOKENS = "plain, shop-a=aaa, shop-b=bbb"


def tenant(folder: Path, name: str) -> Tenant:
    store = open_store(f"sqlite:///{folder / 'events.db'}", namespace=name)
    return Tenant(name, store, impressions=ImpressionLog(folder / name, is_synced=True))


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    tenants = [tenant(tmp_path, name) for name in ("default", "shop_a", "shop_b")]
    new_service = Service({"item-cf": rich_run("item-cf")}, tenants, ServiceConfig(deadline_seconds=20))
    yield new_service
    new_service.close()


class Door:
    """The API as the holder of one token sees it."""

    def __init__(self, service: Service, token: str) -> None:
        tokens = Tokens(TOKENS, default="default")
        self.client = TestClient(make_app(service, tokens=tokens), headers={"Authorization": f"Bearer {token}"})

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        answer = self.client.post(f"/v1/{path}", json=body)
        assert answer.status_code == 200, answer.text
        result: dict[str, Any] = answer.json()
        return result

    def see(self, user: str, *items: str) -> None:
        events = [
            {"event_id": f"e{number}", "user_id": user, "item_id": item, "action": "view"}
            for number, item in enumerate(items)
        ]
        assert self.post("events", events=events)["accepted"] == len(items)


@pytest.fixture
def doors(service: Service) -> tuple[Door, Door, Door]:
    return Door(service, "plain"), Door(service, "aaa"), Door(service, "bbb")


def test_events_and_users_belong_to_one_tenant(doors: tuple[Door, Door, Door], service: Service) -> None:
    plain, shop_a, shop_b = doors
    shop_a.see("ada", "i03", "i04")
    assert not shop_a.post("recommend", user_id="ada")["fallback"]
    for other in (plain, shop_b):
        assert other.post("recommend", user_id="ada")["fallback_reason"] == "no history"
    shop_b.see("ada", "i08", "i09")  # the same event ids: those of another tenant do not count
    lists = [door.post("recommend", user_id="ada", k=4)["items"] for door in (shop_a, shop_b)]
    for items, history in zip(lists, (["i03", "i04"], ["i08", "i09"]), strict=True):
        expected = rich_run("item-cf").recommend(history=history, k=4, exclude_seen=False)
        assert [item["item_id"] for item in items] == expected.item_ids
    stored = {name: each.store.events_after(limit=9).events for name, each in service.tenants.items()}
    assert {name: [event.item_id for event in events] for name, events in stored.items()} == {
        "default": [], "shop_a": ["i03", "i04"], "shop_b": ["i08", "i09"],
    }  # fmt: skip


def test_requests_of_several_tenants_in_one_batch_are_apart(service: Service) -> None:
    from nextitem.serving.requests import ServedRequest
    from nextitem.serving.served_model import TenantRequest

    for name, items in (("shop_a", ["i03", "i04"]), ("shop_b", ["i08", "i09"])):
        events = [services_event(number, item) for number, item in enumerate(items)]
        service.tenants[name].store.append(events)
    order = ["shop_b", "shop_a", "default", "shop_a", "shop_b"]
    batch = [TenantRequest(service.tenants[name], ServedRequest("ada", k=3)) for name in order]
    futures = service.models["item-cf"].batcher.submit_together(batch)
    lists = [future.result(20).result.item_ids for future in futures]
    assert lists[0] == lists[4] != lists[1] == lists[3]
    assert lists[2] not in (lists[0], lists[1])


def services_event(number: int, item: str) -> Any:
    from nextitem.serving.service import stored_event

    return stored_event(f"e{number}", "ada", item, None, number, None)


def test_a_deletion_concerns_the_own_user_only(doors: tuple[Door, Door, Door], service: Service) -> None:
    _, shop_a, shop_b = doors
    for door in (shop_a, shop_b):
        door.see("ada", "i03")
        door.post("recommend", user_id="ada")
    assert shop_a.client.delete("/v1/users/ada").json() == {"deleted_events": 1}
    assert shop_a.post("recommend", user_id="ada")["fallback"]
    assert not shop_b.post("recommend", user_id="ada")["fallback"]
    model = service.models["item-cf"]
    assert set(model.version.last_lists) == {("shop_b", "ada")}
    log = service.tenants["shop_b"].recorder
    assert log is not None
    assert "ada" in log.impressions.table()["user_id"]


def test_lists_for_fallback_belong_to_one_tenant(doors: tuple[Door, Door, Door], service: Service) -> None:
    _, shop_a, shop_b = doors
    shop_a.see("ada", "i03", "i04")
    last = [item["item_id"] for item in shop_a.post("recommend", user_id="ada", k=3)["items"]]

    def failing(*_: object) -> list[Exception]:
        return [RuntimeError("planted")]

    for engine in service.models["item-cf"].version.engines.values():
        engine.recommend = failing  # type: ignore[method-assign, assignment]
    mine = shop_a.post("recommend", user_id="ada", k=3)
    assert [item["item_id"] for item in mine["items"]] == last
    popular = shop_b.post("recommend", history=["i03"], k=3, exclude_seen=False)
    assert shop_b.post("recommend", user_id="ada", k=3)["items"] == popular["items"]


def test_the_time_of_requests_is_that_of_the_own_events(doors: tuple[Door, Door, Door], service: Service) -> None:
    engines = service.models["item-cf"].version.engines
    before = {name: engine.histories.latest_ms for name, engine in engines.items()}
    doors[1].see("ada", "i03")
    assert engines["shop_a"].histories.latest_ms > before["shop_a"]
    assert {name: engines[name].histories.latest_ms for name in ("default", "shop_b")} == {
        name: before[name] for name in ("default", "shop_b")
    }


def test_page_tokens_and_request_ids_tell_nothing(doors: tuple[Door, Door, Door], service: Service) -> None:
    _, shop_a, shop_b = doors
    shop_a.see("ada", "i03", "i04")
    answer = shop_a.post("recommend", user_id="ada", k=2)
    items = [item["item_id"] for item in answer["items"]]
    assert json.loads(base64.urlsafe_b64decode(answer["next_page"])) == items  # neither user nor history
    # In the hands of another tenant a page token excludes the items that it contains, as `exclude` does.
    page = shop_b.post("recommend", history=["i08"], k=5, page=answer["next_page"])
    excluded = shop_b.post("recommend", history=["i08"], k=5, exclude=items)
    assert page["items"] == excluded["items"]
    # A request id of another tenant is a text like any other: it is stored with the own event and opens nothing.
    event = {"event_id": "x", "user_id": "bob", "item_id": "i01", "request_id": answer["request_id"]}
    unknown = {**event, "event_id": "y", "request_id": "0" * 32}
    answers = [shop_b.post("events", events=[each]) for each in (event, unknown)]
    assert answers[0] == answers[1] == {"accepted": 1, "unknown_items": []}
    log = service.tenants["shop_b"].recorder
    assert log is not None
    assert answer["request_id"] not in log.impressions.table()["impression_id"].to_list()


def test_logs_are_in_folders_of_their_own(doors: tuple[Door, Door, Door], service: Service, tmp_path: Path) -> None:
    users = [f"user-of-{number}" for number in range(3)]
    for door, user in zip(doors, users, strict=True):
        door.post("recommend", user_id=user)
    for name, user in zip(("default", "shop_a", "shop_b"), users, strict=True):
        content = b"".join(file.read_bytes() for file in (tmp_path / name).iterdir())
        assert [each for each in users if each.encode() in content] == [user]


def test_tokens_open_one_door_each() -> None:
    tokens = Tokens("plain, shop-a=aaa,shop-a=aaa2, YWJj==, shop_b=b=b", default="main")
    for header, namespace in (
        ("Bearer plain", "main"), ("bearer aaa", "shop_a"), ("Bearer aaa2", "shop_a"), ("Bearer YWJj==", "main"),
        ("Bearer b=b", "shop_b"), ("Bearer shop-a=aaa", None), ("plain", None), ("", None), ("Bearer ", None),
        ("Bearer \xff", None), ("Basic plain", None),
    ):  # fmt: skip
        assert tokens.namespace_of(header) == namespace, header
    assert tokens.tenants() == ["main", "shop_a", "shop_b"]
    assert Tokens("", default="main").namespace_of("") == "main"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a=x,b=x", "another tenant has the same token"),
        ("shop-a=x,shop_a=y", "have one namespace"),
        ("a=x y", "no spaces"),
        ("a=é", "ASCII"),
    ],
)
def test_mistakes_in_tokens_are_named_without_the_token(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        Tokens(text, default="default")
    assert "NEXTITEM_TOKENS: entry" in str(error.value)
    assert "x y" not in str(error.value)


def test_users_of_the_data_set_belong_to_the_default_tenant(doors: tuple[Door, Door, Door]) -> None:
    plain, shop_a, _ = doors
    assert not plain.post("recommend", user_id="u03")["fallback"]
    stranger = shop_a.post("recommend", user_id="u03", k=5)
    assert stranger["fallback_reason"] == "no history"
    assert stranger["items"] == shop_a.post("recommend", user_id="nobody", k=5)["items"]
    ranked = [shop_a.post("rank", user_id=user, candidates=["i01", "i02", "i05"])["items"] for user in ("u03", "x")]
    assert ranked[0] == ranked[1]
    assert plain.client.get("/v1/users?search=u0").json()["users"]
    assert shop_a.client.get("/v1/users?search=u0").json()["users"] == []
    histories = [door.client.get("/v1/users/u03/history").json() for door in (plain, shop_a)]
    assert [bool(history["events"]) for history in histories] == [True, False]


def test_the_view_of_traffic_shows_the_own_lists(doors: tuple[Door, Door, Door]) -> None:
    _, shop_a, shop_b = doors
    for _ in range(3):
        shop_a.post("recommend", history=["i03"])
    shop_b.post("rank", history=["i03"], candidates=["i01"])
    assert [len(door.client.get("/v1/traffic").json()) for door in doors] == [0, 3, 1]


def test_tokens_of_tenants_that_the_server_lacks_are_refused(service: Service) -> None:
    with pytest.raises(UserError, match="nobody is no tenant"):
        make_app(service, tokens=["nobody=token"])
