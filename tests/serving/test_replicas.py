"""Replicas by Ray Serve: answers of one server, users stay with their replica, and move if it is killed."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from support.trained_models import rich_run

from nextitem.core.config import write_toml
from nextitem.core.errors import UserError
from nextitem.distributed.ray_cluster import ray_cluster
from nextitem.pipeline.versions import use_version
from nextitem.serving import replicas
from nextitem.serving.app import make_app
from nextitem.serving.config import ServiceConfig
from nextitem.serving.impressions import read_impressions
from nextitem.serving.replicas import REPLICA, Message, Replica, ReplicaSettings
from nextitem.testing.rich_log import SETTINGS, rich_frames

USERS = [f"u{number:02d}" for number in range(40)]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> ReplicaSettings:
    folder = tmp_path_factory.mktemp("rich")
    for name, frame in rich_frames().items():
        frame.write_parquet(folder / f"{name}.parquet")
    write_toml(folder / "dataset.toml", SETTINGS)
    return ReplicaSettings(
        runs={"item-cf": str(rich_run("item-cf").folder)},
        store=f"sqlite:///{folder / 'events.db'}",
        data=str(folder),
        impressions=str(folder / "shown"),
        service=ServiceConfig(deadline_seconds=20),
    )


def message(method: str, path: str, body: object = None) -> Message:
    content = b"" if body is None else json.dumps(body).encode()
    headers = ((b"content-type", b"application/json"), (b"content-length", str(len(content)).encode()))
    return Message((method, path), headers, content)


def test_the_user_of_a_request_is_read_from_its_body() -> None:
    key = replicas.user_key(message("POST", "/v1/recommend", {"user_id": "ada", "k": 3}))
    assert key == replicas.user_key(message("POST", "/v1/rank", {"user_id": "ada"}))
    assert key == replicas.user_key(message("POST", "/v1/events", {"events": [{"user_id": "ada"}, {"user_id": "bo"}]}))
    assert key != replicas.user_key(message("POST", "/v1/recommend", {"user_id": "bo"}))
    assert key is not None
    assert "ada" not in key
    assert replicas.user_key(message("POST", "/v1/recommend", {"user_id": 7})) == replicas.user_key(
        message("POST", "/v1/recommend", {"user_id": "7"})
    )
    for text in (b'{"history": ["a"]}', b'{"user_id": true}', b'{"user_id": ["a"]}', b'{"events": []}', b"[]", b"null"):
        assert replicas.user_key(Message(("POST", "/v1/recommend"), (), text)) is None
    for content in (b"{", b"[" * 100_000, b"\xff", b'{"events": [[' + b"[" * 50_000):
        assert replicas.user_key(Message(("POST", "/v1/events"), (), content)) is None
    surrogate = Message(("POST", "/v1/recommend"), (), rb'{"user_id": "\ud800"}')
    assert replicas.user_key(surrogate) is not None


def test_a_replica_answers_as_the_application(settings: ReplicaSettings) -> None:
    replica = Replica(settings, "r1")
    client = TestClient(make_app(replica.service))
    event = {"event_id": "e1", "user_id": "new", "item_id": "i03", "action": "view"}
    calls: list[tuple[str, str, Any]] = [
        ("POST", "/v1/recommend", {"user_id": "u03", "k": 4}),
        ("POST", "/v1/recommend", {"user_id": "u03", "k": -1}),
        ("POST", "/v1/events", {"events": [event]}),
        ("GET", "/v1/items/i03?model=item-cf", None),
        ("GET", "/v1/items/no%20item", None),
        ("GET", "/openapi.json", None),
        ("GET", "/v1/models", None),
    ]
    for method, path, body in calls:
        expected = client.request(method, path, json=body)
        answer = asyncio.run(replica.answer(message(method, path, body)))
        assert answer.start == expected.status_code
        assert dict(answer.headers)[b"x-nextitem-replica"] == b"r1"
        first, second = json.loads(answer.body), expected.json()
        for each in (first, second):
            if isinstance(each, dict):
                each.pop("request_id", None)
        assert first == second
    long = message("POST", "/v1/recommend")._replace(headers=((b"content-length", b"999999999"),))
    assert asyncio.run(replica.answer(long)).start == 413
    replica.service.close()


def test_a_replica_has_tenants_shadows_weights_and_new_versions(settings: ReplicaSettings, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "shop"
    shutil.copytree(rich_run("popularity").folder, run)
    replica = Replica(
        replace(
            settings,
            runs={"shop": str(run), **settings.runs},
            store=f"sqlite:///{tmp_path / 'events.db'}",
            tokens="plain,shop-b=other",
            impressions=str(tmp_path / "shown"),
            weights={"item-cf": 0.0},
            shadows={"sasrec": str(rich_run("sasrec").folder)},
            shows_users=False,
        ),
        "r1",
    )

    def ask(method: str, path: str, body: object, token: str) -> tuple[Any, Any]:
        request = message(method, path, body)
        authorization = ((b"authorization", f"Bearer {token}".encode()),)

        async def answered() -> Message:
            answer = await replica.answer(request._replace(headers=(*request.headers, *authorization)))
            await replica.service.shadows.finished()
            return answer

        answer = asyncio.run(answered())
        return answer.start, json.loads(answer.body)

    events = {"events": [{"event_id": "e1", "user_id": "ada", "item_id": "i03", "action": "view"}]}
    assert ask("POST", "/v1/events", events, "nobody's")[0] == 401
    assert ask("POST", "/v1/events", events, "plain")[0] == 200
    body = {"user_id": "ada", "k": 3}
    for token, has_history in (("plain", True), ("other", False)):
        status, answer = ask("POST", "/v1/recommend", {**body, "model": "item-cf"}, token)
        assert (status, answer["fallback"]) == (200, not has_history)
    assert {ask("POST", "/v1/recommend", {"user_id": f"n{n}"}, "plain")[1]["model"] for n in range(20)} == {"shop"}
    assert [model["name"] for model in ask("GET", "/v1/models?shadows=true", None, "plain")[1]] == [
        "shop",
        "item-cf",
        "sasrec",
    ]
    assert ask("GET", "/v1/users", None, "plain")[0] == 403
    page = asyncio.run(replica.answer(message("GET", "/")))
    assert page.start == 200
    assert b"content-security-policy" in dict(page.headers)
    shutil.copytree(rich_run("item-cf").folder, run / "versions" / "2")
    use_version(run, "2")
    replica.service.look_for_versions()
    deadline = time.monotonic() + 30
    while ask("GET", "/v1/models", None, "plain")[1][0]["version_name"] != "2":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    replica.service.close()
    folder = tmp_path / "shown" / f"{socket.gethostname()}-0"
    for log, user in ((folder, "ada"), (folder / "tenants" / "shop_b", "ada"), (folder / "shadow", "n0")):
        assert user in set(read_impressions(log)["user_id"])


def test_a_user_counts_as_deleted_only_if_all_replicas_say_so() -> None:
    def answer(count: int) -> Message:
        return Message(200, (), json.dumps({"deleted_events": count}).encode())

    both = replicas.merged_deletions([answer(3), answer(0)], 2)
    assert (both.start, json.loads(both.body)) == (200, {"deleted_events": 3})
    one = replicas.merged_deletions([answer(3)], 2)
    assert one.start == 503
    assert "1 of 2 replicas" in json.loads(one.body)["error"]
    refused = replicas.merged_deletions([answer(3), Message(401, (), b"{}")], 2)
    assert refused.start == 401


def test_metrics_of_replicas_are_told_apart() -> None:
    page = b'# HELP a_total Requests.\n# TYPE a_total counter\na_total{path="/x"} %d\n'
    pages = [Message(200, ((REPLICA.encode(), name),), page % n) for name, n in ((b"r1", 3), (b"r2", 4))]
    lines = replicas.merged_metrics(pages).body.decode().splitlines()
    assert lines.count("# TYPE a_total counter") == 1
    assert {'a_total{path="/x",replica="r1"} 3.0', 'a_total{path="/x",replica="r2"} 4.0'} <= set(lines)


def test_a_store_that_replicas_cannot_share_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert replicas.check_store("sqlite:///a.db", num_replicas=2, num_machines=1) == f"sqlite:///{tmp_path}/a.db"
    assert replicas.check_store("redis://db:6379/0", num_replicas=2, num_machines=9) == "redis://db:6379/0"
    with pytest.raises(UserError, match="a file is shared by the processes of one machine, and the cluster has 2"):
        replicas.check_store("sqlite:///a.db", num_replicas=2, num_machines=2)
    with pytest.raises(UserError, match="each replica would have events of its own"):
        replicas.check_store("sqlite:///:memory:", num_replicas=2, num_machines=1)


def test_each_process_has_a_folder_that_its_successor_takes_over(tmp_path: Path) -> None:
    first, lock = replicas.unshared_folder(tmp_path)
    second, other = replicas.unshared_folder(tmp_path)
    assert first != second
    lock.close()
    assert replicas.unshared_folder(tmp_path)[0] == first
    other.close()


class _Front:
    """Client of the door that counts which replica answers."""

    def __init__(self, address: str) -> None:
        self.address = address

    def ask(self, path: str, body: object = None, method: str = "POST") -> tuple[str, Any]:
        """Return the replica and the JSON of an answer."""
        content = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(content or b""))}
        request = urllib.request.Request(f"{self.address}{path}", content, headers, method=method)
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.headers[REPLICA], json.load(response)

    def delete(self, user: str) -> tuple[int, Any]:
        """Return status and JSON of the answer to the deletion of a user."""
        try:
            return 200, self.ask(f"/v1/users/{user}", method="DELETE")[1]
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def replica_of(self) -> dict[str, str]:
        """Return the replica that answers each user."""
        return {user: self.ask("/v1/recommend", {"user_id": user, "k": 2})[0] for user in USERS}


@pytest.fixture
def front(settings: ReplicaSettings) -> Iterator[tuple[_Front, Any]]:
    """Start two replicas, and yield a client of their door and the handle of the replicas."""
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with ray_cluster(num_cpus=4) as ray:
        from ray import serve

        replicas.start_replicas(ray, settings, num_replicas=2, host="127.0.0.1", port=port)
        yield _Front(f"http://127.0.0.1:{port}"), serve.get_deployment_handle("Replica", replicas.NAME)
        serve.shutdown()


@pytest.mark.slow
def test_two_replicas_answer_as_one_server_and_survive_a_kill(
    front: tuple[_Front, Any], settings: ReplicaSettings
) -> None:
    client, handle = front
    plain = Replica(settings, "plain")
    for user in USERS[:10]:
        body = {"user_id": user, "k": 5}
        expected = json.loads(asyncio.run(plain.answer(message("POST", "/v1/recommend", body))).body)
        _, answer = client.ask("/v1/recommend", body)
        assert answer["items"] == expected["items"]
    before = client.replica_of()
    assert client.replica_of() == before  # a user stays with a replica
    assert len(set(before.values())) == 2
    anybody = {client.ask("/v1/recommend", {"history": ["i03"], "k": 1})[0] for _ in range(20)}
    assert anybody == set(before.values())

    event = {"event_id": "r1", "user_id": "u00", "item_id": "i05", "action": "buy"}
    assert client.ask("/v1/events", {"events": [event]})[1]["accepted"] == 1
    expected = json.loads(asyncio.run(plain.answer(message("POST", "/v1/recommend", {"user_id": "u00"}))).body)
    assert client.ask("/v1/recommend", {"user_id": "u00"})[1]["items"] == expected["items"]
    for place, words in (("/", b"<!doctype html>"), ("/playground/main.js", b"function")):
        with urllib.request.urlopen(f"{client.address}{place}", timeout=60) as response:
            assert words in response.read()
    answers = [client.ask("/v1/traffic", method="GET") for _ in range(6)]
    assert len({replica for replica, _ in answers}) == 1  # whose numbers go on from call to call
    with pytest.raises(urllib.error.HTTPError, match="404"):
        client.ask("/nothing", method="GET")
    with pytest.raises(urllib.error.HTTPError, match="422"):
        client.ask("/v1/recommend", {"user_id": "u00", "k": "many"})

    pids = dict(handle.broadcast("process").results(timeout_s=30))
    dead = before["u00"]
    os.kill(pids[dead], signal.SIGKILL)
    started = time.monotonic()
    after = client.replica_of()
    assert dead not in after.values()  # its users are answered all the same
    assert all(after[user] == name for user, name in before.items() if name != dead)  # and the others stay
    assert time.monotonic() - started < 30
    deadline, status = time.monotonic() + 60, 503
    while status == 503:  # until the dead replica is replaced, a user cannot be deleted everywhere
        assert time.monotonic() < deadline
        status, deleted = client.delete("u00")
        time.sleep(0.5)
    assert status == 200
    assert deleted["deleted_events"] <= 1
    assert plain.service.store.histories(["u00"], limit=10) == {"u00": []}
    plain.service.close()
