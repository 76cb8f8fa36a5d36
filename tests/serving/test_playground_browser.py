"""The playground in a browser: every view by mouse and keyboard, languages, colours, phone, token, hostile titles."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import uvicorn
from support.trained_models import RUNS, rich_run

from nextitem.data.readers import dataset_from_frames
from nextitem.pipeline.train import train
from nextitem.serving.app import make_app
from nextitem.serving.config import ServiceConfig
from nextitem.serving.service import Service
from nextitem.serving.stores import open_store
from nextitem.testing.rich_log import SETTINGS, rich_frames

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium (apt-get install chromium)"),
    pytest.mark.skipif(find_spec("playwright") is None, reason="the package playwright is not installed"),
]
HOSTILE = '<img src=x onerror="document.title=1"><script>document.title=2</script>'
Page = Any


@contextmanager
def served(folder: Path, tokens: list[str]) -> Iterator[str]:
    """Serve tiger, and item-cf with a hostile title, and yield the address."""
    frames = rich_frames()
    title = pl.when(pl.col("item_id") == "i06").then(pl.lit(HOSTILE)).otherwise(pl.col("title"))
    frames["items"] = frames["items"].with_columns(title.alias("title"))
    hostile = train(
        "item-cf",
        dataset_from_frames(frames, SETTINGS, name="hostile"),
        out=Path(RUNS.name) / folder.name,
        recipe="debug/item-cf",
        protocol="leave-one-out",
        progress=False,
    )
    store = open_store(f"sqlite:///{folder / 'events.db'}")
    service = Service({"item-cf": hostile, "tiger": rich_run("tiger")}, store, ServiceConfig(deadline_seconds=20))
    service.warm_up()
    server = uvicorn.Server(uvicorn.Config(make_app(service, tokens=tokens), port=0, log_level="error"))
    socket = server.config.bind_socket()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{socket.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join(20)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(tmp_path_factory.mktemp("open"), []) as place:
        yield place


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def new_page(browser: Any) -> Iterator[Callable[..., Page]]:
    """Return a function that opens a page; at the end, no page may have had an error or asked another host."""
    problems: list[str] = []
    contexts = []

    def opened(address: str, *, expected: str = "", routes: dict[str, Any] | None = None, **options: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, "locale": "en-GB", **options})
        contexts.append(context)
        context.set_default_timeout(15_000)
        page = context.new_page()
        origin = address.split("#")[0]
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "console",
            lambda line: (
                None
                if line.type != "error" or (expected and re.search(expected, line.text))
                else problems.append(line.text)
            ),
        )
        page.on("request", lambda request: None if request.url.startswith(origin) else problems.append(request.url))
        for pattern, handler in (routes or {}).items():
            page.route(pattern, handler)
        page.goto(address)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert problems == []


def until(page: Page, expression: str) -> None:
    """Wait until an expression is true. The wait of the library itself needs eval, which the page forbids."""
    end = time.monotonic() + 15
    while not page.evaluate(f"Boolean({expression})"):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(50)


def titles(page: Page, side: str = "left") -> list[str]:
    """Return the titles of a list, once its request is answered."""
    until(page, f"document.querySelector('#{side}-list li') && !document.querySelector('.pane[aria-busy]')")
    texts: list[str] = page.locator(f"#{side}-list .title").all_inner_texts()
    return texts


def settle(page: Page) -> None:
    """Wait until the page has asked for what it shows, and has got it."""
    page.wait_for_timeout(250)
    until(page, "!document.querySelector('[aria-busy=true]')")


def ask(address: str, body: dict[str, Any]) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}v1/recommend", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=20) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def focused_item(page: Page) -> str | None:
    item: str | None = page.evaluate("document.activeElement.closest('li')?.dataset.item ?? null")
    return item


def test_the_first_visit_shows_the_lists_of_a_customer(address: str, new_page: Callable[..., Page]) -> None:
    page = new_page(address)
    for side, model in (("left", "item-cf"), ("right", "tiger")):
        answer = ask(address, {"user_id": "u00", "model": model})
        assert titles(page, side) == [item["title"] for item in answer["items"]]
    assert page.locator("#user").input_value() == "u00"
    assert page.locator(".events li").count() > 4
    assert re.fullmatch(r"\d+ of 10 items are in both lists", page.locator("#overlap").inner_text())
    assert "user=u00" in page.url
    page.reload()
    assert titles(page) == [item["title"] for item in ask(address, {"user_id": "u00", "model": "item-cf"})["items"]]


def test_a_history_is_built_by_search_and_conditions_hold(address: str, new_page: Callable[..., Page]) -> None:
    page = new_page(f"{address}#lists?history=i03&left=item-cf&right=tiger")
    titles(page)
    page.fill("#search", "kettle")
    page.wait_for_selector("#search-list li")
    assert page.locator("#search-list li").count() == 4
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    option = page.get_attribute("#search", "aria-activedescendant")
    selection = page.locator(f"#{option} .title").inner_text()
    page.keyboard.press("Enter")
    settle(page)
    assert page.locator(".events .link").all_inner_texts() == ["tent canvas model3", selection]
    history = re.findall(r"history=(i\d+)", page.url)
    answer = ask(address, {"history": history, "model": "item-cf"})
    assert titles(page) == [item["title"] for item in answer["items"]]

    excluded = titles(page)[0]
    page.locator("#left-list .act").nth(1).click()
    settle(page)
    assert excluded not in titles(page)
    assert excluded not in titles(page, "right")
    page.locator(".part-excluded .remove").click()
    settle(page)
    assert excluded in titles(page)

    page.select_option("#filter-value", "violin")
    settle(page)
    assert all(title.startswith("violin") for title in titles(page) + titles(page, "right"))
    page.fill("#k", "2")
    settle(page)
    assert (len(titles(page)), len(titles(page, "right"))) == (2, 2)
    page.click("#left-list ~ .more")
    settle(page)
    assert len(titles(page)) == 4
    page.click("#reset")
    settle(page)
    assert len(titles(page)) == 10
    page.locator(".part-history .remove").first.click()
    settle(page)
    assert page.locator(".events .link").all_inner_texts() == [selection]


def test_titles_are_shown_as_text_only(address: str, new_page: Callable[..., Page]) -> None:
    page = new_page(f"{address}#lists?history=i05&left=item-cf&right=-")
    assert HOSTILE in titles(page)
    page.get_by_role("button", name=HOSTILE, exact=True).click()
    page.wait_for_selector("#item-dialog .facts")
    assert page.locator("#item-title").inner_text() == HOSTILE
    page.keyboard.press("Escape")
    page.fill("#search", "<img")
    page.wait_for_selector("#search-list li")
    page.keyboard.press("Enter")
    settle(page)
    assert page.locator(".events .link").last.inner_text() == HOSTILE
    page.goto(f"{address}#traffic")
    page.wait_for_selector(f"td.titles >> text={HOSTILE[:20]}")
    assert page.locator("img, main script, dialog script").count() == 0
    assert page.title() == "Traffic - nextitem"


def test_everything_is_reached_by_the_keyboard(address: str, new_page: Callable[..., Page]) -> None:
    page = new_page(f"{address}#lists?history=i03&history=i04&left=item-cf&right=tiger")
    first = titles(page)
    keys = page.keyboard
    names = []
    for _ in range(9):
        keys.press("Tab")
        names.append(page.evaluate("document.activeElement.id || document.activeElement.hash || ''"))
    assert names[:7] == ["skip", "#lists", "#catalogue", "#traffic", "language", "theme", "help"]
    assert names[8] == "search"
    page.evaluate("document.activeElement.blur()")
    keys.press("?")
    assert page.locator("#help-dialog dt").count() == 12
    keys.press("Escape")
    assert not page.locator("#help-dialog").is_visible()
    keys.press("j")
    keys.press("j")
    second = focused_item(page)
    assert second == page.get_attribute("#left-list li:nth-child(2)", "data-item")
    keys.press("o")
    assert page.evaluate("document.activeElement.parentElement.id") == "right-list"
    keys.press("o")
    assert focused_item(page) == second
    keys.press("x")
    settle(page)
    assert first[1] not in titles(page)
    assert focused_item(page) == page.get_attribute("#left-list li:nth-child(2)", "data-item")
    keys.press("r")
    settle(page)
    assert titles(page) == first
    keys.press("k")
    keys.press("a")
    settle(page)
    assert page.locator(".events .link").count() == 3
    for key, view in (("3", "traffic"), ("2", "catalogue"), ("1", "lists")):
        keys.press(key)
        assert page.locator(f"#view-{view}").is_visible()
        assert page.locator("main > section:visible").count() == 1
    keys.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    keys.type("3")  # a field takes the keys that are shortcuts elsewhere
    assert page.locator("#view-lists").is_visible()
    keys.press("Escape")
    keys.press("Escape")
    keys.press("c")
    assert page.evaluate("document.activeElement.id") == "user"


def test_language_and_colours_are_remembered(address: str, new_page: Callable[..., Page]) -> None:
    page = new_page(f"{address}#lists?history=i03&left=item-cf", color_scheme="dark")
    titles(page)
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark
    page.click("#language")
    assert page.get_attribute("html", "lang") == "zh-CN"
    assert page.locator("#views").inner_text().split() == ["推荐", "商品库", "流量"]
    page.reload()
    titles(page)
    assert page.get_attribute("html", "lang") == "zh-CN"
    assert page.get_attribute("html", "data-theme") == "light"
    page.keyboard.press("l")
    assert page.get_attribute("html", "lang") == "en"
    assert page.locator("#views").inner_text().split() == ["Lists", "Catalogue", "Traffic"]
    chinese = new_page(f"{address}#lists?history=i03&left=item-cf", locale="zh-CN")
    assert chinese.get_attribute("html", "lang") == "zh-CN"


@pytest.mark.parametrize("width", [360, 768])
def test_nothing_is_wider_than_a_phone(address: str, new_page: Callable[..., Page], width: int) -> None:
    page = new_page(
        f"{address}#lists?history=i05&left=tiger&right=item-cf&only=category%3Dtent&exclude=i06",
        viewport={"width": width, "height": 740}, has_touch=True, routes={"**/v1/recommend": with_search},
    )  # fmt: skip
    page.wait_for_selector("#walk .prefix")
    for key in "123":
        page.keyboard.press(key)
        settle(page)
        for _ in range(2):
            page.keyboard.press("l")
            page.wait_for_timeout(100)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, key
    page.keyboard.press("1")
    small = page.evaluate(
        "[...document.querySelectorAll('button:not(.link, .prefix), select')].filter(each => each.offsetParent)"
        ".filter(each => each.getBoundingClientRect().height < 40).map(each => each.outerHTML.slice(0, 80))"
    )
    assert small == []


def test_every_control_has_a_name(address: str, new_page: Callable[..., Page]) -> None:
    page = new_page(f"{address}#lists?history=i05&left=tiger&right=item-cf", routes={"**/v1/recommend": with_search})
    page.wait_for_selector("#walk .prefix")
    for key in "123":
        page.keyboard.press(key)
        settle(page)
        nameless = page.evaluate(
            """[...document.querySelectorAll('button, input, select, a, [role], section, nav, dialog[open]')]
            .filter(each => each.offsetParent && !(each.getAttribute('aria-label') || each.labels?.length ||
              document.getElementById(each.getAttribute('aria-labelledby')) || each.textContent.trim() ||
              each.closest('[aria-hidden]') || each.matches('[role=status], [role=alert]')))
            .map(each => each.outerHTML.slice(0, 90))"""
        )
        assert nameless == []
    assert page.locator("#status[aria-live=polite]").inner_text().startswith("10 items from")


def with_search(route: Any) -> None:
    """Answer a request with an explanation beside the list of the server, as a server that explains has one."""
    body = json.loads(route.request.post_data)
    sent = {name: value for name, value in body.items() if name not in ("explain", "explore", "guide_weight")}
    response = route.fetch(post_data=json.dumps(sent))
    if response.status != 200:
        route.fulfill(response=response)
        return
    answer = response.json()
    neighbours = [
        {"item_id": "i05", "title": "violin bow model5", "share": 0.75},
        {"item_id": "i04", "title": "kettle steel model4", "share": 0.21},
        {"item_id": "i03", "title": "tent canvas model3", "share": 0.04},
    ]
    items = [{"item_id": item["item_id"], "neighbours": neighbours} for item in answer["items"]]
    levels = []
    if answer["model"] == "tiger":
        table = rich_run("tiger").model.catalog.identifiers
        assert table is not None
        ids = rich_run("tiger").model.catalog.ids
        ways = [table.codes[int(ids.lookup([item["item_id"]])[0])].tolist() for item in answer["items"]]
        for level in range(1, table.num_levels + 1):
            ways_here = list(dict.fromkeys(tuple(codes[:level]) for codes in ways))
            prefixes = [
                {"codes": list(codes), "score": -1.0 - place, "model": -2.0, "guide": -0.5, "state": "kept"}
                for place, codes in enumerate(ways_here)
            ]
            parent = [] if level == 1 else list(ways_here[0][: level - 1])
            prefixes.append({"codes": [*parent, 90], "score": -9.0, "model": -8.0, "state": "pruned"})
            prefixes.append({"codes": [*parent, 91], "score": -0.5, "model": -0.1, "state": "cut", "titles": [HOSTILE]})
            levels.append({"level": level, "prefixes": prefixes, "cut_by_constraint": 7})
    answer["explanation"] = {"items": items, "levels": levels}
    route.fulfill(json=answer)


def test_reasons_and_the_walk_are_shown(address: str, new_page: Callable[..., Page]) -> None:
    page = new_page(
        f"{address}#lists?history=i03&history=i04&history=i05&left=item-cf&right=tiger&only=category%3Dtent",
        routes={"**/v1/recommend": with_search},
    )
    shown_titles = titles(page, "right")
    reason = page.locator("#left-list .reasons").first.inner_text()
    assert reason == "Because of violin bow model5 (75%), kettle steel model4 (21%)"
    board = page.locator("#walk .board")
    table = rich_run("tiger").model.catalog.identifiers
    assert table is not None
    assert board.locator(".column").count() == table.num_levels + 1
    assert board.locator(".column").last.locator(".name").all_inner_texts() == shown_titles
    first = board.locator(".column").first
    texts = first.locator(".prefix").all_inner_texts()
    assert "cut by conditions" in texts[0]  # it has the best score
    assert "pruned" in texts[-1]
    assert all("kept" in text for text in texts[1:-1])
    assert first.locator("h3").inner_text().split("\n")[-1].endswith("7 cut by conditions")
    marks = {state: first.locator(f".{state} .mark").first.inner_text() for state in ("kept", "pruned", "cut")}
    assert len(set(marks.values())) == 3
    shares = first.locator(".bars > span").evaluate_all(
        "all => all.map(each => each.style.getPropertyValue('--share'))"
    )
    assert float(shares[0]) == pytest.approx(1, abs=1e-6)  # exp(-0.1) is the largest value
    assert float(shares[1]) == 0  # no guide
    assert float(shares[2]) == pytest.approx(2.718281828 ** (-2.0 + 0.1), rel=1e-5)
    assert page.locator("#walk svg path.way").count() >= len(shown_titles) * table.num_levels * 0.5
    prefix = first.locator(".prefix.kept").first
    prefix.focus()
    assert page.locator("#walk .board.following").count() == 1
    page.keyboard.press("ArrowRight")
    child = page.evaluate("document.activeElement.dataset.codes")
    assert child.startswith(f"{prefix.get_attribute('data-codes')},")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    assert prefix.get_attribute("aria-pressed") == "true"
    prefix.dblclick()
    assert page.locator("#view-catalogue").is_visible()


def test_the_search_of_the_server_leads_to_its_list(address: str, new_page: Callable[..., Page]) -> None:
    page = new_page(f"{address}#lists?history=i03&history=i04&left=tiger&right=-&only=category%3Dtent")
    expected = titles(page)
    columns = page.locator("#walk .column")
    assert columns.last.locator(".name").all_inner_texts() == expected
    for item in columns.last.locator("[data-codes]").all():
        codes = item.get_attribute("data-codes").split(",")[:-1]
        for level in range(1, len(codes) + 1):
            prefix = columns.nth(level - 1).locator(f"[data-codes='{','.join(codes[:level])}']")
            assert prefix.get_attribute("class") == "prefix kept way"
    assert page.locator("#left-list .reasons").first.inner_text().startswith("Because of ")


def test_only_fields_that_the_server_knows_are_sent(address: str, new_page: Callable[..., Page]) -> None:
    bodies = []

    def noted(route: Any) -> None:
        bodies.append(json.loads(route.request.post_data))
        route.continue_()

    def older(route: Any) -> None:
        description = route.fetch().json()
        properties = description["components"]["schemas"]["RecommendBody"]["properties"]
        for name in ("explain", "explore", "preview", "guide_weight"):
            properties.pop(name, None)
        route.fulfill(json=description)

    page = new_page(
        f"{address}#lists?history=i03&left=item-cf&right=-",
        routes={"**/v1/recommend": noted, "**/openapi.json": older},
    )
    assert len(titles(page)) == 10
    assert page.locator("#explore").count() == 0
    assert bodies == [{"k": 10, "model": "item-cf", "history": ["i03"]}]
    bodies.clear()
    new = new_page(f"{address}#lists?history=i03&left=item-cf&right=-", routes={"**/v1/recommend": noted})
    titles(new)
    assert bodies[0]["preview"] is True


def test_errors_are_said_where_they_belong(address: str, new_page: Callable[..., Page]) -> None:
    page = new_page(f"{address}#lists?history=unheard&left=item-cf&right=tiger", expected="400")
    page.wait_for_selector(".pane.left .note")
    assert "no item is called unheard" in page.locator(".pane.left .note").inner_text()
    page = new_page(f"{address}#catalogue?model=tiger&codes=777", expected="400")
    page.wait_for_selector(".tree .note")
    assert "no semantic ID begins with 777" in page.locator(".tree .note").inner_text()
    page = new_page(
        f"{address}#lists?history=i03", expected="ERR_FAILED", routes={"**/v1/recommend": lambda route: route.abort()}
    )
    page.wait_for_selector(".pane.left .note")
    assert page.locator(".pane.left .note").inner_text() == "The server does not answer."


def test_the_tree_is_browsed_down_to_an_item_and_back(address: str, new_page: Callable[..., Page]) -> None:
    page = new_page(f"{address}#catalogue")
    page.wait_for_selector(".branches")
    table = rich_run("tiger").model.catalog.identifiers
    assert table is not None
    assert page.locator(".branches tbody tr").count() == len(table.codes[1:, 0].unique())
    codes = []
    for level in range(table.num_levels):
        button = page.locator(".code-button").first
        codes.append(button.inner_text())
        button.click()
        until(page, f"document.querySelectorAll('.path .separator').length === {level + 1}")
        settle(page)
    assert page.locator(".path").inner_text().split("/")[1:] == [f"\n{code}\n" for code in codes[:-1]] + [
        f"\n{codes[-1]}"
    ]
    item = page.locator(".tree .item-list .link").first
    name = item.inner_text()
    item.click()
    page.wait_for_selector("#item-dialog .facts")
    assert page.locator("#item-title").inner_text() == name
    assert " · ".join(codes) in page.locator(".facts").inner_text()
    assert page.locator("#item-dialog h3").inner_text().startswith("Similar items")
    page.keyboard.press("Escape")
    page.go_back()
    settle(page)
    assert page.locator(".path .separator").count() == table.num_levels - 1


def test_traffic_appears_while_one_looks(address: str, new_page: Callable[..., Page]) -> None:
    page = new_page(f"{address}#traffic")
    titles(page)
    answer = ask(address, {"history": ["i07"], "model": "tiger", "k": 3})
    title = answer["items"][0]["title"]
    rows = page.locator(".answers-table tbody tr", has=page.locator(".model", has_text="tiger"))
    row = rows.filter(has_text=title).first
    row.wait_for()
    assert re.fullmatch(r"\d+\.\d", row.locator(".ms").inner_text())
    page.click("#pause")
    assert page.get_attribute("#pause", "aria-pressed") == "true"
    num_dots = page.locator(".chart circle").count()
    ask(address, {"history": ["i08"], "model": "tiger"})
    time.sleep(2.5)
    assert page.locator(".chart circle").count() == num_dots
    page.click("#pause")
    until(page, f"document.querySelectorAll('.chart circle').length > {num_dots}")


def test_a_token_is_asked_for_and_kept_for_the_session_only(
    tmp_path_factory: pytest.TempPathFactory, new_page: Callable[..., Page]
) -> None:
    with served(tmp_path_factory.mktemp("locked"), ["s3cret"]) as address:
        page = new_page(address, expected="401")
        page.wait_for_selector("#token-form:not([hidden])")
        assert page.locator("#left-list li").count() == 0
        page.fill("#token", "wrong")
        page.keyboard.press("Enter")
        until(page, "document.getElementById('token-problem').textContent")
        assert page.locator("#token-problem").inner_text() == "This token is not accepted."
        page.fill("#token", "s3cret")
        page.keyboard.press("Enter")
        assert len(titles(page)) == 10
        assert not page.locator("#token-form").is_visible()
        page.reload()
        assert len(titles(page)) == 10
        assert "s3cret" not in page.url
        assert "s3cret" not in page.evaluate("JSON.stringify(localStorage)")
        assert "s3cret" in page.evaluate("JSON.stringify(sessionStorage)")
