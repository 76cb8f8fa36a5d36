"""The command line on a small data set: every command, and its messages for mistakes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from nextitem.cli.main import main
from nextitem.core import registry
from nextitem.pipeline.train import train
from nextitem.testing.known_answers import planted_clusters

COMPARE = ["compare", "--models", "sasrec", "--data", "DATA", "--out", "OUT"]
TUNE = ["tune", "item-cf", "--data", "DATA", "--out", "OUT", "--trials", "3"]
SCALE = ["scale", "sasrec", "--data", "DATA", "--out", "OUT"]

Result = tuple[int, str, str]
Cli = Callable[..., Result]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Return a function that runs `nextitem ARGS` in this process and returns (exit code, stdout, stderr)."""

    def run(*args: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["nextitem", *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return run


def write_folder(folder: Path) -> Path:
    """Write the planted clusters as a dataset folder with CSV files."""
    dataset = planted_clusters()
    folder.mkdir()
    log = dataset.interactions
    assert log.timestamps is not None
    pl.DataFrame(
        {
            "user_id": dataset.users.ids.decode(log.user_ids),
            "item_id": dataset.catalog.ids.decode(log.item_ids),
            "timestamp": log.timestamps // 1000,
        }
    ).write_csv(folder / "interactions.csv")
    table = dataset.catalog.table.with_columns(
        pl.Series("category", [f"c{number // 6}" for number in range(30)]), price=pl.int_range(30) * 1.5
    )
    table.write_csv(folder / "items.csv")
    (folder / "dataset.toml").write_text(
        'name = "planted"\nrepeats = false\n[items]\ntext = "{title}"\n'
        'features = { category = "categorical", price = "numeric" }\n'
    )
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("cli") / "data")


@pytest.fixture(scope="module")
def runs(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of two runs: a trained model by the real command, a closed-form one in this process."""
    out = tmp_path_factory.mktemp("runs")
    args = ["train", "sasrec", "--data", folder, "--out", out / "sasrec", "--recipe", "debug/sasrec"]
    args += ["--protocol", "leave-one-out"]
    subprocess.run([sys.executable, "-m", "nextitem", *map(str, args)], check=True, capture_output=True)
    train("item-cf", folder, out=out / "item-cf", recipe="debug/item-cf", protocol="leave-one-out", progress=False)
    return out


def one_line(result: Result) -> str:
    """Check that a result is a user's mistake (exit code 2, one line on stderr), and return the message."""
    code, _, err = result
    assert code == 2
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


def test_models_lists_everything(cli: Cli) -> None:
    code, out, _ = cli("models")
    assert code == 0
    for name in ("tiger", "rq-vae", "gbce", "ndcg", "dpp"):
        assert name in out
    assert "tiger" not in cli("models", "--kind", "loss")[1]
    assert cli("models", "--kind", "reranker")[1].count("\n") == len(registry.RERANKERS)
    assert "choose one of model" in one_line(cli("models", "--kind", "loss-function"))


def test_describe_and_diagnose_print_facts_of_the_data(cli: Cli, folder: Path) -> None:
    facts = json.loads(cli("data", "describe", folder, "--json")[1])
    assert (facts["users"], facts["items"], facts["events"]) == (80, 30, 400)
    assert cli("data", "describe", folder)[0] == 0
    code, out, _ = cli("data", "diagnose", folder)
    assert code == 0
    assert len(out.splitlines()) > 3


def test_train_writes_a_complete_bundle(runs: Path) -> None:
    files = {file.name for file in (runs / "sasrec").iterdir()}
    assert {"recipe.toml", "weights.safetensors", "catalog.parquet", "metrics.json"} <= files
    assert not list(runs.rglob("*.pkl"))
    metrics = json.loads((runs / "sasrec" / "metrics.json").read_text())
    assert {"model", "protocol", "refit", "users", "metrics", "intervals", "slices"} <= set(metrics)


def test_evaluate_prints_and_writes_the_same_figures(cli: Cli, runs: Path, tmp_path: Path) -> None:
    printed = json.loads(cli("evaluate", runs / "sasrec", "--json", "-")[1])
    assert cli("evaluate", runs / "sasrec", "--json", tmp_path / "a.json")[0] == 0
    assert json.loads((tmp_path / "a.json").read_text()) == printed
    trained = json.loads((runs / "sasrec" / "metrics.json").read_text())
    assert printed["metrics"] == trained["metrics"]
    low, high = printed["intervals"]["recall@10"]
    assert low <= printed["metrics"]["recall@10"] <= high


def test_evaluation_on_other_data_needs_an_option(cli: Cli, runs: Path, folder: Path, tmp_path: Path) -> None:
    other = write_folder(tmp_path / "other")
    log = pl.read_csv(other / "interactions.csv")
    log.head(300).write_csv(other / "interactions.csv")
    assert "--allow-other-data" in one_line(cli("evaluate", runs / "sasrec", "--data", other))
    assert cli("evaluate", runs / "sasrec", "--data", other, "--allow-other-data")[0] == 0
    assert "--allow-other-data" in one_line(cli("evaluate", runs / "sasrec", "--protocol", "time"))
    assert cli("evaluate", runs / "sasrec", "--data", folder)[0] == 0


def test_recommend_prints_items_for_a_history(cli: Cli, runs: Path) -> None:
    answer = json.loads(cli("recommend", runs / "item-cf", "--history", "i1,i2", "-k", 3, "--json")[1])
    assert answer["fallback"] is False
    ids = [item["item_id"] for item in answer["items"]]
    assert set(ids) <= {"i3", "i4", "i5", "i6"}
    assert set(answer["items"][0]) == {"item_id", "score", "title"}
    code, out, _ = cli("recommend", runs / "item-cf", "--history", "i1", "-k", 2)
    assert code == 0
    assert len(out.splitlines()) == 2


def test_recommend_explains_a_list(cli: Cli, runs: Path) -> None:
    args = ["recommend", runs / "item-cf", "--history", "i1,i2", "-k", 3, "--explain"]
    explained = json.loads(cli(*args, "--json")[1])
    plain = json.loads(cli(*args[:-1], "--json")[1])
    explanation = explained.pop("explanation")
    assert explained == plain
    assert [item["item_id"] for item in explanation["items"]] == [item["item_id"] for item in plain["items"]]
    neighbour = explanation["items"][0]["neighbours"][0]
    assert neighbour["item_id"] in ("i1", "i2")
    lines = cli(*args)[1].splitlines()
    assert lines[:3] == cli(*args[:-1])[1].splitlines()
    assert f"{neighbour['title']} {neighbour['share']:.0%}" in lines[5]
    message = one_line(cli("recommend", runs / "item-cf", "--users", "all", "--out", "a.parquet", "--explain"))
    assert "--explain explains one list" in message


def test_recommend_applies_filters(cli: Cli, runs: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked.txt"
    blocked.write_text("i7\ni8\n")
    args = ["--history", "i1", "-k", 9, "--json", "--only", "category=c1", "--exclude-items", blocked]
    answer = json.loads(cli("recommend", runs / "sasrec", *args)[1])
    assert sorted(item["item_id"] for item in answer["items"]) == ["i10", "i11", "i12", "i9"]


def test_recommend_for_a_user_equals_the_row_of_all_users(cli: Cli, runs: Path, tmp_path: Path) -> None:
    answer = json.loads(cli("recommend", runs / "sasrec", "--user", "u1", "-k", 3, "--json")[1])
    assert len(answer["items"]) == 3
    out = tmp_path / "recs.parquet"
    assert cli("recommend", runs / "sasrec", "--users", "all", "--out", out, "-k", 3)[0] == 0
    table = pl.read_parquet(out)
    assert table.columns == ["user_id", "item_id", "rank", "score"]
    rows = table.filter(pl.col("user_id") == "u1").sort("rank")
    assert rows["item_id"].to_list() == [item["item_id"] for item in answer["items"]]
    assert rows["rank"].to_list() == [1, 2, 3]
    assert table["user_id"].n_unique() == 80
    assert "--overwrite" in one_line(cli("recommend", runs / "sasrec", "--users", "all", "--out", out))


def test_codes_of_new_items_are_appended_and_a_model_trains_on_them(cli: Cli, folder: Path, tmp_path: Path) -> None:
    ids = tmp_path / "ids"
    assert (
        cli("tokenize", "residual-kmeans", "--data", folder, "--out", ids, "--set", "tokenizer.codebook_size=8")[0] == 0
    )
    before = json.loads((ids / "identifiers.json").read_text())
    assert before["version"] == 1
    grown = write_folder(tmp_path / "grown")
    with (grown / "items.csv").open("a") as file:
        file.write("i31,tent canvas pole model9,c0,9.5\n")
    code, _, err = cli("tokenize", "residual-kmeans", "--data", grown, "--out", ids, "--append")
    assert code == 0
    assert "1 new items, 30 unchanged; version 2" in err
    assert re.search(r"[01] of the new items share the codes of the tokenizer with another item", err)
    assert "0 of the new items share their whole sequence with another item" in err
    run = tmp_path / "run"
    args = ["--data", grown, "--ids", ids, "--recipe", "debug/tiger", "--set", "training.max_epochs=1"]
    assert cli("train", "tiger", *args, "--out", run, "--protocol", "leave-one-out")[0] == 0
    answer = json.loads(cli("recommend", run, "--history", "i1", "-k", 31, "--json")[1])
    assert len(answer["items"]) == 30
    append = ["tokenize", "residual-kmeans", "--data", grown, "--out", ids, "--append"]
    assert "contains codes of residual-kmeans, not of lsh" in one_line(cli("tokenize", "lsh", *append[2:]))
    assert "does not take --seed, --set" in one_line(cli(*append, "--seed", 3, "--set", "tokenizer.levels=2"))
    missing = tmp_path / "nowhere"
    assert "nextitem tokenize" in one_line(cli(*append[:5], missing, "--append"))
    assert not missing.exists()
    assert "not made by nextitem tokenize" in one_line(cli(*append[:5], run, "--append"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train", "sasrex", "--data", "DATA", "--out", "OUT"], "no model is called 'sasrex'"),
        (["train", "sasrec", "--data", "nowhere", "--out", "OUT"], "nowhere"),
        (["train", "sasrec", "--data", "DATA", "--out", "OUT", "--set", "model.widht=3"], "unknown setting 'widht'"),
        (["train", "sasrec", "--data", "DATA", "--out", "OUT", "--set", "training.batch_size=x"], "batch_size"),
        (["train", "sasrec", "--data", "DATA", "--out", "OUT", "--recipe", "none/such"], "no recipe is called"),
        (["train", "sasrec", "--data", "DATA", "--out", "OUT", "--recipe", "debug/tiger"], "is for tiger"),
        (["train", "sasrec", "--data", "DATA", "--out", "OUT", "--protocol", "weekly"], "weekly"),
        (["train", "sasrec", "--out", "OUT"], "--data"),
        (["train", "sasrec", "--data", "DATA", "--out", "RUN"], "is not empty"),
        (["train", "sasrec", "--data", "DATA", "--out", "DATA", "--overwrite"], "choose another --out"),
        (["tokenize", "lsh2", "--data", "DATA", "--out", "OUT"], "no tokenizer is called"),
        (["evaluate", "nowhere"], "no such run"),
        (["evaluate", "DATA"], "is not a run"),
        (["recommend", "RUN"], "exactly one of"),
        (["recommend", "RUN", "--history", "zz"], "no item is called zz; item ids look like i"),
        (["recommend", "RUN", "--user", "zz"], "no user is called zz"),
        (["recommend", "RUN", "--history", "i1", "--only", "colour=red"], "no column 'colour'"),
        (["recommend", "RUN", "--history", "i1", "--only", "category=zz"], "some values are c"),
        (["recommend", "RUN", "--history", "i1", "-k", "0"], "-k"),
        (["compare", "--data", "DATA", "--out", "OUT"], "--models"),
        ([*COMPARE, "--set", "sasrex.model.width=8"], "settings of sasrex"),
        ([*COMPARE, "--set", "sasrec.model.widht=8"], "widht"),
        ([*COMPARE, "--set", "sasrec=8"], "is no table"),
        (["export", "RUN", "--out", "OUT"], "train one with: nextitem train cobra"),
        (["tune", "item-cg", "--data", "DATA", "--out", "OUT", "--trials", "3"], "no model is called 'item-cg'"),
        (["tune", "item-cf", "--data", "DATA", "--out", "OUT"], "give --minutes, --trials, or both"),
        (["tune", "item-cf", "--data", "DATA", "--out", "RUN", "--trials", "3"], "is not empty"),
        (["tune", "item-cf", "--data", "nowhere", "--out", "OUT", "--trials", "3"], "nowhere"),
        ([*TUNE, "--space", "model.decai=0.1..1"], "unknown setting 'decai'"),
        ([*TUNE, "--space", "model.decay=1..0.1"], "the range is empty"),
        ([*TUNE, "--space", "model.decay=0.1..3"], "less than or equal to 1"),
        ([*TUNE, "--metric", "clicks@3"], "--metric clicks@3: write one of recall"),
        ([*TUNE, "--protocol", "weekly"], "weekly"),
        ([*SCALE, "--sizes", "1/2,wide"], "'wide' is no number"),
        ([*SCALE, "--data-shares", "2"], "a share of the training data is at most 1"),
        ([*SCALE, "--set", "model.widht=8"], "unknown setting 'widht'"),
        ([*SCALE, "--set", "model.contrastive={}"], "add --set model.contrastive=none"),
        (["scale", "item-cf", "--data", "DATA", "--out", "OUT"], "there are counts of sasrec, hstu, hstu-ranking"),
        (["frobnicate"], "frobnicate"),
        (["train", "--nonsense"], "nonsense"),
    ],
)
def test_a_mistake_prints_one_clear_line(
    cli: Cli, runs: Path, folder: Path, tmp_path: Path, args: list[str], message: str
) -> None:
    places = {"DATA": folder, "OUT": tmp_path / "out", "RUN": runs / "sasrec"}
    assert message in one_line(cli(*[places.get(arg, arg) for arg in args]))
    assert not (tmp_path / "out" / "weights.safetensors").exists()
    assert (folder / "items.csv").is_file()


def test_a_finished_run_is_not_trained_again_and_another_recipe_is_refused(cli: Cli, runs: Path, folder: Path) -> None:
    args = ["train", "sasrec", "--data", folder, "--out", runs / "sasrec", "--recipe", "debug/sasrec", "--resume"]
    code, _, err = cli(*args, "--protocol", "leave-one-out")
    assert code == 0
    assert "finished already" in err
    assert "other settings" in one_line(cli(*args, "--protocol", "leave-one-out", "--seed", 7))


def test_a_damaged_bundle_is_refused_with_the_file(cli: Cli, runs: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("recipe.toml", "catalog.parquet"):
        (broken / name).write_bytes((runs / "sasrec" / name).read_bytes())
    (broken / "weights.safetensors").write_bytes(b"\x00" * 50)
    assert "weights.safetensors is missing or damaged" in one_line(cli("evaluate", broken))


def test_compare_writes_scoreboard_and_report(cli: Cli, runs: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    args = ["compare", runs / "item-cf", runs / "sasrec", "--models", "popularity,swing", "--data", folder]
    code, output, _ = cli(*args, "--protocol", "leave-one-out", "--out", out, "--set", "swing.model.alpha=2")
    assert code == 0
    rows = json.loads((out / "scoreboard.json").read_text())["rows"]
    assert {row["model"] for row in rows} == {"item-cf", "sasrec", "popularity", "swing"}
    assert tomllib.loads((out / "runs" / "swing" / "recipe.toml").read_text())["model"]["alpha"] == 2
    assert {"parameters", "train_seconds", "p50_ms", "p99_ms", "metrics", "intervals"} <= set(rows[0])
    page = (out / "report.html").read_text()
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "sasrec" in output


def test_tune_prints_the_best_settings_and_train_takes_them(cli: Cli, folder: Path, tmp_path: Path) -> None:
    args = ["tune", "item-cf", "--data", folder, "--protocol", "leave-one-out", "--out", tmp_path / "tuning"]
    code, out, err = cli(*args, "--trials", 4, "--space", "model.decay=0.1..1", "--space", "model.window=1,2,5")
    assert code == 0
    assert "item-cf on planted by ndcg@10 on validation requests, 4 trials" in out
    assert "planted: 80, by which settings were selected" in out
    assert "trial 3: " in err
    files = {file.name for file in (tmp_path / "tuning").iterdir()}
    assert files == {"best.toml", "trials.jsonl", "tune.toml", "tuning.png"}
    args = ["train", "item-cf", "--data", folder, "--recipe", tmp_path / "tuning" / "best.toml"]
    code, _, err = cli(*args, "--protocol", "leave-one-out", "--out", tmp_path / "run")
    assert code == 0
    assert "warning" not in err
    recipe = tomllib.loads((tmp_path / "run" / "recipe.toml").read_text())
    best = tomllib.loads((tmp_path / "tuning" / "best.toml").read_text())
    assert recipe["model"] == best["model"]


def test_scale_prints_the_runs_and_the_verdict(cli: Cli, folder: Path, tmp_path: Path) -> None:
    args = ["scale", "sasrec", "--data", folder, "--protocol", "leave-one-out", "--out", tmp_path / "scaling"]
    args += ["--recipe", "debug/sasrec", "--set", "training.max_epochs=1", "--set", "training.batch_size=64"]
    code, out, err = cli(*args, "--sizes", "1/2,1", "--data-shares", "1")
    assert code == 0
    assert "point 2 of 2: size 1, share 1, seed 0: loss" in err
    assert "Too few decades: the fit has 1 combinations" in out
    assert (tmp_path / "scaling" / "report.html").is_file()
    code, _, err = cli(*args, "--sizes", "1/4,1/2,1", "--data-shares", "1", "--resume")
    assert code == 0
    assert err.count("point ") == 1


def test_a_protocol_for_rankers_is_refused_for_other_models(cli: Cli, tmp_path: Path) -> None:
    for command in (["train", "popularity"], ["compare", "--models", "popularity"]):
        args = ["--data", "shop", "--protocol", "impressions", "--out", tmp_path / command[0]]
        code, _, err = cli(*command, *args)
        assert code == 2
        assert "choose another with --protocol" in err
        assert "Traceback" not in err


def test_rank_and_similar_print_items(cli: Cli, runs: Path, tmp_path: Path) -> None:
    (tmp_path / "items.txt").write_text("i5\ni2\n", encoding="utf-8")
    for source in (["--candidates", "i5,i2"], ["--candidates-file", tmp_path / "items.txt"]):
        code, out, _ = cli("rank", runs / "item-cf", "--history", "i1", *source, "--json")
        assert code == 0
        assert {row["item_id"] for row in json.loads(out)} == {"i5", "i2"}
    assert cli("rank", runs / "sasrec", "--user", "u1", "--candidates", "i3,i4")[1].startswith("  1  i")
    rows = json.loads(cli("similar", runs / "sasrec", "i1", "-k", 3, "--json")[1])
    assert [row["rank"] for row in rows] == [1, 2, 3]
    assert cli("similar", runs / "item-cf", "i1", "-k", 2)[1].startswith("  1  i")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rank", "RUN", "--history", "i1"], "either --candidates or --candidates-file"),
        (["rank", "RUN", "--candidates", "i1"], "either --user or --history"),
        (["rank", "RUN", "--history", "i1", "--candidates", "zz"], "no item is called zz"),
        (["similar", "RUN", "zz"], "no item is called zz"),
        (["similar", "nowhere", "i1"], "no such run"),
        (["models", "sasrex"], "nothing with settings is called 'sasrex'"),
        (["models", "recall", "--kind", "metric"], "has no settings"),
    ],
)
def test_mistakes_in_rank_similar_and_models_print_one_line(
    cli: Cli, runs: Path, arguments: list[str], message: str
) -> None:
    code, _, err = cli(*[str(runs / "item-cf") if word == "RUN" else word for word in arguments])
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_models_prints_every_setting(cli: Cli) -> None:
    out = cli("models", "two-tower")[1]
    assert "width = 64    (int, >= 1)\n    Width of the output vectors of both towers (D).\n" in out
    assert "index.kind = 'exact'" in out
    out = cli("models", "sasrec")[1]
    assert "objective.kind = 'sampled-softmax'    ('full-softmax' | 'sampled-softmax' | 'bce' | 'gbce')" in out
    assert "objective.shared_by = 'batch'    ('batch' | 'sequence' | 'position')\n    If sampled-softmax: " in out
    assert "objective.calibration = 0.75    (float, >= 0, <= 1)\n    If gbce: " in out
