"""The commands `nextitem import` and `nextitem export --format`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.layouts import Files, Layouts

from nextitem.cli.main import main
from nextitem.data.importers.names import DATASETS, IDENTIFIERS

Result = tuple[int, str, str]
ML: Files = {
    "ml-latest/ratings.csv": "userId,movieId,rating,timestamp\n"
    "1,2,3.5,1112486027\n1,29,3.5,1112484000\n2,2,1,1112480000\n",
    "ml-latest/movies.csv": "movieId,title,genres\n2,Jumanji (1995),Adventure\n29,City,Drama\n",
}


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Return a function that runs `nextitem ARGS` in this process and returns (exit code, stdout, stderr)."""

    def run(*args: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["nextitem", *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def layouts(tmp_path: Path) -> Layouts:
    """Return a writer of files into the folder of this test."""
    return Layouts(tmp_path)


def test_data_and_semantic_ids_are_imported_and_exported(
    cli: Callable[..., Result], layouts: Layouts, tmp_path: Path
) -> None:
    data, ids = tmp_path / "data", tmp_path / "ids"
    code, out, err = cli("import", "ml-latest", layouts.zip(ML), "--out", data)
    assert (code, out) == (0, f"{data}\n")
    assert "reading" in err, "progress is on stderr"
    assert json.loads(cli("data", "describe", data, "--json")[1])["events"] == 3

    index = tmp_path / "ml.index.json"
    index.write_text(json.dumps({"2": ["<a_1>", "<b_0>"], "29": ["<a_0>", "<b_7>"]}))
    code, out, _ = cli("import", "letter-ids", index, "--data", data, "--out", ids)
    assert code == 0
    assert out.splitlines()[-1] == f"{ids}: 2 items, 2 levels (2, 8)"
    assert cli("export", ids, "--format", "minionerec", "--out", tmp_path / "Movies")[0] == 0
    assert {file.name for file in (tmp_path / "Movies").iterdir()} == {
        "Movies.index.json",
        "Movies.item.json",
        "Movies.item2id",
    }
    assert json.loads((tmp_path / "Movies" / "Movies.index.json").read_text())["1"] == ["<a_0>", "<b_7>"]
    assert cli("export", ids, "--format", "grid", "--out", tmp_path / "Movies", "--overwrite")[0] == 0
    assert (tmp_path / "Movies" / "merged_predictions_tensor.pt").is_file()


def test_the_list_contains_every_importer(cli: Callable[..., Result]) -> None:
    code, out, _ = cli("import", "--list")
    assert code == 0
    for name, entry in (DATASETS | IDENTIFIERS).items():
        assert f"{name} " in out
        assert entry.expects in out
    assert cli("import")[1] == out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["ml-latest", "absent.zip", "--out", "data"], "absent.zip: no such file or folder"),
        (["ml-latest", "absent.zip"], "say where to write it with --out DIR"),
        (["ml-latest", "--out", "data"], "give the file or folder"),
        (["movielens", "x", "--out", "data"], "there is no importer 'movielens'"),
        (["letter-ids", "x.index.json", "--out", "ids"], "say whose items they are with --data DIR"),
        (["letter-ids", "--data", "shop", "--out", "ids"], "give one file: NAME.index.json"),
        (["ml-latest", "x", "--data", "shop", "--out", "data"], "--data and --item-ids are for semantic IDs"),
    ],
)
def test_a_mistake_prints_one_line_and_writes_nothing(
    cli: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = cli("import", *args)
    assert code == 2
    assert err.count("\n") == 1
    assert message in err
    assert not list(tmp_path.iterdir())
