"""The routes behind the playground: its files, search, columns, the tree of semantic IDs, users and traffic."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from fastapi.testclient import TestClient
from support.trained_models import rich_run

from nextitem.core.catalog import Catalog
from nextitem.core.identifiers import IdentifierTable
from nextitem.core.ids import IdMap
from nextitem.serving.app import make_app
from nextitem.serving.config import ServiceConfig
from nextitem.serving.impressions import ImpressionLog
from nextitem.serving.playground.catalogue import CatalogueView
from nextitem.serving.service import Service
from nextitem.serving.stores import StoreUnavailable, open_store

PAGE = files("nextitem.serving.playground") / "page"
HOSTILE = '<img src=x onerror="document.title=1">'


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("playground")
    runs = {name: rich_run(name) for name in ("item-cf", "tiger")}
    new_service = Service(runs, open_store(f"sqlite:///{folder / 'events.db'}"), ServiceConfig(deadline_seconds=20))
    yield new_service
    new_service.close()


@pytest.fixture(scope="module")
def client(service: Service) -> TestClient:
    return TestClient(make_app(service))


def view_of(columns: dict[str, list[Any]], codes: list[list[int]] | None = None) -> CatalogueView:
    """Return the view of a catalogue of these columns, whose first item is the most popular, the last the least."""

    class Model:
        popularity = torch.arange(len(columns["item_id"]) + 1, 0, -1).float()

    catalog = Catalog(IdMap(pl.Series("item_id", columns["item_id"])), pl.DataFrame(columns))
    if codes is not None:
        table = IdentifierTable.from_item_codes(
            torch.tensor(codes), codebook_sizes=(4, 4), catalog_fingerprint=catalog.fingerprint
        )
        catalog = catalog.with_identifiers(table)
    model: Any = Model()
    model.catalog = catalog
    return CatalogueView(model)


def test_the_page_and_its_sourcesload_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    names = {name.rpartition("/")[2] for name in re.findall(r'(?:src|href)="(playground/[^"]+)"', page.text)}
    for name in sorted(names | {file.name for file in PAGE.iterdir()} - {"index.html"}):
        answer = client.get(f"/playground/{name}")
        assert answer.status_code == 200, name
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';")
        assert "unsafe" not in policy
        assert "http" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        without_names = answer.text.replace("http://www.w3.org/2000/svg", "")  # the name of a vocabulary, never loaded
        assert not re.search(r"https?://|//cdn|@import|\burl\(", without_names), name
        imports = re.findall(r'from "(.+?)"', answer.text)
        assert all((PAGE / target).is_file() for target in imports), name
        again = client.get(f"/playground/{name}", headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "path", ["nothing.js", "..%2f..%2fapp.py", "%2e%2e/routes.py", "../../app.py", "/etc/passwd", "main.js/", "%00"]
)
def test_only_sourcesof_the_page_are_served(client: TestClient, path: str) -> None:
    answer = client.get(f"/playground/{path}", follow_redirects=False)
    assert answer.status_code in (307, 404)
    assert "import" not in answer.text


def test_scripts_never_read_text_as_html() -> None:
    scripts = {file.name: file.read_text("utf-8") for file in PAGE.iterdir() if file.name.endswith(".js")}
    unsafe = re.compile(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function|setTimeout\(['\"]")
    assert [name for name, text in scripts.items() if unsafe.search(text)] == []
    assert not re.search(r"\son\w+=|style=|<script>(?!</script>)", (PAGE / "index.html").read_text("utf-8"))


def test_both_languages_have_every_text_that_is_used() -> None:
    def keys(language: str) -> set[str]:
        text = (PAGE / f"text.{language}.js").read_text("utf-8")
        return {quoted or bare for quoted, bare in re.findall(r'^ {2}(?:"(.+?)"|(\w+)): "', text, re.M)}

    english, chinese = keys("en"), keys("zh")
    assert {key for key in english if not key.endswith(".one")} == chinese
    sources = [file for file in PAGE.iterdir() if file.name.endswith((".js", ".html"))]
    scripts = "".join(file.read_text("utf-8") for file in sources if not re.match(r"text\.(en|zh)", file.name))
    used = set(re.findall(r'\bt\("([^"]+)"', scripts)) | set(re.findall(r'data-(?:text|label)="([^"]+)"', scripts))
    assert used <= english
    unused = [key for key in chinese if f'"{key}"' not in scripts and f"`{key.rpartition('.')[0]}.$" not in scripts]
    assert unused == []


def test_search_requires_every_word_and_lists_the_most_popular_first() -> None:
    view = view_of({"item_id": ["b1", "a2", "c3", "d4"], "title": ["Red tent", "Tent, RED", "Ü-tent", None]})
    for text, expected in [
        ("tent", ["b1", "a2", "c3"]),
        ("RED tent", ["b1", "a2"]),
        ("ü", ["c3"]),
        ("a2", ["a2"]),
        ("d4", ["d4"]),
        ("", ["b1", "a2", "c3", "d4"]),
        (".*", []),
        ("red nothing", []),
    ]:
        items, num_matches = view.search(text, 10)
        assert ([item.item_id for item in items], num_matches) == (expected, len(expected))
    items, num_matches = view.search("tent", 2)
    assert ([item.item_id for item in items], num_matches) == (["b1", "a2"], 3)


def test_columns_are_cut_to_what_a_page_can_show() -> None:
    view = view_of(
        {
            "item_id": [1, 2, 3],
            "price": [1.5, float("nan"), None],
            "tags": [["a", "b"], ["a"], []],
            "vector": [[0.5, 1.0], [0.0, 0.0], [1.0, 1.0]],
            "text": ["x" * 1000, "y", HOSTILE],
            "is_new": [True, False, False],
            "same": ["z", "z", "z"],
        }
    )
    first, second, third = view.lookup(["1", " 2", "unknown", "3"])
    assert first.columns["price"] == 1.5
    assert second.columns["price"] is None
    assert first.columns["tags"] == ["a", "b"]
    assert first.columns["vector"] is None
    text = first.columns["text"]
    assert isinstance(text, str)
    assert (len(text), text[-1]) == (300, "…")
    assert third.columns["text"] == HOSTILE
    values = {column.name: column.values for column in view.columns}
    assert values["tags"] == ["a", "b"]
    assert values["is_new"] == ["false", "true"]
    assert set(values) == {"tags", "is_new", "text"}


def test_the_tree_is_walked_by_prefixes() -> None:
    codes = [[3, 1], [0, 2], [3, 0], [3, 1]]
    view = view_of({"item_id": [11, 12, 13, 14], "title": ["a", "b", "c", "d"]}, codes)
    root = view.prefix("m", [])
    assert (root.num_items, root.num_levels, root.items) == (4, 2, [])
    assert [(child.codes, child.num_items, child.titles) for child in root.children] == [
        ([0], 1, ["b"]),
        ([3], 3, ["a", "c", "d"]),
    ]
    assert [(child.codes, child.num_items) for child in view.prefix("m", [3]).children] == [([3, 0], 1), ([3, 1], 2)]
    leaf = view.prefix("m", [3, 1])
    assert ([item.item_id for item in leaf.items], leaf.children, leaf.num_items) == ([11, 14], [], 2)
    assert leaf.items[0].codes == [3, 1]


def test_every_item_is_reached_in_the_tree_of_a_model(client: TestClient, service: Service) -> None:
    reached: list[Any] = []

    def walk(codes: list[int]) -> int:
        prefix = client.get("/v1/prefixes", params={"model": "tiger", "codes": ",".join(map(str, codes))}).json()
        reached.extend(item["item_id"] for item in prefix["items"])
        below = sum(walk(child["codes"]) for child in prefix["children"]) + len(prefix["items"])
        assert below == prefix["num_items"]
        return below

    catalog = service.models["tiger"].run.model.catalog
    assert walk([]) == catalog.num_items
    assert sorted(reached) == sorted(catalog.ids.external)


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("prefixes?model=tiger&codes=99999", 400, "no semantic ID begins with 99999"),
        ("prefixes?model=tiger&codes=0,0,0,0,0,0,0,0", 400, "no semantic ID begins with"),
        ("prefixes?model=tiger&codes=a", 422, "codes"),
        ("prefixes?model=tiger&codes=-1", 422, "codes"),
        ("prefixes?model=item-cf", 400, "no semantic IDs"),
        ("prefixes?model=nothing", 400, "no model is called"),
        ("items?model=nothing", 400, "no model is called"),
        ("items?limit=0", 422, "limit"),
        ("items?limit=1000", 422, "limit"),
        ("items?search=" + "x" * 201, 422, "search"),
        ("columns?model=nothing", 400, "no model is called"),
        ("users?limit=101", 422, "limit"),
        ("users/u03/history?limit=0", 422, "limit"),
        ("traffic?after=-1", 422, "after"),
    ],
)
def test_mistakes_have_a_status_and_one_line(client: TestClient, path: str, status: int, words: str) -> None:
    answer = client.get(f"/v1/{path}")
    assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert words in answer.json()["error"]


@pytest.mark.parametrize("text", ["%00", "%ff%fe", "%ed%a0%80", "(((", "[a-", "\\", "%F0%9F%98%80", "+" * 100])
def test_hostile_queries_never_break_the_server(client: TestClient, text: str) -> None:
    for path in (
        f"items?search={text}",
        f"items?item_id={text}",
        f"users?search={text}",
        f"users/{text or 'x'}/history",
    ):
        assert client.get(f"/v1/{path}").status_code in (200, 404), path
    assert client.get(f"/v1/prefixes?model=tiger&codes={text}").status_code in (400, 422)


def test_items_are_searched_and_looked_up(client: TestClient) -> None:
    answer = client.get("/v1/items", params={"search": "tent", "limit": 2, "model": "tiger"}).json()
    assert (answer["model"], answer["num_matches"], len(answer["items"])) == ("tiger", 4, 2)
    assert all("tent" in item["title"] and item["columns"]["category"] == "tent" for item in answer["items"])
    answer = client.get("/v1/items", params={"item_id": ["i05", "nothing", "i03"]}).json()
    assert [item["item_id"] for item in answer["items"]] == ["i05", "i03"]
    columns = client.get("/v1/columns").json()
    assert {column["name"]: sorted(column["values"]) for column in columns} == {
        "category": ["kettle", "tent", "violin"]
    }


def test_models_say_what_a_request_can_change(client: TestClient) -> None:
    models = {model["name"]: model for model in client.get("/v1/models").json()}
    assert models["item-cf"]["num_levels"] is None
    assert models["tiger"]["num_levels"] == rich_run("tiger").model.catalog.identifiers.num_levels  # type: ignore[union-attr]
    assert [models[name]["has_guide"] for name in ("item-cf", "tiger")] == [False, False]


def test_a_history_is_what_the_model_reads(client: TestClient, service: Service) -> None:
    run = rich_run("item-cf")
    before = client.get("/v1/users/u03/history", params={"model": "item-cf"}).json()
    log, user = run.dataset.interactions, int(run.dataset.users.ids.lookup(["u03"])[0])
    rows = np.flatnonzero((log.user_ids == user) & (log.item_ids > 0))
    assert [event["item_id"] for event in before["events"]] == run.model.catalog.ids.decode(
        log.item_ids[rows]
    ).to_list()
    assert before["num_events"] == len(rows)
    assert [event["timestamp"] for event in before["events"]] == log.timestamps[rows].tolist()  # type: ignore[index]
    assert {event["action"] for event in before["events"]} <= {"buy", "view", "return"}
    event = {"event_id": "e1", "user_id": "u03", "item_id": "i07", "action": "view"}
    assert client.post("/v1/events", json={"events": [event]}).status_code == 200
    after = client.get("/v1/users/u03/history", params={"model": "item-cf", "limit": 2}).json()
    assert after["num_events"] == before["num_events"] + 1
    assert [event["item_id"] for event in after["events"]] == [before["events"][-1]["item_id"], "i07"]
    assert (after["events"][-1]["title"], after["events"][-1]["action"]) == ("kettle steel model7", "view")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service.store, "histories", _fail)
        assert client.get("/v1/users/u03/history", params={"model": "item-cf"}).json() == before
    assert client.get("/v1/users/nobody/history").json()["events"] == []
    assert client.delete("/v1/users/u03").status_code == 200
    assert client.get("/v1/users/u03/history", params={"model": "item-cf"}).json()["num_events"] == 0
    assert "u03" not in client.get("/v1/users", params={"search": "u0"}).json()["users"]


def _fail(*_: Any, **__: Any) -> None:
    raise StoreUnavailable("the store is down")


def test_users_are_listed_by_their_beginning(client: TestClient) -> None:
    assert client.get("/v1/users", params={"search": "u1"}).json()["users"] == [f"u{n}" for n in range(10, 20)]
    assert client.get("/v1/users", params={"limit": 3}).json()["users"] == ["u00", "u01", "u02"]
    assert client.get("/v1/users", params={"search": "^u"}).json()["users"] == []


def test_data_need_the_token_and_users_may_be_hidden(service: Service) -> None:
    paths = ["items", "columns", "prefixes?model=tiger", "users", "users/u03/history", "traffic"]
    client = TestClient(make_app(service, tokens=["s3cret"]))
    assert [client.get(f"/v1/{path}").status_code for path in paths] == [401] * len(paths)
    header = {"Authorization": "Bearer s3cret"}
    assert [client.get(f"/v1/{path}", headers=header).status_code for path in paths] == [200] * len(paths)
    assert [client.get(path).status_code for path in ("/", "/playground/main.js")] == [200, 200]
    client = TestClient(make_app(service, shows_users=False))
    assert [client.get(f"/v1/{path}").status_code for path in paths] == [200, 200, 200, 403, 403, 200]


def test_traffic_contains_the_latest_answers_and_nobody(service: Service) -> None:
    client = TestClient(make_app(service))
    assert client.get("/v1/traffic").json() == []
    list_body = {"user_id": "u05", "k": 5, "model": "item-cf"}
    first = client.post("/v1/recommend", json=list_body).json()
    client.post("/v1/rank", json={"user_id": "stranger", "candidates": ["i01", "i02"], "model": "tiger"})
    client.post("/v1/recommend", json={"history": ["nothing"]})
    answers = client.get("/v1/traffic").json()
    assert [(answer["number"], answer["route"], answer["model"]) for answer in answers] == [
        (1, "recommend", "item-cf"),
        (2, "rank", "tiger"),
    ]
    assert answers[0]["titles"] == [item["title"] for item in first["items"][:3]]
    assert (answers[0]["num_items"], answers[0]["fallback_reason"], answers[1]["fallback_reason"]) == (
        5,
        None,
        "no history",
    )
    assert 0 < answers[0]["milliseconds"] < 60_000
    assert client.get("/v1/traffic", params={"after": 1}).json() == answers[1:]
    assert client.get("/v1/traffic", params={"limit": 1}).json() == answers[1:]
    text = client.get("/v1/traffic").text
    assert not any(word in text for word in ("u05", "stranger", first["request_id"]))


def test_a_view_follows_its_model(service: Service) -> None:
    client = TestClient(make_app(service))
    assert client.get("/v1/items", params={"search": "i03"}).json()["items"][0]["title"] == "tent canvas model3"
    model = service.models["item-cf"]
    catalog = model.engine.model.catalog
    table = catalog.table.with_columns(pl.lit(HOSTILE).alias("title"))

    class Renamed:
        popularity = model.engine.model.popularity

    renamed: Any = Renamed()
    renamed.catalog = replace(catalog, table=table)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.engine, "model", renamed)
        answer = client.get("/v1/items", params={"search": "i03"})
    assert answer.json()["items"][0]["title"] == HOSTILE
    assert answer.headers["content-type"] == "application/json"


def test_the_page_is_part_of_the_wheel() -> None:
    declared = (Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8")
    assert '"serving/playground/page/*"' in declared


@pytest.mark.parametrize("scheme", [0, 1])
def test_texts_have_enough_contrast(scheme: int) -> None:
    """The ratio of WCAG 2: at least 4.5 for texts, and 3 for the frames of fields and buttons."""
    style = (PAGE / "style.css").read_text("utf-8")
    pairs = dict(re.findall(r"--([\w-]+): light-dark\((#\w+, #\w+)\)", style))
    colours = {name: pair.split(", ")[scheme] for name, pair in pairs.items()}

    def luminance(name: str) -> float:
        parts = [int(colours[name][place : place + 2], 16) / 255 for place in (1, 3, 5)]
        red, green, blue = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    def ratio(first: str, second: str) -> float:
        darker, lighter = sorted([luminance(first), luminance(second)])
        return (lighter + 0.05) / (darker + 0.05)

    texts = [(text, ground) for text in ("ink", "soft", "accent", "warn") for ground in ("paper", "raised", "wash")]
    too_weak = [pair for pair in [*texts, ("on-accent", "accent")] if ratio(*pair) < 4.5]
    assert too_weak == []
    assert [ground for ground in ("paper", "raised") if ratio("strong-line", ground) < 3] == []


def test_a_preview_is_no_impression(tmp_path: Path) -> None:
    log = ImpressionLog(tmp_path / "log", is_synced=True)
    service = Service({"item-cf": rich_run("item-cf")}, open_store(f"sqlite:///{tmp_path / 'e.db'}"), impressions=log)
    client = TestClient(make_app(service))
    client.post("/v1/recommend", json={"user_id": "u01", "preview": True})
    answer = client.post("/v1/recommend", json={"user_id": "u02", "k": 2}).json()
    assert log.table()["impression_id"].unique().to_list() == [answer["request_id"]]
    service.close()
