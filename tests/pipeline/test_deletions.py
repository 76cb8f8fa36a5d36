"""A deleted user is in no file of a run, whatever version is made before, meanwhile or afterwards."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from fastapi.testclient import TestClient
from support.drifting_log import PERIOD, START, DriftingLog, drifting_log

import nextitem as ni
from nextitem.core.errors import UserError
from nextitem.pipeline.runs import load_run
from nextitem.pipeline.updating import update as updates
from nextitem.pipeline.updating.deletions import Deletions, delete_user, read_deletions
from nextitem.pipeline.updating.new_version import write_version
from nextitem.pipeline.versions import use_version
from nextitem.serving.app import make_app
from nextitem.serving.impressions import ImpressionLog
from nextitem.serving.service import Service
from nextitem.serving.stores import open_store

USER = "u0007"
ANYTHING: dict[str, Any] = {"settings": ni.UpdateConfig(margin=10, skill_share=0, min_users=1), "progress": False}


@pytest.fixture(scope="module")
def log() -> DriftingLog:
    return drifting_log(2, num_users=40, num_items=20, num_new=4)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, log: DriftingLog) -> Path:
    """A folder with data, later events, and a run of item-graph; users have a country."""
    root = tmp_path_factory.mktemp("deletions")
    data, _ = log.write(root)
    users = log.former["user_id"].unique().sort()
    pl.DataFrame({"user_id": users, "country": ["NO"] * len(users)}).write_parquet(data / "users.parquet")
    ni.train("item-graph", data, out=root / "run", recipe="debug/item-graph", progress=False)
    return root


@pytest.fixture
def place(first: Path, tmp_path: Path) -> Path:
    """A copy of the folder, of which the run is already updated once."""
    shutil.copytree(first / "run", tmp_path / "run")
    assert ni.update(tmp_path / "run", events=first / "events", **ANYTHING).is_promoted
    return tmp_path


def files_with(user: str, folder: Path) -> list[str]:
    """Return the files that contain a user: as bytes, or in a column of a table, which may be compressed."""
    found_files = []
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        contains = user.encode() in file.read_bytes()
        if file.suffix == ".parquet":
            texts = pl.read_parquet(file).select(pl.all().cast(pl.String, strict=False))
            contains |= any(texts[name].str.contains(user, literal=True).any() for name in texts.columns)
        if contains:
            found_files.append(str(file.relative_to(folder)))
    return found_files


def test_all_versions_lose_the_user_at_once(place: Path, first: Path) -> None:
    run = place / "run"
    shutil.copytree(run / "versions" / "2", run / "versions" / "3")
    shutil.copytree(run / "versions" / "2", run / "versions" / ".staging")  # an update was killed
    before = pl.read_parquet(run / "versions" / "2" / "data" / "interactions.parquet")
    own = before.filter(user_id=USER).height
    assert len(files_with(USER, run)) == 6  # events and users of three versions
    assert delete_user(run, USER) == 3 * own > 0
    assert files_with(USER, run) == []
    after = pl.read_parquet(run / "versions" / "2" / "data" / "interactions.parquet")
    assert after.equals(before.filter(pl.col("user_id") != USER))
    assert delete_user(run, "nobody") == 0
    assert len(read_deletions(run)) == 2
    opened = load_run(run)
    assert opened.recommend(user="u0008", k=3).item_ids
    with pytest.raises(UserError, match=f"no user is called {USER}"):
        opened.recommend(user=USER)
    assert files_with(USER, first / "data")  # whoever trained the run owns that folder


@pytest.mark.parametrize("base", ["1", "2"])
def test_later_updates_leave_the_user_out(place: Path, first: Path, base: str) -> None:
    run = place / "run"
    delete_user(run, USER)
    use_version(run, base)
    card = ni.update(run, events=first / "events", **ANYTHING, window=86_400 if base == "1" else 3_600 * 12).card
    assert card["decision"] == "promoted"
    assert files_with(USER, run) == []
    assert files_with("u0008", run)


def test_a_user_who_comes_back_is_a_new_one(place: Path, log: DriftingLog) -> None:
    run = place / "run"
    delete_user(run, USER)
    now = int(time.time()) + 3_600
    others = log.later.with_columns(pl.col("timestamp") + (now - START - PERIOD))
    ni.update(run, events=others, **ANYTHING)
    events = pl.read_parquet(run / "versions" / "3" / "data" / "interactions.parquet").filter(user_id=USER)
    assert events.height == log.later.filter(user_id=USER).height
    assert events["timestamp"].dt.epoch("s").min() >= now  # type: ignore[operator]


def test_a_user_who_is_deleted_during_an_update_is_not_in_its_version(
    place: Path, first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = place / "run"

    def deleted_first(*arguments: Any, **options: Any) -> None:
        write_version(*arguments, **options)
        assert files_with(USER, run / "versions" / ".staging")
        delete_user(run, USER)
        # The deletion has reached the staged version already; now as if it had come before the data were written.
        for file in (first / "data").glob("*.parquet"):
            table = pl.read_parquet(run / "versions" / ".staging" / "data" / file.name)
            lost = pl.read_parquet(file).filter(user_id=USER) if file.stem == "interactions" else table.head(0)
            if lost.height:
                again = lost.select(pl.col("user_id", "item_id"), pl.from_epoch("timestamp").cast(pl.Datetime("us")))
                table = pl.concat([table, again], how="diagonal_relaxed")
                table.write_parquet(run / "versions" / ".staging" / "data" / file.name)

    monkeypatch.setattr(updates, "write_version", deleted_first)
    use_version(run, "1")
    card = ni.update(run, events=first / "events", **ANYTHING).card
    assert (card["decision"], card["version"]) == ("promoted", "3")
    assert files_with(USER, run) == []


def test_the_note_says_nothing_about_users_and_is_checked(place: Path) -> None:
    run = place / "run"
    delete_user(run, USER)
    note = json.loads((run / "deleted-users").read_text())
    assert USER not in json.dumps(note)
    other = Deletions("0" * 64)
    assert list(note["users"]) == [read_deletions(run).hash_of(USER)] != [other.hash_of(USER)]
    (run / "deleted-users").write_text("{")
    with pytest.raises(UserError, match="deleted-users is damaged"):
        ni.update(run, events=pl.DataFrame(), progress=False)


def test_a_server_deletes_a_user_from_its_runs_and_forgets_the_history(place: Path, first: Path) -> None:
    run, stranger = place / "run", "somebody-of-the-test"
    open_store(f"sqlite:///{place / 'events.db'}").close()

    def service() -> Service:
        store = open_store(f"sqlite:///{place / 'events.db'}")
        return Service({"run": load_run(run)}, store, impressions=ImpressionLog(place / "log"))

    with TestClient(make_app(service())) as client:
        events = [
            {"event_id": f"{user}-{n}", "user_id": user, "item_id": f"i00{n}", "timestamp": START + 2 * PERIOD + n}
            for user in (USER, stranger)
            for n in (1, 2)
        ]
        assert client.post("/v1/events", json={"events": events}).status_code == 200
        for user in (USER, stranger):
            assert not client.post("/v1/recommend", json={"user_id": user, "k": 3}).json()["fallback"]
            assert client.delete(f"/v1/users/{user}").json() == {"deleted_events": 2}
            assert client.post("/v1/recommend", json={"user_id": user, "k": 3, "preview": True}).json()["fallback"]
            assert files_with(user, place) == []
        other = client.post("/v1/recommend", json={"user_id": "u0008", "k": 3}).json()
        assert not other["fallback"]
    use_version(run, "1")  # whose data are not the server's; the user is forgotten all the same
    with TestClient(make_app(service())) as client:
        assert client.post("/v1/recommend", json={"user_id": USER, "k": 3, "preview": True}).json()["fallback"]
        assert not client.post("/v1/recommend", json={"user_id": "u0008", "k": 3}).json()["fallback"]
    assert files_with(USER, first / "data")
    (run / "deleted-users").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        service()
