"""A version is taken into use under load without a lost or mixed answer; a damaged one is refused with its reason."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from threading import Event

import pytest
import torch
from fastapi.testclient import TestClient
from safetensors.torch import load_file, save_file
from support.trained_models import rich_run, trained

from nextitem.core.dataset import Dataset
from nextitem.pipeline.runs import Run, load_run
from nextitem.pipeline.train import train
from nextitem.pipeline.versions import use_version
from nextitem.serving.app import make_app
from nextitem.serving.config import ServiceConfig
from nextitem.serving.service import Service
from nextitem.serving.stores import open_store
from nextitem.serving.swapping import VersionWatcher
from nextitem.testing.rich_log import longer_log, rich_log

BODY = {"history": ["i03", "i04"], "k": 6}


@cache
def data() -> Dataset:
    return rich_log()


def open_run(folder: Path) -> Run:
    return load_run(folder).use_data(data())


def add_version(run: Path, name: str, source: Path) -> Path:
    """Add a version that is a copy of another run, and use it."""
    folder = run / "versions" / name
    shutil.copytree(source, folder)
    use_version(run, name)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return the folder of a run of popularity."""
    shutil.copytree(rich_run("popularity").folder, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def service(run: Path) -> Iterator[Service]:
    config = ServiceConfig(max_wait=20, deadline_seconds=20)
    new_service = Service({"run": open_run(run)}, open_store("sqlite:///:memory:"), config)
    new_service.watcher = VersionWatcher(new_service.all_models, {"run": run}, open_run, new_service.metrics)
    yield new_service
    new_service.close()


def look(service: Service) -> None:
    assert service.watcher is not None
    service.watcher.check()


def model_of(client: TestClient) -> dict[str, object]:
    model: dict[str, object] = client.get("/v1/models").json()[0]
    return model


def test_swaps_under_load_lose_no_answer_and_mix_none(service: Service, run: Path) -> None:
    add_version(run, "2", rich_run("item-cf").folder)
    expected = {
        source.model.weights_fingerprint(): source.recommend(history=BODY["history"], k=6).item_ids
        for source in (rich_run("popularity"), rich_run("item-cf"))
    }
    assert len({tuple(items) for items in expected.values()}) == 2
    client, is_over = TestClient(make_app(service)), Event()

    def load(_: int) -> list[tuple[str, list[str]]]:
        answers = []
        while not is_over.is_set():
            answer = client.post("/v1/recommend", json=BODY)
            assert answer.status_code == 200, answer.text
            assert not answer.json()["fallback"]
            answers.append((answer.json()["version"], [item["item_id"] for item in answer.json()["items"]]))
        return answers

    with ThreadPoolExecutor(6) as pool:
        loads = [pool.submit(load, number) for number in range(6)]
        try:
            for name in ("2", "1") * 4:
                use_version(run, name)
                look(service)
                assert service.models["run"].version.name == name
        finally:
            is_over.set()
        answers = [answer for each in loads for answer in each.result()]
    assert {version for version, _ in answers} == set(expected)
    assert all(items == expected[version] for version, items in answers)
    assert "nextitem_version_swaps_total" in client.get("/metrics").text


def truncate_weights(folder: Path) -> None:
    file = folder / "weights.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def remove_catalog(folder: Path) -> None:
    (folder / "catalog.parquet").unlink()


def replace_catalog(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(trained("item-cf").folder, folder)


def cut_recipe(folder: Path) -> None:
    (folder / "recipe.toml").write_text("[model]\nname = ")


def lose_digits(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(rich_run("sasrec").folder, folder)
    weights = load_file(folder / "weights.safetensors")
    name = next(name for name, value in weights.items() if value.dim() == 2)
    save_file({**weights, name: weights[name] * torch.nan}, folder / "weights.safetensors")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncate_weights, "weights.safetensors is missing or damaged"),
        (remove_catalog, "catalog.parquet is missing or damaged"),
        (replace_catalog, "its catalogue lacks 10 of 12 items"),
        (cut_recipe, "recipe.toml"),
        (lose_digits, "values that are not finite"),
    ],
)
def test_a_damaged_version_is_refused_until_its_files_change(
    service: Service, run: Path, damage: Callable[[Path], None], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    client = TestClient(make_app(service))
    before = client.post("/v1/recommend", json=BODY).json()
    folder = add_version(run, "2", rich_run("item-cf").folder)
    damage(folder)
    for _ in range(3):
        look(service)
    refused = model_of(client)["refused"]
    assert isinstance(refused, dict)
    assert refused["name"] == "2"
    assert words in refused["reason"]
    assert len([record for record in caplog.records if "is refused" in record.message]) == 1  # not at every look
    assert "Traceback" not in caplog.text
    metrics = client.get("/metrics").text
    assert 'nextitem_version_refusals_total{model="run"} 1.0' in metrics
    assert 'nextitem_version_is_refused{model="run"} 1.0' in metrics
    after = client.post("/v1/recommend", json=BODY).json()
    assert (after["items"], after["version"]) == (before["items"], before["version"])
    shutil.rmtree(folder)
    shutil.copytree(rich_run("item-cf").folder, folder)
    look(service)
    look(service)  # the files did not change in between
    model = model_of(client)
    assert (model["version_name"], model["kind"]) == ("2", "item-cf")
    assert "refused" not in {name for name, value in model.items() if value is not None}
    assert 'nextitem_version_is_refused{model="run"} 0.0' in client.get("/metrics").text


def test_a_version_that_does_not_exist_is_refused_and_the_old_one_may_be_used_again(
    service: Service, run: Path
) -> None:
    (run / "current").write_text("9\n")
    look(service)
    refused = service.models["run"].refused
    assert refused is not None
    assert "has no version '9'" in refused.reason
    use_version(run, "1")
    look(service)
    assert service.models["run"].refused is None


def test_a_version_with_more_items_is_used_and_given_up_again(service: Service, run: Path, tmp_path: Path) -> None:
    longer = train("popularity", longer_log(), out=tmp_path / "longer", recipe="debug/popularity", progress=False)
    add_version(run, "2", longer.folder)
    client = TestClient(make_app(service))
    for name, num_items in (("2", 13), ("1", 12), ("2", 13)):
        use_version(run, name)
        look(service)
        model = model_of(client)
        assert (model["version_name"], model["num_items"]) == (name, num_items)


def test_files_that_are_replaced_in_place_are_read_when_they_are_complete(service: Service, run: Path) -> None:
    first = service.models["run"].version.fingerprint
    for file in ("recipe.toml", "weights.safetensors", "catalog.parquet"):
        shutil.copy(rich_run("item-cf").folder / file, run / file)
        look(service)
        assert service.models["run"].version.fingerprint == first  # the files are still changing
    look(service)
    assert service.models["run"].version.fingerprint == rich_run("item-cf").model.weights_fingerprint()


def test_the_thread_looks_when_it_is_woken(service: Service, run: Path) -> None:
    service.watch({"run": run}, open_run, seconds=600)
    add_version(run, "2", rich_run("item-cf").folder)
    used = Event()
    model = service.models["run"]
    use = model.use

    def noted(*arguments: object) -> None:
        use(*arguments)  # type: ignore[arg-type]
        used.set()

    model.use = noted  # type: ignore[method-assign, assignment]
    service.look_for_versions()
    assert used.wait(20)
    assert model.version.name == "2"


def test_the_time_of_requests_goes_on(service: Service, run: Path) -> None:
    later = service.models["run"].engine.histories.latest_ms + 10**9
    service.models["run"].engine.histories.advance(later)
    add_version(run, "2", rich_run("item-cf").folder)
    look(service)
    assert service.models["run"].version.name == "2"
    assert service.models["run"].engine.histories.latest_ms == later
