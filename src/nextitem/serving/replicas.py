"""Replicas of a server by Ray Serve: several processes, also on several machines, answer one HTTP API.

A door reads each request just far enough to know its user, and sends it to the replica of that user: consistent hashing
keeps a user with a replica as long as it lives, so its last lists and the states that it keeps are of use, and moves
only the users of a replica that ends. Requests without a user go to any replica. All replicas share the store of
events, so the answer to a user does not depend on the replica. Deletion of a user reaches all of them.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

from nextitem.core.errors import UserError
from nextitem.distributed.ray_cluster import ray_cluster
from nextitem.serving.config import ServiceConfig
from nextitem.serving.logs import start_line

if TYPE_CHECKING:
    from nextitem.serving.updater import Updates

NAME = "nextitem"
ROUTER = "ray.serve.experimental.consistent_hash_router:ConsistentHashRouter"
NUM_TRIES = 5  # with which a request whose replica has ended is sent again
TRAFFIC = "/v1/traffic"
REPLICA = "x-nextitem-replica"  # header of answers: the replica


@dataclass(frozen=True)
class ReplicaSettings:
    """What each replica loads.

    Attributes:
        runs: absolute folders of the runs, by the names of their models.
        store: URL of the store of events.
        namespace: name of the tenant in the store.
        data: folder of the data set with the histories; None: that of the run.
        tokens: bearer tokens that are accepted, as in NEXTITEM_TOKENS; empty: everybody may ask.
        impressions: folder of the logs of shown lists; None: no log.
        is_synced: whether a list is on disk before it is returned.
        device: where the models compute: auto, cpu or cuda.
        service: settings of the service.
        weights: shares of the users by model; the others share the rest.
        shadows: absolute folders of the runs that get copies of requests, by name.
        shows_users: whether the page may read ids of users and their histories.

    """

    runs: Mapping[str, str]
    store: str
    namespace: str = "default"
    data: str | None = None
    tokens: str = ""
    impressions: str | None = None
    is_synced: bool = False
    device: str = "cpu"
    service: ServiceConfig = field(default_factory=ServiceConfig)
    weights: Mapping[str, float] = field(default_factory=dict)
    shadows: Mapping[str, str] = field(default_factory=dict)
    shows_users: bool = True


class Message(NamedTuple):
    """A request or an answer of HTTP, as far as door and replicas exchange it.

    Attributes:
        start: method and path with its query, or the status.
        headers: names in lower case, and values.
        body: the body.

    """

    start: tuple[str, str] | int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


class Replica:
    """One process that serves the whole API: models, batches, and a connection to the store."""

    def __init__(self, settings: ReplicaSettings, replica_id: str | None = None) -> None:
        """Load the runs, open the store, and answer one request with each model."""
        from nextitem.pipeline.runs import Run, load_run
        from nextitem.serving.app import make_app
        from nextitem.serving.garbage import settle
        from nextitem.serving.service import Service
        from nextitem.serving.tenants import Tokens, open_tenant

        def open_run(folder: Path) -> Run:
            run = load_run(folder, device=settings.device)
            return run if settings.data is None else run.use_data(settings.data)

        tokens, lists = Tokens(settings.tokens, default=settings.namespace), None
        if settings.impressions is not None:
            lists, self._lock = unshared_folder(Path(settings.impressions))
        tenants = [
            open_tenant(
                settings.store,
                name,
                lists,
                is_synced=settings.is_synced,
                has_shadows=bool(settings.shadows),
                is_default=not number,
            )
            for number, name in enumerate(tokens.tenants())
        ]
        self.service = Service(
            {name: open_run(Path(folder)) for name, folder in settings.runs.items()},
            tenants,
            settings.service,
            weights=settings.weights,
            shadows={name: open_run(Path(folder)) for name, folder in settings.shadows.items()},
        )
        self.service.warm_up()
        places = {**settings.runs, **settings.shadows}
        self.service.watch({name: Path(folder) for name, folder in places.items()}, open_run)
        self.app = make_app(self.service, tokens=tokens, shows_users=settings.shows_users)
        settle()
        self.id = replica_id or _own_id()

    async def answer(self, request: Message) -> Message:
        """Return the answer of the application to a request."""
        answer = await asgi_answer(self.app, request)
        return answer._replace(headers=(*answer.headers, (REPLICA.encode(), self.id.encode())))

    def process(self) -> tuple[str, int]:
        """Return the id of the replica and that of its process."""
        return self.id, os.getpid()

    def __del__(self) -> None:
        """Close the service when Ray Serve stops the replica."""
        if hasattr(self, "service"):
            self.service.close()


class Door:
    """Entrance of the API, which sends each request to the replica of its user."""

    def __init__(self, replicas: Any, num_replicas: int) -> None:
        """Create the door.

        Args:
            replicas: handle of the deployment of `Replica`.
            num_replicas: number of replicas of which a user must be deleted.

        """
        self.replicas, self.num_replicas = replicas, num_replicas

    async def __call__(self, request: Any) -> Any:
        """Answer a request of Starlette."""
        from starlette.responses import Response

        answer = await self._answer(await _message(request))
        assert isinstance(answer.start, int)
        response = Response(answer.body, answer.start)
        response.raw_headers = list(answer.headers)
        return response

    async def _answer(self, request: Message) -> Message:
        method, path = request.start  # type: ignore[misc]
        place = path.partition("?")[0]
        if method == "DELETE" or place == "/metrics":
            answers = await self.replicas.broadcast("answer", request).results_async(return_exceptions=True)
            answers = [answer for answer in answers if isinstance(answer, Message)]
            if place == "/metrics":
                return merged_metrics(answers)
            return merged_deletions(answers, self.num_replicas)
        # The latest answers are numbered by each replica, so a page that follows them asks always the same one.
        return await self._from_one(request, TRAFFIC if place == TRAFFIC else user_key(request))

    async def _from_one(self, request: Message, key: str | None) -> Message:
        """Return the answer of the replica of a user, or of any; if it ends meanwhile, that of another."""
        from ray.exceptions import RayError, RayTaskError

        replicas = self.replicas if key is None else self.replicas.options(session_id=key)
        for number in range(NUM_TRIES):
            try:
                answer: Message = await replicas.answer.remote(request)
                return answer
            except RayTaskError:
                raise
            except RayError:
                await asyncio.sleep(0.1 * number)
        return problem(503, "no replica answers; try again")


def user_key(request: Message) -> str | None:
    """Return a hash of the user of a request, or None if it names none.

    Of a call with several events it is the user of the first one. The id itself would end up in logs of Ray.
    """
    try:
        body = json.loads(request.body)
        if isinstance(body, dict) and isinstance(body.get("events"), list):
            body = body["events"][0]
        user = body.get("user_id") if isinstance(body, dict) else None
    except (ValueError, RecursionError, IndexError):
        return None
    if not isinstance(user, str | int) or isinstance(user, bool):
        return None
    return hashlib.blake2b(str(user).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def merged_deletions(answers: Sequence[Message], num_replicas: int) -> Message:
    """Return the answer to the deletion of a user: done only if all replicas have done it."""
    for answer in answers:
        if answer.start != 200:
            return answer
    if len(answers) < num_replicas:
        what = f"{len(answers)} of {num_replicas} replicas have deleted the user; repeat the call until all have"
        return replace_headers(problem(503, what), (b"retry-after", b"5"))
    total = sum(json.loads(answer.body)["deleted_events"] for answer in answers)
    return answers[0]._replace(body=json.dumps({"deleted_events": total}).encode(), headers=JSON_HEADERS)


def merged_metrics(answers: Sequence[Message]) -> Message:
    """Return the metrics of all replicas as one page, with a label for the replica."""
    from prometheus_client import CollectorRegistry, Metric, generate_latest
    from prometheus_client.parser import text_string_to_metric_families

    families: dict[str, Any] = {}
    for answer in answers:
        replica = dict(answer.headers)[REPLICA.encode()].decode()
        for family in text_string_to_metric_families(answer.body.decode()):
            merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                merged.add_sample(sample.name, {**sample.labels, "replica": replica}, sample.value)

    class Collector:
        def collect(self) -> list[Any]:
            """Return the families of all replicas."""
            return list(families.values())

    registry = CollectorRegistry()
    registry.register(Collector())
    headers = ((b"content-type", b"text/plain; version=0.0.4; charset=utf-8"),)
    return Message(200, headers, generate_latest(registry))


JSON_HEADERS = ((b"content-type", b"application/json"),)


def problem(status: int, text: str) -> Message:
    """Return an answer that says what is wrong, in the form of the API."""
    return Message(status, JSON_HEADERS, json.dumps({"error": text}).encode())


def replace_headers(message: Message, *more: tuple[bytes, bytes]) -> Message:
    """Return a message with further headers."""
    return message._replace(headers=(*message.headers, *more))


async def asgi_answer(app: Callable[..., Any], request: Message) -> Message:
    """Return the answer of an ASGI application to a request, in this process."""
    method, path = request.start  # type: ignore[misc]
    place, _, query = path.partition("?")
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "root_path": "",
        "method": method, "path": unquote(place), "raw_path": place.encode(), "query_string": query.encode(),
        "headers": [*request.headers], "client": None, "server": None,
    }  # fmt: skip
    is_sent = False
    start: dict[str, Any] = {"status": 500, "headers": []}
    parts: list[bytes] = []

    async def receive() -> dict[str, Any]:
        nonlocal is_sent
        if is_sent:
            await asyncio.Event().wait()  # the client stays until the answer is complete
        is_sent = True
        return {"type": "http.request", "body": request.body, "more_body": False}

    async def send(event: dict[str, Any]) -> None:
        if event["type"] == "http.response.start":
            start.update(event)
        else:
            parts.append(event.get("body", b""))

    await app(scope, receive, send)
    return Message(
        start["status"], tuple((bytes(name), bytes(value)) for name, value in start["headers"]), b"".join(parts)
    )


async def _message(request: Any) -> Message:
    """Return a request of Starlette; a body that the application will refuse by its length is not read."""
    from nextitem.serving.gate import MAX_BODY

    length = request.headers.get("content-length")
    is_short = length is not None and length.isdigit() and int(length) <= MAX_BODY
    body = await request.body() if is_short else b""
    path = request.scope["raw_path"].decode("latin-1") + (f"?{request.url.query}" if request.url.query else "")
    return Message((request.method, path), tuple(request.headers.raw), body)


def unshared_folder(root: Path) -> tuple[Path, Any]:
    """Return a folder below `root` that no other process of this machine uses, and the open file that locks it.

    A process that is started in place of one that has ended takes over its folder.
    """
    for number in count():
        folder = root / f"{socket.gethostname()}-{number}"
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
        else:
            return folder, lock
    raise AssertionError("numbers never end")


def check_store(url: str, *, num_replicas: int, num_machines: int) -> str:
    """Return the URL of a store that all replicas can share, with an absolute path.

    Raises:
        UserError: the store is in the memory of one process, or a file, and there are several machines.

    """
    if not url.startswith("sqlite:"):
        return url
    if url == "sqlite:///:memory:" and num_replicas > 1:
        raise UserError(f"store {url}: each replica would have events of its own; write sqlite:///FILE or redis://...")
    if num_machines > 1:
        raise UserError(
            f"store {url}: a file is shared by the processes of one machine, and the cluster has {num_machines}; "
            "write redis://... or postgresql://..."
        )
    path = url.removeprefix("sqlite:///")
    return f"sqlite:///{path if path == ':memory:' else Path(path).absolute()}"


def start_replicas(ray: Any, settings: ReplicaSettings, *, num_replicas: int, host: str, port: int) -> Any:
    """Start door and replicas on a connected cluster, and return the handle of the door when all replicas are ready.

    Raises UserError if the replicas cannot share the store, or do not start.
    """
    from ray import serve
    from ray.serve.config import RequestRouterConfig
    from ray.serve.schema import LoggingConfig

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    num_machines = sum(node["Alive"] for node in ray.nodes())
    store = check_store(settings.store, num_replicas=num_replicas, num_machines=num_machines)
    settings = replace(settings, store=store)
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)  # paths contain ids of users
    serve.start(http_options={"host": host, "port": port, "location": "EveryNode"}, logging_config=quiet)
    limit = len(settings.runs) * settings.service.max_queue + 100  # the service itself refuses what is too much
    replicas = serve.deployment(
        Replica,
        num_replicas=num_replicas,
        max_ongoing_requests=limit,
        request_router_config=RequestRouterConfig(request_router_class=ROUTER),
        ray_actor_options={"num_cpus": 1},
        health_check_period_s=2,
        logging_config=quiet,
    )
    door = serve.deployment(
        Door, max_ongoing_requests=limit * num_replicas, ray_actor_options={"num_cpus": 0}, logging_config=quiet
    )
    try:
        return serve.run(door.bind(replicas.bind(settings), num_replicas), name=NAME, route_prefix="/")
    except RuntimeError as error:  # Ray reports only the text of what the replicas raised
        states = [state for app in serve.status().applications.values() for state in app.deployments.values()]
        causes = [line for state in states for line in state.message.splitlines() if "Error: " in line]
        serve.shutdown()
        raise UserError(
            f"the replicas did not start: {causes[-1].rpartition('Error: ')[2] if causes else error}"
        ) from None


def serve_replicas(
    settings: ReplicaSettings,
    *,
    num_replicas: int,
    host: str,
    port: int,
    log: Callable[[str], None],
    updates: Updates | None = None,
) -> None:
    """Serve until the process is told to stop (SIGINT, SIGTERM).

    Args:
        settings: what each replica loads.
        num_replicas: number of replicas.
        host: address to listen at.
        port: port to listen at.
        log: function that is called with each message.
        updates: what this process updates meanwhile; the replicas take new versions into use. None: nothing.

    Raises:
        UserError: Ray is not installed, or the replicas cannot share the store.

    """
    with ray_cluster(num_cpus=max(num_replicas, os.cpu_count() or 1)) as ray:
        from ray import serve

        log(f"{num_replicas} replicas load {', '.join(settings.runs)} ...")
        start_replicas(ray, settings, num_replicas=num_replicas, host=host, port=port)
        log(start_line(", ".join(settings.runs), host=host, port=port))
        updater = None if updates is None else updates.updater(settings.store, namespace=settings.namespace)
        if updater is not None:
            updater.start()
        stopped = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopped.set())
        stopped.wait()
        if updater is not None:
            updater.stop()
        serve.shutdown()


def _own_id() -> str:
    """Return the id that Ray Serve has given to this replica."""
    from ray import serve

    return str(serve.get_replica_context().replica_id.unique_id)
