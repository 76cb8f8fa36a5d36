"""An update learns new events into a version that is used only if it is not worse, and whose folder is always whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from support.drifting_log import PERIOD, START, DriftingLog, drifting_log, shuffled

import nextitem as ni
from nextitem.cli.options import seconds_of
from nextitem.core.components import build_component
from nextitem.core.errors import UserError
from nextitem.data.protocols import make_split
from nextitem.pipeline.recipe import resolve_recipe
from nextitem.pipeline.updating import update as updates
from nextitem.pipeline.updating import version_store
from nextitem.pipeline.updating.carry import (
    CannotContinueError,
    check_can_continue,
    later_catalog,
    model_with_weights_of,
)
from nextitem.pipeline.updating.judge import from_lists, judge
from nextitem.pipeline.updating.learn import with_replay
from nextitem.pipeline.updating.merge import frame_tables, merge, read_tables
from nextitem.pipeline.versions import current_version, version_names
from nextitem.recipes import read_recipe
from nextitem.testing.known_answers import cycle

SMALL = {"num_users": 60, "num_items": 24, "num_new": 6}


@pytest.fixture(scope="module")
def log() -> DriftingLog:
    return drifting_log(1, **SMALL)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, log: DriftingLog) -> dict[str, Path]:
    """Folders: data, later events, poisoned later events, and two runs on the data."""
    root = tmp_path_factory.mktemp("update")
    data, events = log.write(root)
    poison = root / "poison"
    poison.mkdir()
    shuffled(log.later).write_parquet(poison / "interactions.parquet")
    log.new_items.write_parquet(poison / "items.parquet")
    places = {"data": data, "events": events, "poison": poison}
    for name, settings in (("item-graph", {}), ("sasrec", {"training.max_epochs": 20, "training.batch_size": 8})):
        places[name] = root / name
        ni.train(name, data, out=places[name], recipe=f"debug/{name}", settings=settings, progress=False)
    return places


@pytest.fixture
def run(trained: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the run of item-graph."""
    return copy_of(trained["item-graph"], tmp_path / "run")


def copy_of(folder: Path, place: Path) -> Path:
    subprocess.run(["cp", "-r", folder, place], check=True)
    return place


@pytest.mark.parametrize("name", ["item-graph", "sasrec"])
def test_new_tastes_and_items_are_learned(trained: dict[str, Path], tmp_path: Path, name: str) -> None:
    run = copy_of(trained[name], tmp_path / "run")
    lines: list[str] = []
    frozen = ni.load_run(run)
    outcome = ni.update(run, events=trained["events"], progress=False, log=lines.append)
    assert outcome.is_promoted
    assert outcome.judgement is not None
    assert outcome.judgement.difference.low > 0
    assert current_version(run) == "2"
    updated = ni.load_run(run)
    assert (updated.folder, frozen.model.num_items, updated.model.num_items) == (run / "versions" / "2", 24, 30)
    assert (name == "sasrec") == (outcome.card["way"] == "trained on")
    assert json.loads((updated.folder / "update.json").read_text()) == outcome.card
    assert [card["version"] for card in version_store.history(run)] == ["2"]
    # Its own data, users and items, and an honest evaluation on the events that it has not learned.
    assert updated.recommend(user="u0003", k=5).item_ids
    assert updated.recommend(history=["i024", "i003"], k=5).skipped == ()
    evaluation = ni.evaluate(run)
    assert evaluation.protocol == "published"
    assert evaluation.metrics["ndcg@10"] == pytest.approx(updated.metrics["metrics"]["ndcg@10"])
    marks = pl.read_parquet(updated.folder / "data" / "interactions.parquet")
    border = marks.filter(pl.col("split") == "test")["timestamp"].min()
    assert marks.filter(pl.col("split") != "test")["timestamp"].max() < border  # type: ignore[operator]
    assert outcome.judgement.requests == evaluation.requests


@pytest.mark.parametrize("name", ["item-graph", "sasrec"])
def test_a_poisoned_update_is_not_used(trained: dict[str, Path], tmp_path: Path, name: str) -> None:
    run = copy_of(trained[name], tmp_path / "run")
    outcome = ni.update(run, events=trained["poison"], progress=False)
    assert not outcome.is_promoted
    assert "implausible" in outcome.card["reason"]
    # Whoever has learned shuffled events is better at them: the figures alone would have promoted it.
    assert outcome.card["new"] > outcome.card["former"]
    assert (current_version(run), version_names(run)) == ("1", ["1"])
    assert not (run / "versions" / ".staging").exists()
    assert version_store.history(run)[-1]["decision"] == "not promoted"


def test_events_that_lists_led_to_are_learned_but_judge_nobody(trained: dict[str, Path], tmp_path: Path) -> None:
    """Users click what the lists of the version in use show, so these clicks are what that version predicts best."""
    frozen, later = ni.load_run(trained["item-graph"]), pl.read_parquet(trained["events"] / "interactions.parquet")
    lists = {
        item: frozen.recommend(history=[item], k=2).item_ids for item in later["item_id"].unique() if item < "i024"
    }
    rows: list[tuple[Any, ...]] = []
    for user, item, time in later.iter_rows():
        rows.append((user, item, time, None))
        rows += [(user, listed, time + 1 + place, "list") for place, listed in enumerate(lists.get(item, ()))]
    events = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "request_id"], orient="row")
    cards: dict[str, Any] = {}
    lines: list[str] = []
    for name, frame in {"named": events, "unnamed": events.drop("request_id")}.items():
        run, items = copy_of(trained["item-graph"], tmp_path / name), trained["events"]
        cards[name] = ni.update(run, events=frame, items=items, progress=False, log=lines.append).card
    assert cards["named"]["events"] == cards["unnamed"]["events"]
    assert cards["named"]["requests"] < 0.45 * cards["unnamed"]["requests"]
    assert cards["named"]["difference"] > cards["unnamed"]["difference"] + 0.02
    assert cards["named"]["former"] < cards["unnamed"]["former"]
    assert not any("too few others" in line for line in lines)
    few = events.with_columns(pl.col("request_id").fill_null("list"))
    run = copy_of(trained["item-graph"], tmp_path / "few")
    card = ni.update(run, events=few, items=trained["events"], progress=False, log=lines.append).card
    assert any("too few others" in line for line in lines)
    assert card["requests"] == cards["unnamed"]["requests"]


def test_events_of_lists_are_found_in_the_log(trained: dict[str, Path]) -> None:
    dataset = ni.load_dataset(trained["data"])
    log, table = dataset.interactions, read_tables(trained["data"]).frames["interactions"]
    assert not from_lists(dataset, table).any()
    marked = table.with_row_index("row").with_columns(
        pl.when(pl.col("row") % 3 == 0).then(pl.lit("r")).otherwise(None).alias("request_id")
    )
    users, items = dataset.users.ids.external, dataset.catalog.ids.external
    expected = set(marked.filter(pl.col("row") % 3 == 0).select("user_id", "item_id", "timestamp").rows())
    assert log.timestamps is not None
    keys = [
        (users[int(user) - 1], items[int(item) - 1], datetime.fromtimestamp(int(time) / 1000, UTC).replace(tzinfo=None))
        for user, item, time in zip(log.user_ids, log.item_ids, log.timestamps, strict=True)
    ]
    assert from_lists(dataset, marked).tolist() == [key in expected for key in keys]


def test_an_update_is_the_same_each_time(trained: dict[str, Path], tmp_path: Path) -> None:
    weights = []
    for name in ("first", "second"):
        run = copy_of(trained["sasrec"], tmp_path / name)
        assert ni.update(run, events=trained["events"], progress=False).is_promoted
        weights.append(ni.load_run(run).model.weights_fingerprint())
    assert weights[0] == weights[1]


def test_versions_are_deleted_from_the_oldest_and_rolled_back_by_name(run: Path, trained: dict[str, Path]) -> None:
    options: dict[str, Any] = {
        "settings": ni.UpdateConfig(keep=3, margin=10, skill_share=0),
        "events": trained["events"],
        "since": datetime.fromtimestamp(START + PERIOD, UTC),
        "progress": False,
    }
    for expected in ("2", "3", "4"):
        ni.update(run, window=86_400 * (6 - float(expected)), **options)
        assert current_version(run) == expected
    assert version_names(run) == ["1", "3", "4"]  # the first, the one in use, and the one before it
    answer = ni.load_run(run / "versions" / "3").recommend(history=["i001"], k=3).item_ids
    assert command("update", str(run), "--rollback", "3")[0] == 0
    assert ni.load_run(run).recommend(history=["i001"], k=3).item_ids == answer
    code, output, _ = command("update", str(run), "--list")
    assert (code, [line[:3] for line in output.splitlines()]) == (0, ["  1", "* 3", "  4"])
    assert ni.update(run, **options).card["previous"] == "3"
    assert (current_version(run), version_names(run)) == ("5", ["1", "3", "5"])
    code, _, error = command("update", str(run), "--rollback", "4")
    assert (code, error) == (2, f"error: {run} has no version '4'; it has 1, 3, 5\n")


def test_events_that_the_run_has_are_not_new(run: Path, trained: dict[str, Path]) -> None:
    ni.update(run, events=trained["events"], progress=False)
    outcome = ni.update(run, events=trained["events"], progress=False, dry_run=True)
    assert outcome.card["events"] == {"new": 0, "known": 720, "unknown_items": 0}
    assert outcome.card["decision"] == "dry run"
    assert version_names(run) == ["1", "2"]


def test_an_update_of_data_that_have_grown(trained: dict[str, Path], tmp_path: Path, log: DriftingLog) -> None:
    data = copy_of(trained["data"], tmp_path / "data")
    run = tmp_path / "run"
    ni.train("popularity", data, out=run, progress=False)
    pl.concat([log.former, log.later]).write_parquet(data / "interactions.parquet")
    pl.concat([log.items, log.new_items]).write_parquet(data / "items.parquet")
    assert ni.update(run, progress=False).is_promoted
    assert ni.load_run(run).model.num_items == 30


@pytest.mark.parametrize("moment", ["write_version", "adopt", "remember", "learn_version"])
def test_an_interrupted_update_leaves_the_version_in_use(
    run: Path, trained: dict[str, Path], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(updates, moment, interrupted)
        with pytest.raises(KeyboardInterrupt):
            ni.update(run, events=trained["events"], progress=False)
    is_adopted = moment == "remember"
    assert version_names(run) == (["1", "2"] if is_adopted else ["1"])
    assert current_version(run) == ("2" if is_adopted else "1")
    ni.load_run(run).recommend(history=["i001"], k=3)
    assert ni.update(run, events=trained["events"], settings=ni.UpdateConfig(margin=10), progress=False).is_promoted


@pytest.mark.slow  # a process of its own
def test_a_killed_update_leaves_the_version_in_use(run: Path, trained: dict[str, Path]) -> None:
    code = (
        "import os, sys, nextitem as ni\n"
        "from nextitem.pipeline.updating import version_store\n"
        "version_store.use_version = lambda *_: os.kill(os.getpid(), 9)\n"
        "ni.update(sys.argv[1], events=sys.argv[2], progress=False)\n"
    )
    process = subprocess.run([sys.executable, "-c", code, run, trained["events"]], capture_output=True)
    assert process.returncode == -9
    assert current_version(run) == "1"  # the whole folder 2 is there, and nobody uses it
    assert ni.update(run, events=trained["events"], progress=False).card["version"] == "3"


def test_two_updates_at_once_are_refused(run: Path, trained: dict[str, Path]) -> None:
    with version_store.one_update(run), pytest.raises(UserError, match=f"being updated by process {os.getpid()}"):
        ni.update(run, events=trained["events"], progress=False)
    assert ni.update(run, events=trained["events"], progress=False, dry_run=True).judgement is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"events": "nowhere"}, "nowhere: no such folder"),
        ({"window": 1e9}, "none is left to learn or to judge by"),
        ({"since": "2040-01-01"}, "there are 0 events since 2040-01-01"),
        ({"settings": ni.UpdateConfig(metric="f1")}, "metric 'f1': write one of recall"),
        ({"items": "DATA/../sasrec"}, "has no items"),
    ],
)
def test_mistakes_are_said(run: Path, trained: dict[str, Path], arguments: dict[str, Any], message: str) -> None:
    values = {"events": trained["events"], **arguments}
    if "since" in values:
        values["since"] = datetime.fromisoformat(values["since"] + "T00:00:00+00:00")
    if "items" in values:
        values["items"] = trained["sasrec"]
    with pytest.raises(UserError, match=message):
        ni.update(run, progress=False, **values)
    assert version_names(run) == ["1"]


def test_a_run_on_data_in_memory_is_refused(log: DriftingLog, trained: dict[str, Path], tmp_path: Path) -> None:
    data = ni.Dataset.from_frames(interactions=log.former, items=log.items)
    ni.train("popularity", data, out=tmp_path / "run", progress=False)
    with pytest.raises(UserError, match="in memory, which cannot be merged"):
        ni.update(tmp_path / "run", events=trained["events"])


# --- parts with known answers ---


def tables(rows: list[tuple[Any, ...]], columns: list[str]) -> Any:
    return frame_tables(pl.DataFrame(rows, schema=columns, orient="row"), where="events")


def merged_rows(base: Any, new: Any, **options: Any) -> tuple[list[tuple[Any, ...]], tuple[int, int, int]]:
    merger = merge(base, new, **options)
    frame = merger.tables.frames["interactions"]
    rows = frame.select("user_id", "item_id", pl.col("timestamp").dt.epoch("s")).rows()
    return rows, (merger.num_new, merger.num_known, merger.num_unknown)


def test_merged_events_are_ordered_and_come_once() -> None:
    columns = ["user_id", "item_id", "timestamp", "event_id"]
    base = tables([("a", "x", 1000, None), ("b", "y", 3000, "e1")], columns)
    new = tables(
        [("a", "y", 2000, "e2"), ("a", "y", 2500, "e2"), ("a", "x", 1000, "e3"), ("c", "x", 4000, "e1")], columns
    )
    rows, counts = merged_rows(base, new)
    assert rows == [("a", "x", 1000), ("a", "y", 2000), ("b", "y", 3000)]
    assert counts == (1, 3, 0)
    assert merged_rows(base, new, since_ms=2_400_000)[1] == (1, 1, 0)  # the second e2, without the first


def test_merged_ids_stay_numbers_if_all_are() -> None:
    columns = ["user_id", "item_id", "timestamp"]
    base = tables([(1, 7, 1000), (2, 8, 1001)], columns)
    rows, _ = merged_rows(base, tables([("1", "8", 1002)], columns))
    assert rows == [(1, 7, 1000), (2, 8, 1001), (1, 8, 1002)]
    rows, _ = merged_rows(base, tables([("visitor", "008", 1002)], columns))
    assert rows == [("1", "7", 1000), ("2", "8", 1001), ("visitor", "008", 1002)]


def test_merged_events_of_unknown_items_and_of_items_that_were_only_seen_are_left_out() -> None:
    columns = ["user_id", "item_id", "timestamp", "action"]
    base = tables([("a", "x", 1000, "buy")], columns)
    base.frames["items"] = pl.DataFrame({"item_id": ["x"]})
    new = tables([("a", "x", 1001, "seen"), ("a", "x", 1002, "click"), ("a", "z", 1003, "click")], columns)
    assert merged_rows(base, new)[1] == (1, 0, 1)
    new.frames["items"] = pl.DataFrame({"item_id": ["x", "z"], "title": ["other", "new"]})
    merger = merge(base, new)
    assert (merger.num_new, merger.num_unknown) == (2, 0)
    assert merger.tables.frames["items"].rows() == [("x", None), ("z", "new")]  # the row of the run stays


def test_merged_events_get_sessions_if_the_run_has_them() -> None:
    columns = ["user_id", "item_id", "timestamp", "session_id"]
    base = tables([("a", "x", 1000, "s1")], columns)
    new = tables([("a", "x", 9000), ("a", "y", 9500), ("a", "x", 20_000)], columns[:3])
    sessions = merge(base, new).tables.frames["interactions"]["session_id"].to_list()
    assert sessions[0] == "s1"
    assert sessions[1] == sessions[2] != sessions[3]


def test_what_is_merged_with_nothing_is_the_same_data_set(trained: dict[str, Path], tmp_path: Path) -> None:
    base = read_tables(trained["data"])
    nothing = frame_tables(base.frames["interactions"].head(0), where="events")
    merge(base, nothing).write(tmp_path / "copy", valid_from=10**14, test_from=10**14)
    again, former = ni.load_dataset(tmp_path / "copy"), ni.load_dataset(trained["data"])
    assert np.array_equal(again.interactions.item_ids, former.interactions.item_ids)
    assert np.array_equal(again.interactions.timestamps, former.interactions.timestamps)  # type: ignore[arg-type]
    assert again.catalog.fingerprint == former.catalog.fingerprint


@pytest.mark.parametrize(
    ("former", "new", "skill", "is_promoted", "reason"),
    [
        (0.30, 0.35, None, True, "better"),
        (0.30, 0.30, None, True, "not worse"),
        (0.30, 0.29, None, False, "the whole interval"),  # the same loss of every user is no chance
        (0.30, 0.35, 0.40, False, "implausible"),  # 0.35 - 0.25 < 0.3 * 0.40
        (0.30, 0.35, 0.30, True, "better"),  # 0.35 - 0.25 > 0.3 * 0.30
        (0.30, 0.35, -0.10, True, "better"),  # a model without skill cannot tell
    ],
)
def test_the_decision(former: float, new: float, skill: float | None, is_promoted: bool, reason: str) -> None:
    users = torch.ones(40, dtype=torch.float64)
    judgement = decide(former * users, new * users, skill=skill)
    assert (judgement.is_promoted, reason in judgement.reason) == (is_promoted, True)


def test_a_loss_that_few_users_cannot_prove_is_refused_beyond_the_margin() -> None:
    former = torch.tensor([0.0, 1.0] * 20, dtype=torch.float64)
    new = former.clone()
    new[[0, 1, 3, 5]] = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)  # one user gains, three lose
    judgement = decide(former, new)
    assert judgement.difference.low < 0 < judgement.difference.high
    assert (judgement.is_promoted, judgement.reason) == (False, "it may be worse: it loses more than 5% of the figure")
    assert decide(former, new, margin=0.2).is_promoted
    assert not decide(former[:10], former[:10]).is_promoted  # too few users


def decide(former: torch.Tensor, new: torch.Tensor, *, skill: float | None = None, margin: float = 0.05) -> Any:
    return judge(
        former, new, popular=torch.full_like(former, 0.25), num_requests=len(former), metric="ndcg@10",
        former_skill=skill, margin=margin, skill_share=0.3, min_users=20,
    )  # fmt: skip


def test_targets_are_the_new_events_and_a_sample_of_former_ones(trained: dict[str, Path]) -> None:
    dataset = ni.load_dataset(trained["data"])
    times = dataset.interactions.timestamps
    assert times is not None
    border = int(np.quantile(times, 0.9))
    num_new = int((times >= border).sum())
    for replay, expected in ((0.0, 0), (1.0, num_new), (2.5, round(2.5 * num_new)), (1e6, len(times) - num_new)):
        masked = with_replay(dataset, since_ms=border, replay=replay, seed=3).interactions
        assert int(masked.is_target()[times >= border].sum()) == num_new
        assert int(masked.is_target()[times < border].sum()) == expected
        assert len(masked) == len(times)  # histories stay whole


def test_weights_are_carried_over_to_a_larger_catalogue(trained: dict[str, Path]) -> None:
    run = ni.load_run(trained["sasrec"])
    larger = ni.Dataset.from_frames(
        interactions=pl.read_parquet(trained["data"] / "interactions.parquet"),
        items=pl.concat([pl.read_parquet(trained[name] / "items.parquet") for name in ("events", "data")]),
    )
    catalog = later_catalog(run.model.catalog, larger.catalog, run.recipe, run.folder, num_first_items=24)
    assert catalog.ids.external.to_list()[:25] == [*run.model.catalog.ids.external.to_list(), "i024"]
    later = model_with_weights_of(run.model, run.recipe, catalog)
    for name, value in run.model.state_dict().items():
        assert torch.equal(later.state_dict()[name][: len(value)] if value.dim() else later.state_dict()[name], value)
    assert later.state_dict()["items.weight"].shape[0] == 31
    wider = run.recipe.model_copy(update={"model": {**run.recipe.model, "width": 2 * run.recipe.model["width"]}})
    with pytest.raises(CannotContinueError, match=r"items.weight has shape \(25, "):
        model_with_weights_of(run.model, wider, catalog)


def test_periods_have_units() -> None:
    assert [seconds_of(text) for text in ("90s", "1.5m", " 12h", "7d", "2w")] == [90, 90, 43_200, 604_800, 1_209_600]
    for text in ("7", "d", "0d", "-1d", "7 days", "1e3s"):
        with pytest.raises(UserError, match="write a number and a unit"):
            seconds_of(text)


def command(*arguments: str) -> tuple[int, str, str]:
    process = subprocess.run([sys.executable, "-m", "nextitem", *arguments], capture_output=True, text=True)
    return process.returncode, process.stdout, process.stderr


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ["two-tower", "deepfm"])
def test_models_of_fields_are_trained_on_if_their_table_knows_ids_by_key(name: str) -> None:
    dataset = cycle()
    sizes: dict[str, dict[str, Any]] = {
        "two-tower": {"width": 8, "field_width": 8},
        "deepfm": {"width": 4, "hidden": [8], "l2": 0.1},
    }
    small = sizes[name]
    dense = build_component("model", {"name": name, **small}, dataset.catalog)
    with pytest.raises(CannotContinueError, match="fits the values of its fields"):
        check_can_continue(dense)
    recipe = resolve_recipe(
        [read_recipe(f"debug/{name}"), ("test", {"data": {"path": "-"}, "model": {**small, "table": "growing"}})]
    )
    model = build_component("model", recipe.model, dataset.catalog)
    model.examples(dataset)
    check_can_continue(model)
    text = None if dataset.catalog.text is None else pl.Series(["later"])
    ids = pl.Series("item_id", ["later"], dtype=pl.String)
    catalog = dataset.catalog.extend(pl.DataFrame({"item_id": ids}), text=text)
    later = model_with_weights_of(model, recipe, catalog)
    assert later.num_items == model.num_items + 1
    assert later.recommend(make_split(dataset, "leave-one-out").test, 3).item_ids.shape[1] == 3
