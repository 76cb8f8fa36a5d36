"""Hostile requests: whatever is sent, the server answers by its own document, without a 5xx, and goes on as before."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from pydantic import TypeAdapter
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks as openapi
from support.trained_models import rich_run

from nextitem.serving.app import make_app
from nextitem.serving.config import ServiceConfig
from nextitem.serving.gate import MAX_BODY
from nextitem.serving.impressions import ImpressionLog
from nextitem.serving.schemas import EventsAnswer, ListAnswer, Problem
from nextitem.serving.service import Service
from nextitem.serving.stores import open_store

HISTORY = ["i03", "i04", "i05"]
LISTS = {"history": HISTORY, "k": 4, "model": "item-cf"}
CHECKS = [
    not_a_server_error,
    openapi.status_code_conformance,
    openapi.content_type_conformance,
    openapi.response_schema_conformance,
    openapi.response_headers_conformance,
    openapi.negative_data_rejection,
]
NUM_MUTATED = 9_600  # with those that schemathesis generates, more than 10,000


@dataclass(frozen=True)
class Reply:
    """What the application sent for one request."""

    status: int
    headers: dict[str, str]
    body: bytes


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastAPI]:
    folder: Path = tmp_path_factory.mktemp("hostile")
    runs = {name: rich_run(name) for name in ("item-cf", "sasrec")}
    impressions = ImpressionLog(folder / "log", is_synced=False)
    store = open_store(f"sqlite:///{folder / 'events.db'}")
    service = Service(runs, store, ServiceConfig(deadline_seconds=60), impressions=impressions)
    service.warm_up()
    yield make_app(service)
    service.close()


async def ask(
    app: FastAPI,
    method: str,
    path: str | bytes,
    *,
    headers: Sequence[tuple[bytes, bytes]] = (),
    chunks: Sequence[bytes] = (b"",),
) -> Reply:
    """Send one request as a server of HTTP hands it on: bytes of path and headers unchanged, the body in chunks."""
    raw_path, _, query = (path.encode() if isinstance(path, str) else path).partition(b"?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(raw_path.decode("latin-1")),
        "raw_path": raw_path,
        "query_string": query,
        "root_path": "",
        "headers": list(headers),
        "client": ("127.0.0.1", 1),
        "server": ("server", 80),
    }
    incoming = [
        {"type": "http.request", "body": chunk, "more_body": number < len(chunks) - 1}
        for number, chunk in enumerate(chunks)
    ]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return incoming.pop(0) if incoming else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    reply_headers = {name.decode().lower(): value.decode() for name, value in sent[0]["headers"]}
    return Reply(sent[0]["status"], reply_headers, b"".join(message.get("body", b"") for message in sent[1:]))


async def post(app: FastAPI, path: str, body: bytes, content_type: bytes = b"application/json") -> Reply:
    """Post a body with the headers of a well-behaved client."""
    headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    return await ask(app, "POST", path, headers=headers, chunks=[body])


ANSWERS: dict[str, TypeAdapter[Any]] = {
    "/v1/recommend": TypeAdapter(ListAnswer),
    "/v1/rank": TypeAdapter(ListAnswer),
    "/v1/similar": TypeAdapter(dict[str, Any]),
    "/v1/events": TypeAdapter(EventsAnswer),
    "/v1/users": TypeAdapter(dict[str, int]),
    "/v1/items": TypeAdapter(dict[str, Any]),
}
REFUSALS = (400, 403, 404, 405, 411, 413, 422)


def judge(reply: Reply, path: str, request: object) -> None:
    """Fail unless a reply is a documented answer, or one line that says what is wrong with the request."""
    assert reply.status == 200 or reply.status in REFUSALS, (reply, request)
    assert reply.headers["content-type"].startswith("application/json"), (reply, request)
    if reply.status == 200:
        ANSWERS["/".join(path.split("/")[:3])].validate_json(reply.body)
        return
    assert list(json.loads(reply.body)) == ["error"], (reply, request)
    message = Problem.model_validate_json(reply.body).error
    assert message.isprintable(), message
    assert "Traceback" not in message
    assert "site-packages" not in message
    assert len(message) <= 1_000, (len(message), request)


def judged(app: FastAPI, requests: Sequence[tuple[str, bytes, bytes]]) -> list[int]:
    """Post (path, body, content type) one after the other, judge every answer, and return the statuses."""

    async def send_all() -> list[int]:
        statuses = []
        for path, body, content_type in requests:
            reply = await post(app, path, body, content_type)
            judge(reply, path, (path, body[:500], content_type))
            statuses.append(reply.status)
        return statuses

    return asyncio.run(send_all())


def generated(app: FastAPI, max_examples: int) -> int:
    """Send what schemathesis generates from the document, valid and invalid, and return the number of requests."""
    count = 0
    options: dict[str, Any] = {"deadline": None, "database": None, "derandomize": True, "phases": [Phase.generate]}
    for result in schemathesis.openapi.from_asgi("/openapi.json", app).get_all_operations():
        operation = result.ok()  # type: ignore[union-attr]  # the document is valid, or this fails
        modes = [schemathesis.GenerationMode.POSITIVE]
        if operation.method == "post":  # what else is sent is text, which is valid
            modes.append(schemathesis.GenerationMode.NEGATIVE)
        for mode in modes:

            @given(case=operation.as_strategy(generation_mode=mode))
            @settings(max_examples=max_examples, suppress_health_check=list(HealthCheck), **options)
            def check(case: Any) -> None:
                nonlocal count
                count += 1
                case.validate_response(case.call(), checks=CHECKS)

            check()
    return count


def test_answers_conform_to_the_document(app: FastAPI) -> None:
    assert generated(app, 3) > 30


# Values that no field expects, as they stand in a JSON text.
VALUES = (
    *("null", "true", "-1", "0", "0.5", "1e-400", "1e308", "1e999", "-0", "2147483648", "9223372036854775808"),
    *("18446744073709551616", "9" * 400, "9" * 5_000, "NaN", "-Infinity", '""', '" "', '"\\u0000"', '"i03\\u0000"'),
    *(
        '"\\ud800"',
        '"\\udfff\\ud800"',
        '"\\uffff"',
        '"\\u202ei03"',
        '"\\u200b"',
        '"i0\\uff13"',
        '"\\uff4903"',
        '"I03"',
        '"i03 "',
    ),
    *('"🛒"', '"e\\u0301"', '"../../etc/passwd"', '"file:///etc/passwd"', '"%2e%2e%2f"', '"i03/../i04"', '"C:\\\\x"'),
    *('"\' OR 1=1 --"', '"\\"; DROP TABLE events; --"', '"\\r\\nFLUSHALL\\r\\n"', '"*1\\r\\n$8\\r\\nFLUSHALL\\r\\n"'),
    *(
        '"${jndi:ldap://x}"',
        '"{{7*7}}"',
        '"%s%n"',
        '"<script>alert(1)</script>"',
        '"__class__"',
        '"=cmd|1"',
        '"\\u001b[2J"',
    ),
    *("[]", "{}", "[[]]", '{"":""}', '{"__proto__":{"k":1}}', '["i03",null,7,{"item_id":"i04"}]', "[" * 60 + "]" * 60),
    *('{"$gt":""}', '{"item_id":"i03"}', '[{"item_id":"i03","timestamp":4e9}]', f'"{"x" * 3_000}"', f'"{"é" * 600}"'),
    *(
        "[" + ",".join(['"i03"'] * 300) + "]",
        '{"category":"tent"}',
        '{"category":1e308}',
        '["category=tent","=","a=b=c"]',
    ),
    *("20_000", "0x10", "1e5", '"2026-01-31"', "1767225600", "1767225600000", "253402300800", "[1]", '"10"'),
)
EVENT = '{"event_id": "e1", "user_id": "u1", "item_id": "i03", "action": "view", "timestamp": 1, "request_id": "r"}'
FIELDS = {
    "/v1/recommend": {
        "user_id": '"u03"', "history": '["i03", {"item_id": "i04", "action": "view", "timestamp": 5}]', "k": "3",
        "exclude": '["i06"]', "only": '{"category": "tent"}', "exclude_seen": "false", "context": "{}",
        "model": '"item-cf"', "page": "null", "explain": "true", "explore": "0.5", "guide_weight": "null",
    },
    "/v1/rank": {"user_id": '"u03"', "history": '["i03"]', "candidates": '["i02", "i09"]', "context": "{}"},
    "/v1/similar": {"item_id": '"i03"', "k": "3", "model": '"sasrec"'},
    "/v1/events": {"events": f"[{EVENT}]"},
}  # fmt: skip
TYPES = (
    *(b"application/json",) * 12, b"", b"text/plain", b"application/xml", b"application/x-www-form-urlencoded",
    b"multipart/form-data; boundary=x", b"application/json; charset=utf-16", b"application/JSON", b"\xff\xfe",
)  # fmt: skip


def mutated(source: random.Random) -> tuple[str, bytes, bytes]:
    """Return a path with a body that differs from a valid one in one to three places, and a content type."""
    path = source.choice(list(FIELDS))
    fields = [(name, value) for name, value in FIELDS[path].items() if source.random() < 0.8]
    for _ in range(source.randint(1, 3)):
        kind = source.randrange(5)
        if kind == 0 or not fields:
            fields.append((source.choice(["file", "__class__", "k", "history", "", "\\u0000"]), source.choice(VALUES)))
        elif kind == 1:
            fields.append((source.choice(fields)[0], source.choice(VALUES)))  # the same key twice
        elif kind == 2 and path == "/v1/events":
            name = source.choice(["event_id", "user_id", "item_id", "action", "timestamp", "request_id", "x"])
            changed = EVENT[:-1] + f', "{name}": {source.choice(VALUES)}' + "}"
            fields = [("events", f"[{', '.join(source.choices([EVENT, changed], k=3))}]")]
        else:
            place = source.randrange(len(fields))
            fields[place] = (fields[place][0], source.choice(VALUES))
    body = ("{" + ", ".join(f'"{name}": {value}' for name, value in fields) + "}").encode()
    changes: list[Callable[[bytes], bytes]] = [
        lambda text: text[: source.randrange(len(text))],
        lambda text: text.replace(b'"', b"'"),
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: text.decode().encode("utf-16"),
        lambda text: text.decode().encode("latin-1", "replace"),
        lambda text: text + text,
        lambda text: b"[" + text + b"]",
        lambda text: bytes(byte ^ (source.random() < 0.01) for byte in text),
    ]
    if source.random() < 0.2:
        body = source.choice(changes)(body)
    return path, body, source.choice(TYPES)


def same_list(app: FastAPI) -> list[str]:
    """Return the list for one fixed history."""
    body = asyncio.run(post(app, "/v1/recommend", json.dumps(LISTS).encode())).body
    return [item["item_id"] for item in json.loads(body)["items"]]


def test_mutated_bodies_are_answered_or_refused(app: FastAPI) -> None:
    before, source = same_list(app), random.Random(0)
    statuses = judged(app, [mutated(source) for _ in range(300)])
    assert {200, 400, 422} <= set(statuses)
    assert same_list(app) == before


@pytest.mark.slow
def test_ten_thousand_hostile_requests_neither_break_nor_change_the_server(app: FastAPI) -> None:
    before, source = same_list(app), random.Random(1)
    statuses = judged(app, [mutated(source) for _ in range(NUM_MUTATED)])
    assert {200, 400, 422} <= set(statuses)
    num_generated = generated(app, 60)
    assert len(statuses) + num_generated >= 10_000
    assert same_list(app) == before


HUGE_HISTORY = json.dumps({"history": ["i03"] * 100_000}).encode()
HUGE_EVENTS = json.dumps({"history": [{"item_id": "i03", "timestamp": number} for number in range(100_000)]}).encode()


@pytest.mark.parametrize(
    ("path", "body", "statuses"),
    [
        ("/v1/recommend", HUGE_HISTORY, (413, 422)),
        ("/v1/recommend", HUGE_EVENTS, (413, 422)),
        ("/v1/rank", HUGE_HISTORY, (413, 422)),
        ("/v1/recommend", b'{"history": ["i03"], "k": 1, "k": 2}', (200, 422)),
        ("/v1/recommend", b'{"history": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", (400, 422)),
        ("/v1/recommend", b'{"a":' * 100_000, (400, 422)),
        ("/v1/recommend", b'{"history": ["i03"], "k": ' + b"9" * 10_000 + b"}", (400, 422)),
        ("/v1/recommend", b'{"history": ["i03"], "only": ["' + b"category=" * 300 + b'"]}', (400, 422)),
        ("/v1/recommend", json.dumps({"history": HISTORY, "exclude": ["x"] * 10_001}).encode(), (422,)),
        ("/v1/recommend", json.dumps({"history": HISTORY, "context": {"c": ["x"] * 100_000}}).encode(), (400, 422)),
        ("/v1/recommend", json.dumps({"history": HISTORY, "model": "../../etc/passwd"}).encode(), (400,)),
        ("/v1/rank", json.dumps({"history": HISTORY, "candidates": ["i03"] * 1_001}).encode(), (422,)),
        ("/v1/events", json.dumps({"events": [json.loads(EVENT)] * 1_001}).encode(), (422,)),
        ("/v1/events", EVENT.replace('"e1"', f'"{"e" * 513}"').join(['{"events": [', "]}"]).encode(), (422,)),
        ("/v1/recommend", json.dumps({"history": HISTORY}).encode("utf-16"), (200, 400, 422)),
        ("/v1/recommend", b"\xef\xbb\xbf" + json.dumps({"history": HISTORY}).encode(), (200, 400, 422)),
        ("/v1/recommend", b"\xff\xfe\x00", (400, 422)),
        ("/v1/recommend", b"", (422,)),
    ],
)  # fmt: skip
def test_bodies_beyond_the_limits_are_refused(app: FastAPI, path: str, body: bytes, statuses: tuple[int, ...]) -> None:
    assert judged(app, [(path, body, b"application/json")])[0] in statuses


@pytest.mark.parametrize("value", VALUES)
def test_every_hostile_value_is_answered_in_every_field(app: FastAPI, value: str) -> None:
    requests = []
    for path, fields in FIELDS.items():
        for changed in fields:
            parts = {**fields, changed: value}
            text = "{" + ", ".join(f'"{name}": {part}' for name, part in parts.items()) + "}"
            requests.append((path, text.encode(), b"application/json"))
    judged(app, requests)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/recommend", {"user_id": False}),
        ("/v1/recommend", {"history": [True]}),
        ("/v1/recommend", {"history": HISTORY, "k": "3"}),
        ("/v1/recommend", {"history": HISTORY, "k": True}),
        ("/v1/recommend", {"history": HISTORY, "exclude_seen": "yes"}),
        ("/v1/recommend", {"history": [{"item_id": "i03", "timestamp": "5"}]}),
        ("/v1/rank", {"history": HISTORY, "candidates": [False]}),
    ],
)
def test_values_of_another_type_are_refused_rather_than_converted(
    app: FastAPI, path: str, fields: dict[str, Any]
) -> None:
    assert judged(app, [(path, json.dumps(fields).encode(), b"application/json")]) == [422]


IDS = (
    *("%00", "i03%00", "%ff", "..", "%2e%2e", "..%2f..%2fetc%2fpasswd", "%2Fetc%2Fpasswd", "i03%2F..%2Fi04", "i03/i04"),
    *(
        "'%20OR%201=1",
        "%0d%0aSet-Cookie:%20x",
        "*",
        "?",
        "%25",
        "%",
        "%zz",
        "%ud800",
        "%ed%a0%80",
        "x" * 5_000,
        "",
        "%20",
    ),
)


@pytest.mark.parametrize("item_id", IDS)
def test_ids_in_a_path_are_only_ids(app: FastAPI, item_id: str) -> None:
    for method, path in (("GET", f"/v1/items/{item_id}"), ("DELETE", f"/v1/users/{item_id}")):
        reply = asyncio.run(ask(app, method, path))
        judge(reply, path, path)
        assert method == "DELETE" or reply.status in (400, 404, 405), reply
        assert b"root:" not in reply.body
        assert "set-cookie" not in reply.headers
    reply = asyncio.run(ask(app, "GET", f"/v1/items/i03?model={item_id}"))
    judge(reply, "/v1/items/i03", item_id)


BODY = json.dumps(LISTS).encode()
JSON = (b"content-type", b"application/json")


@pytest.mark.parametrize(
    ("headers", "statuses"),
    [
        ([JSON], (411,)),
        ([JSON, (b"content-length", b"-1")], (400, 411)),
        ([JSON, (b"content-length", b"+5")], (400, 411)),
        ([JSON, (b"content-length", b"abc")], (400, 411)),
        ([JSON, (b"content-length", "\uff15".encode())], (400, 411)),
        ([JSON, (b"content-length", "²".encode("latin-1"))], (400, 411)),
        ([JSON, (b"content-length", b"9" * 5_000)], (400, 411, 413)),
        ([JSON, (b"content-length", str(MAX_BODY + 1).encode())], (413,)),
        ([JSON, (b"transfer-encoding", b"chunked")], (411,)),
        ([JSON, (b"content-length", b"1")], (200, 400, 413)),  # less than is sent
        ([JSON, (b"content-length", str(len(BODY)).encode()), (b"content-length", b"1")], (200, 400, 411)),
        ([(b"content-length", str(len(BODY)).encode()), (b"content-encoding", b"gzip"), JSON], (200, 400, 415, 422)),
        ([(b"content-length", str(len(BODY)).encode()), (b"content-type", b"text/plain")], (400, 415, 422)),
        ([JSON, (b"content-length", str(len(BODY)).encode()), (b"authorization", b"Bearer \xff\x00")], (200,)),
        ([JSON, (b"content-length", str(len(BODY)).encode()), (b"x-forwarded-for", b"a" * 60_000)], (200,)),
        ([JSON, (b"content-length", str(len(BODY)).encode()), (b"host", b"evil\r\nX: y")], (200,)),
    ],
)
def test_headers_neither_break_nor_persuade_the_server(
    app: FastAPI, headers: list[tuple[bytes, bytes]], statuses: tuple[int, ...]
) -> None:
    reply = asyncio.run(ask(app, "POST", "/v1/recommend", headers=headers, chunks=[BODY[:20], BODY[20:]]))
    judge(reply, "/v1/recommend", headers)
    assert reply.status in statuses, reply
    assert "x" not in reply.headers


def test_a_body_longer_than_it_says_is_not_read_without_end(app: FastAPI) -> None:
    headers = [JSON, (b"content-length", b"10")]
    chunk = b" " * 2**16
    chunks = [chunk] * (2 * MAX_BODY // len(chunk))
    reply = asyncio.run(ask(app, "POST", "/v1/recommend", headers=headers, chunks=chunks))
    judge(reply, "/v1/recommend", "a long body")
    assert reply.status in (400, 413, 422)


def test_tokens_are_not_guessed_by_odd_headers(app: FastAPI, tmp_path: Path) -> None:
    service = Service({"item-cf": rich_run("item-cf")}, open_store(f"sqlite:///{tmp_path / 'events.db'}"))
    guarded = make_app(service, tokens=["s3cret"])
    length = (b"content-length", str(len(BODY)).encode())
    for value in (
        b"Bearer",
        b"Bearer ",
        b"Bearer \xff",
        b"Bearer s3cre",
        b"Bearer s3cret\x00",
        b"Basic s3cret",
        b"\xe9",
        b"",
    ):
        reply = asyncio.run(
            ask(guarded, "POST", "/v1/recommend", headers=[JSON, length, (b"authorization", value)], chunks=[BODY])
        )
        assert (reply.status, list(json.loads(reply.body))) == (401, ["error"]), value
    service.close()


def test_unknown_methods_and_paths_are_refused_in_one_line(app: FastAPI) -> None:
    for method, path, status in (
        ("GET", "/v1/recommend", 405),
        ("PATCH", "/v1/items/i03", 405),
        ("GET", "/v1/../etc/passwd", 404),
        ("GET", "//evil.example/v1/models", 404),
        ("GET", "/docs", 404),
        ("BREW", "/v1/models", 405),
    ):
        reply = asyncio.run(ask(app, method, path))
        assert (reply.status, list(json.loads(reply.body))) == (status, ["error"]), (method, path)
