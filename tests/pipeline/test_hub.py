"""Push and pull: the real client of the hub talks to a local server, and what is pulled answers as the run does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.fake_hub import TOKEN, FakeHub, fake_hub
from support.trained_models import rich_run

from nextitem.core.errors import UserError
from nextitem.pipeline.hub import CARD, pull, push, run_files
from nextitem.pipeline.runs import Run

hub_client = pytest.importorskip("huggingface_hub")
REPO = "me/shop-graph"


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub() as server:
        yield server


@pytest.fixture
def run() -> Run:
    return rich_run("item-graph")


def api(hub: FakeHub, token: str = TOKEN) -> Any:
    return hub_client.HfApi(endpoint=hub.address, token=token)


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_a_pushed_run_is_pulled_and_answers_the_same(hub: FakeHub, run: Run, tmp_path: Path) -> None:
    (run.folder / "notes.pkl").write_bytes(b"not part of a run")
    address = push(run, REPO, license="apache-2.0", message="First", api=api(hub))
    assert "/commit/" in address
    assert hub.is_private[REPO]
    assert hub.messages == ["First"]
    uploaded = hub.repos[REPO]
    assert sorted(uploaded) == sorted([CARD, *(file.name for file in run_files(run.folder))])
    assert all(uploaded[file.name] == file.read_bytes() for file in run_files(run.folder))
    hub.lfs.add("weights.safetensors")
    pulled = pull(REPO, out=tmp_path / "pulled", api=api(hub))
    assert names(tmp_path / "pulled") == sorted(file.name for file in run_files(run.folder))
    assert names(tmp_path) == ["pulled"]
    history = ["i03", "i04"]
    assert pulled.recommend(history=history).to_json() == run.recommend(history=history).to_json()
    with pytest.raises(UserError, match="--overwrite"):
        pull(REPO, out=tmp_path / "pulled", api=api(hub))
    assert pull(REPO, out=tmp_path / "pulled", overwrite=True, api=api(hub)).folder == tmp_path / "pulled"


def test_a_dry_run_writes_what_would_be_uploaded(run: Run, tmp_path: Path) -> None:
    assert push(run, REPO, dry_run=tmp_path / "dry") == str(tmp_path / "dry")
    assert names(tmp_path / "dry") == sorted([CARD, *(file.name for file in run_files(run.folder))])
    _, head, text = (tmp_path / "dry" / CARD).read_text(encoding="utf-8").split("---\n", 2)
    metadata = yaml.safe_load(head)
    assert metadata["license"] == "other"
    assert metadata["library_name"] == "nextitem"
    assert "item-graph" in metadata["tags"]
    (entry,) = metadata["model-index"]
    figures = {metric["type"]: metric["value"] for result in entry["results"] for metric in result["metrics"]}
    assert figures["recall@10"] == run.metrics["metrics"]["recall@10"]
    assert f"nextitem pull {REPO}" in text
    with pytest.raises(UserError, match="not empty"):
        push(run, REPO, dry_run=tmp_path / "dry")


@pytest.mark.parametrize(
    "name", ["model.pkl", "../outside.json", "stages/weights.safetensors", "/etc/passwd", "recipe.toml.py"]
)
def test_a_repository_with_other_files_is_refused(hub: FakeHub, run: Run, tmp_path: Path, name: str) -> None:
    push(run, REPO, api=api(hub))
    hub.repos[REPO][name] = b"x"
    with pytest.raises(UserError, match="which no run does"):
        pull(REPO, out=tmp_path / "pulled", api=api(hub))
    assert names(tmp_path) == []


def test_damaged_and_incomplete_repositories_are_refused(hub: FakeHub, run: Run, tmp_path: Path) -> None:
    push(run, REPO, api=api(hub))
    out, files = tmp_path / "pulled", dict(hub.repos[REPO])
    weights = "weights.safetensors"
    for is_lfs in (False, True):
        hub.lfs = {weights} if is_lfs else set()
        hub.wrong_content = {weights: bytes(len(files[weights]))}
        with pytest.raises(UserError, match="is damaged: its hash"):
            pull(REPO, out=out, api=api(hub))
    hub.wrong_content, hub.lfs = {}, set()
    hub.wrong_sizes = {"recipe.toml": 2**30}
    with pytest.raises(UserError, match="more than any run's"):
        pull(REPO, out=out, api=api(hub))
    hub.wrong_sizes = {}
    hub.repos[REPO] = {**files, weights: files[weights][: len(files[weights]) // 2]}  # pushed damaged
    with pytest.raises(UserError, match="missing or damaged"):
        pull(REPO, out=out, api=api(hub))
    hub.repos[REPO] = {name: content for name, content in files.items() if name != weights}
    with pytest.raises(UserError, match="it has no weights"):
        pull(REPO, out=out, api=api(hub))
    assert names(tmp_path) == []


def test_a_recipe_that_names_a_class_elsewhere_is_refused(hub: FakeHub, run: Run, tmp_path: Path) -> None:
    push(run, REPO, api=api(hub))
    recipe = hub.repos[REPO]["recipe.toml"]
    hub.repos[REPO]["recipe.toml"] = recipe.replace(b'name = "item-graph"', b'name = "antigravity:Model"')
    with pytest.raises(UserError, match="--allow-import"):
        pull(REPO, out=tmp_path / "pulled", api=api(hub))
    nested = b"[model.guide]\nparts = ['antigravity:Model']\n"
    hub.repos[REPO]["recipe.toml"], replaced = recipe + nested, hub.repos[REPO]["recipe.toml"]
    with pytest.raises(UserError, match="--allow-import"):
        pull(REPO, out=tmp_path / "pulled", api=api(hub))
    hub.repos[REPO]["recipe.toml"] = replaced
    assert "antigravity" not in sys.modules
    with pytest.raises(UserError, match="antigravity"):  # it is imported, and has no such class
        pull(REPO, out=tmp_path / "pulled", allow_import=True, api=api(hub))


def test_mistakes_are_one_clear_line_without_the_token(hub: FakeHub, run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such repository"):
        pull("me/nothing", out=tmp_path / "out", api=api(hub))
    with pytest.raises(UserError, match="HF_TOKEN") as caught:
        push(run, REPO, api=api(hub, token="hf_wrong_secret"))
    assert "secret" not in str(caught.value)
    with pytest.raises(UserError, match="is no name of a repository"):
        push(run, "a/b/c", api=api(hub))
    closed = hub_client.HfApi(endpoint="http://127.0.0.1:9", token=TOKEN)
    with pytest.raises(UserError, match="cannot be reached"):
        pull(REPO, out=tmp_path / "out", api=closed)


def test_a_link_that_leads_out_of_the_run_is_not_uploaded(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for file in run_files(run.folder):
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "metrics.json").unlink()
    (tmp_path / "secret.json").write_text("{}")
    (folder / "metrics.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(UserError, match="outside of the run"):
        push(folder, REPO, dry_run=tmp_path / "dry")


@pytest.mark.slow
def test_the_commands_push_and_pull(hub: FakeHub, run: Run, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0"}
    for arguments in (["push", str(run.folder), REPO], ["pull", REPO, "--out", str(tmp_path / "pulled")]):
        command = [sys.executable, "-m", "nextitem", *arguments]
        process = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert process.returncode == 0, process.stderr
        assert TOKEN not in process.stdout + process.stderr
    assert (tmp_path / "pulled" / "recipe.toml").is_file()
