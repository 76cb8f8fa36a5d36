"""The public Python interface: every exported name is called as in README and docstrings."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from support.spies import spy

import nextitem as ni
from nextitem.core.config import Config
from nextitem.data import requests
from nextitem.models.item_cf import ItemCFConfig
from nextitem.models.popularity import Popularity
from nextitem.testing.known_answers import DATASETS
from nextitem.testing.rich_log import SETTINGS, longer_log, rich_frames, rich_log
from nextitem.training.fit import TrainingResult, fit

pytestmark = pytest.mark.usefixtures("without_figures")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> ni.Run:
    return ni.train("item-cf", rich_log(), out=tmp_path_factory.mktemp("door") / "run", progress=False)


def test_every_exported_name_exists_and_is_listed() -> None:
    for name in ni.__all__:
        assert getattr(ni, name) is not None
    assert set(ni.__all__) <= set(dir(ni))
    assert set(ni.__all__) == {*ni._MODULES, "models"}
    assert callable(ni.models)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ni.nothing  # noqa: B018


def test_runs_are_pushed_and_pulled_and_versions_are_used_by_name(run: ni.Run, tmp_path: Path) -> None:
    """The hub itself is tested in tests/pipeline/test_hub.py, updates in tests/pipeline/test_update.py."""
    files = Path(ni.push(run, "me/shop", dry_run=tmp_path / "upload"))
    assert (files / "README.md").is_file()
    assert (files / "recipe.toml").is_file()
    with pytest.raises(ni.UserError, match="no repository"):
        ni.pull("no repository", out=tmp_path / "pulled")
    with pytest.raises(ni.UserError, match="has no version '2'; it has 1"):
        ni.rollback(run.folder, "2")
    ni.rollback(run.folder, "1")
    assert (run.folder / "current").read_text() == "1\n"
    with pytest.raises(ni.UserError, match="nowhere: no such run"):
        ni.rollback("nowhere", "1")
    with pytest.raises(ni.UserError, match="unknown kind of store"):
        ni.update_from_store(run.folder, "mysql://host")


def test_data_sets_are_described_imported_and_downloaded(tmp_path: Path) -> None:
    assert ni.describe(rich_log())["users"] == 60
    with pytest.raises(ni.UserError, match="ml-100k"):
        ni.import_dataset("no-such-set", ["file"], tmp_path / "out")
    with pytest.raises(ni.UserError, match="ml-100k"):
        ni.download("no-such-set", tmp_path / "out")


@pytest.mark.slow
def test_mypy_knows_the_types_of_exported_names(tmp_path: Path) -> None:
    from mypy import api

    (tmp_path / "user.py").write_text(
        "import nextitem as ni\n"
        'run = ni.train("sasrec", "shop", out="x")\n'
        "reveal_type(run)\n"
        "reveal_type(run.recommend_many())\n"
        "reveal_type(ni.evaluate(run))\n"
        "ni.train(1)\n"
    )
    out, _, _ = api.run([str(tmp_path / "user.py"), "--cache-dir", str(tmp_path / "cache"), "--follow-imports=silent"])
    assert "nextitem.pipeline.runs.Run" in out
    assert "polars.dataframe.frame.DataFrame" in out
    assert "nextitem.evaluation.evaluate.Evaluation" in out
    assert out.count("error") >= 2  # a wrong argument, and a missing one: both on one line or on two


def test_a_run_recommends_ranks_and_finds_similar_items(run: ni.Run) -> None:
    answer = run.recommend(history=["i01", "i02"], k=3)
    assert isinstance(answer, ni.RecommendationList)
    assert len(answer) == len(list(answer)) == 3
    assert answer.to_frame().columns == ["item_id", "title", "score", "rank"]
    assert repr(answer).startswith(f"  1  {answer.item_ids[0]}  ")
    assert run.recommend(user="u01", k=2).item_ids
    many = run.recommend_many(k=2)
    assert many.columns == ["user_id", "item_id", "score", "rank"]
    assert many["user_id"].n_unique() == 60
    assert run.recommend_many(["u03", "u01"], k=1)["user_id"].to_list() == ["u03", "u01"]
    answer_of_user = run.recommend(user="u03", k=1)
    assert run.recommend_many(["u03"], k=1)["item_id"].to_list() == answer_of_user.item_ids
    ranked = run.rank(history=["i01"], candidates=["i05", "i02", "i02", "i09"])
    assert ranked.columns == ["user_id", "item_id", "score", "rank"]
    assert sorted(ranked["item_id"]) == ["i02", "i05", "i09"]
    assert ranked["item_id"][0] == "i02"  # items follow one another in a circle
    assert run.rank(user="u01", candidates=["i05"])["user_id"].to_list() == ["u01"]
    similar = run.similar("i01", k=3)
    assert similar.columns == ["item_id", "score", "rank"]
    assert "i01" not in similar["item_id"]


def test_a_history_can_be_a_table(run: ni.Run) -> None:
    frame = pl.DataFrame({"item_id": ["i01", "i02"], "timestamp": [1_700_000_000, 1_700_000_100]})
    for history in (frame, frame.to_arrow(), {"item_id": ["i01", "i02"]}):
        assert run.recommend(history=history, k=3).item_ids == run.recommend(history=["i01", "i02"], k=3).item_ids
    assert run.recommend(history=["i01"], context={"user.country": "FR"}, k=1).item_ids


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: run.recommend(), "either a history of items or a user"),
        (lambda run: run.recommend(user="nobody"), "no user is called nobody"),
        (lambda run: run.recommend(history={"item": ["i01"]}), "column 'item_id' is missing"),
        (lambda run: run.recommend(history=["i01"], context={"mood": "good"}), "context 'mood'"),
        (lambda run: run.recommend(user="u01", context={"user.country": "FR"}), "context goes with a history"),
        (lambda run: run.rank(history=["i01"], candidates=["zz"]), "no item is called zz"),
        (lambda run: run.rank(history=["i01"], candidates=[]), "there are none"),
        (lambda run: run.similar("zz"), "no item is called zz"),
        (lambda run: run.to("tpu"), "choose auto, cpu or cuda"),
        (lambda run: ni.models("engine"), "choose one of model"),
        (lambda run: ni.load_run("nowhere"), "no such run"),
        (lambda run: ni.export(run, out="x"), "no decoder of codes alone"),
        (lambda run: ni.compare(rich_log(), out="x"), "nothing to compare"),
        (lambda run: ni.train("my_models:Mine", rich_log(), out="x"), "no module my_models can be imported"),
        (lambda run: ni.train("nextitem.models.sasrec:Gone", rich_log(), out="x"), "has no Gone"),
        (lambda run: ni.train("pathlib:Path", rich_log(), out="x"), "must be a subclass of"),
        (lambda run: ni.train("sasrex", rich_log(), out="x"), "no model is called 'sasrex'"),
        (lambda run: ni.train("sasrec", rich_log(), out="x", settings={"model.widht": 3}), "widht"),
        (lambda run: ni.train("sasrec", rich_log(), out="x", settings={"model": {"width": "wide"}}), "width"),
    ],
)
def test_a_mistake_raises_an_error_of_one_clear_line(
    run: ni.Run, call: Callable[[ni.Run], object], message: str
) -> None:
    with pytest.raises(ni.UserError, match=message) as error:
        call(run)
    assert "\n" not in str(error.value)


def test_a_run_on_data_in_memory_can_be_evaluated_and_opened(run: ni.Run, tmp_path: Path) -> None:
    assert isinstance(run.evaluation, ni.Evaluation)
    assert ni.evaluate(run).metrics == run.evaluation.metrics
    opened = ni.load_run(run.folder, device="cpu")
    assert opened.metrics["metrics"]["recall@10"] == pytest.approx(run.evaluation.metrics["recall@10"])
    with pytest.raises(ni.UserError, match="trained on a data set in memory"):
        opened.recommend(user="u01")
    assert opened.use_data(rich_log()).recommend(user="u01", k=2).item_ids == run.recommend(user="u01", k=2).item_ids
    assert ni.evaluate(opened).metrics == run.evaluation.metrics
    assert repr(opened).splitlines()[0] == f"Run of item-cf in {run.folder}"


def test_the_log_is_read_once_until_the_data_are_replaced(run: ni.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = spy(monkeypatch, requests, "event_values", lambda log, catalog: log)
    opened = ni.load_run(run.folder).use_data(rich_log())
    for user in ("u01", "u02", "u01"):
        assert opened.recommend(user=user, k=2).item_ids == run.recommend(user=user, k=2).item_ids
    before = opened.dataset
    assert sum(log is before.interactions for log in logs) == 1
    opened.use_data(longer_log()).recommend(user="u01", k=2)
    assert logs[-1] is opened.dataset.interactions is not before.interactions


def test_the_history_of_a_user_is_that_of_the_whole_log(run: ni.Run) -> None:
    """The history is not limited to training events, so recommendations use the latest events."""
    assert len(run.dataset.interactions) == len(rich_log().interactions)


@pytest.mark.parametrize("settings", [{"model.window": 3}, {"model": {"window": 3}}, ItemCFConfig(window=3)])
def test_settings_can_be_tables_dotted_names_or_a_config(settings: dict[str, object] | Config, tmp_path: Path) -> None:
    run = ni.train("item-cf", rich_log(), out=tmp_path / "run", settings=settings, progress=False)
    assert run.recipe.model["window"] == 3
    assert run.recipe.model["neighbours"] == 100


class OwnPopularity(Popularity):
    """Example of a model that a user defines."""


def test_a_class_can_be_passed_as_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_models.py").write_text(
        "from nextitem.models.popularity import Popularity\n\n\nclass Mine(Popularity):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run = ni.train("own_models:Mine", rich_log(), out=tmp_path / "run", progress=False)
    assert type(ni.load_run(run.folder).model).__name__ == "Mine"
    model_class = import_module("own_models").Mine
    second_run = ni.train(model_class, rich_log(), out=tmp_path / "again", progress=False)
    assert second_run.name == "own_models:Mine"
    comparison = ni.compare(rich_log(), models=[model_class, "popularity"], out=tmp_path / "both", progress=False)
    assert [row.name for row in comparison.rows] == ["own_models:Mine", "popularity"]
    assert ni.train(Popularity, rich_log(), out=tmp_path / "registered", progress=False).name == "popularity"


def test_compare_tokenize_diagnose_and_models_return_their_types(tmp_path: Path, run: ni.Run) -> None:
    frames = rich_frames()
    assert set(frames) == {"interactions", "items", "users"}
    data = ni.Dataset.from_frames(
        frames["interactions"], items=frames["items"], users=frames["users"], settings=SETTINGS, name="rich"
    )
    comparison = ni.compare(data, runs=[run], models=["popularity"], out=tmp_path / "compare", progress=False)
    assert isinstance(comparison, ni.Comparison)
    assert comparison.to_frame()["name"].to_list() == ["item-cf", "popularity"]
    table = ni.tokenize("lsh", data, out=tmp_path / "ids", settings={"tokenizer.levels": 2}, progress=False)
    assert table.num_items == 12
    assert isinstance(ni.diagnose(data), ni.Diagnosis)
    frame = ni.models("model")
    assert frame.columns == ["kind", "name", "summary", "paper"]
    assert "sasrec" in frame["name"]
    assert ni.load_dataset("shop").name == "shop"
    assert issubclass(ni.ContractError, RuntimeError)


def test_similar_items_of_content_neighbours_follow_the_cosine(tmp_path: Path) -> None:
    run = ni.train("content-neighbours", DATASETS["planted-clusters"](), out=tmp_path / "run", progress=False)
    similar = run.similar("i1", k=5)
    scores = similar["score"].to_list()
    assert len(similar) == 5
    assert scores == sorted(scores, reverse=True)
    vectors = run.model.catalog.content
    assert vectors is not None
    cosine = torch.nn.functional.cosine_similarity(vectors[1:], vectors[1][None])
    assert scores == pytest.approx(cosine.sort(descending=True).values[1:6].tolist(), abs=1e-5)


def test_a_class_of_the_script_itself_raises_a_warning(tmp_path: Path) -> None:
    model_class = type("Mine", (Popularity,), {"__module__": "__main__"})
    sys.modules["__main__"].__dict__["Mine"] = model_class
    try:
        with pytest.warns(UserWarning, match="put the class into a module"):
            ni.train(model_class, rich_log(), out=tmp_path / "run", progress=False)
    finally:
        del sys.modules["__main__"].__dict__["Mine"]


def test_unused_training_settings_are_logged(tmp_path: Path) -> None:
    lines: list[str] = []
    settings = {"training.max_epochs": 3}
    ni.train("popularity", rich_log(), out=tmp_path / "run", settings=settings, progress=False, log=lines.append)
    (warning,) = [line for line in lines if line.startswith("warning")]
    assert warning.startswith("warning: training.max_epochs has no effect: popularity learns in one pass")


def test_items_of_a_tiny_log_can_be_tokenized(tmp_path: Path) -> None:
    events = {"user_id": ["a", "b"], "item_id": ["x", "y"], "timestamp": ["2026-01-01", "2026-01-02"]}
    items = {"item_id": ["x", "y"], "title": ["red tea", "green tea"]}
    data = ni.Dataset.from_frames(interactions=events, items=items)
    table = ni.tokenize("random", data, out=tmp_path / "ids", progress=False)
    assert len(table.codes) == 3


def test_a_folder_with_the_name_of_the_simulated_shop_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert not any("./shop" in note for note in ni.load_dataset("shop").notes)
    (tmp_path / "shop").mkdir()
    assert any("./shop" in note for note in ni.load_dataset("shop").notes)


def test_a_run_of_compare_that_drops_unknown_items_recommends(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    frames = rich_frames()
    frames["interactions"].write_parquet(folder / "interactions.parquet")
    frames["items"].tail(-1).write_parquet(folder / "items.parquet")
    report = tmp_path / "report"
    ni.compare(folder, models=["popularity"], out=report, drop_unknown_items=True, progress=False)
    run = ni.load_run(report / "runs" / "popularity")
    assert run.recipe.data.drop_unknown_items
    assert len(run.recommend(user="u01", k=3)) == 3


def test_returned_objects_have_a_short_repr(run: ni.Run, tmp_path: Path) -> None:
    text = repr(ni.evaluate(run))
    assert text.startswith("Evaluation of item-cf: protocol time, ")
    assert "recall@10 " in text
    comparison = ni.compare(rich_log(), models=["popularity"], out=tmp_path / "report", progress=False)
    assert repr(comparison).splitlines()[0] == f"Comparison in {tmp_path / 'report'}: 1 models"
    table = ni.tokenize("random", rich_log(), out=tmp_path / "ids", progress=False)
    assert repr(table).endswith("tokenizer 'random')")
    assert all(len(repr(value)) < 300 for value in (run, comparison, table, ni.evaluate(run)))


def test_tokenizing_that_was_interrupted_can_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"tokenizer_training.max_epochs": 4, "tokenizer.codebook_size": 4}
    whole = ni.tokenize("rq-vae", rich_log(), out=tmp_path / "whole", settings=settings, progress=False)

    def interrupted_fit(*arguments: Any, out: Path, **options: Any) -> TrainingResult:
        """Train one epoch, and leave the resume point of a training that Ctrl-C has stopped."""
        result = fit(*arguments, out=out, **{**options, "stop_after": 1})
        checkpoint = out / "checkpoints" / "last.ckpt"
        saved = torch.load(checkpoint, weights_only=True)
        next(iter(saved["callbacks"].values()))["stopped"] = "interrupted"
        torch.save(saved, checkpoint)
        return replace(result, stop_reason="interrupted")

    with monkeypatch.context() as patch:
        patch.setattr("nextitem.pipeline.tokenize.fit", interrupted_fit)
        with pytest.raises(KeyboardInterrupt):
            ni.tokenize("rq-vae", rich_log(), out=tmp_path / "ids", settings=settings, progress=False)
    assert not (tmp_path / "ids" / "identifiers.safetensors").exists()
    with pytest.raises(ni.UserError, match="begun with other settings"):
        ni.tokenize("rq-vae", rich_log(), out=tmp_path / "ids", resume=True, progress=False)
    resumed = ni.tokenize("rq-vae", rich_log(), out=tmp_path / "ids", settings=settings, resume=True, progress=False)
    assert torch.equal(resumed.codes, whole.codes)
