"""The comparison of the demo end to end: on real data, and from an installed wheel in an empty folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from nextitem.data.readers import load_dataset
from nextitem.data.shop.shop import generate_shop
from nextitem.pipeline.compare import MAIN_JOB, compare, main_job_settings

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["online-retail"])
def test_the_comparison_of_the_demo_runs_on_real_data(real_data: Path, tmp_path: Path, name: str) -> None:
    whole = load_dataset(real_data / name)
    log = whole.interactions
    comparison = compare(
        whole.with_interactions(log.select(log.user_ids <= 1_200)),  # the whole log takes five minutes
        out=tmp_path / "out",
        models=MAIN_JOB,
        settings=main_job_settings(0.1),
        minutes_per_model=0.1,
        progress=False,
    )
    board = json.loads((tmp_path / "out" / "scoreboard.json").read_text())["rows"]
    names = [*MAIN_JOB, "depth-decoder alone"]
    assert [row["name"] for row in board] == names
    figures = {row["name"]: row["metrics"]["recall@10"] for row in board}
    assert figures["item-graph"] > figures["item-cf"] > figures["popularity"] > 0
    assert all(row["p50_ms"] > 0 for row in board)
    assert len(comparison.examples) == 3
    assert set(comparison.examples[0].recommended) == set(names)
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<svg") >= 4
    assert page.count("<script") == 1
    assert "<h2>In short" in page
    listed = [item for lists in comparison.examples[0].recommended.values() for item in lists]
    assert all(item.title for item in listed)
    assert any(item.channel for item in comparison.examples[0].recommended["cascade"])


@pytest.mark.slow
def test_a_wheel_runs_the_demo_from_an_empty_folder(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path / "dist", ROOT], check=True, capture_output=True
    )
    wheel = next((tmp_path / "dist").glob("*.whl"))
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True)
    # The wheel's dependencies come from the environment of this test: only the package itself is new.
    site = next(path for path in sys.path if path.endswith("site-packages"))
    (next((tmp_path / "env" / "lib").glob("python*")) / "site-packages" / "outer.pth").write_text(site + "\n")
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    location = subprocess.run(
        [python, "-c", "import nextitem; print(nextitem.__file__)"],
        cwd=empty, env=environment, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert str(tmp_path / "env") in location.stdout
    program: list[str | Path] = [python, "-m", "nextitem"]
    trained = subprocess.run(
        [*program, "train", "item-cf", "--data", "shop", "--out", "runs/item-cf"],
        cwd=empty, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr[-2000:]
    generate_shop(0, num_users=300).write(tmp_path / "small-shop")  # the whole shop takes five minutes
    command = [*program, "demo", "--data", tmp_path / "small-shop", "--minutes-per-model", "0.1", "--out", "runs/demo"]
    first = subprocess.run(command, cwd=empty, env=environment, check=True, capture_output=True, text=True)
    for model in MAIN_JOB:
        assert model in first.stdout
    assert (empty / "runs" / "demo" / "report.html").is_file()
    second = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True)
    assert second.returncode == 2
    assert "--overwrite" in second.stderr
