"""benchmarks/measure.py times works in turns and writes one form of result; trie.py notices functions that are idle."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Import it as a script does, from its own folder."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("measure")
    sys.modules.pop("measure", None)


def test_interleaved_works_take_turns_and_the_warmup_does_not_count(measure: ModuleType) -> None:
    calls: list[str] = []
    ticks = iter(range(100))
    works = {name: lambda name=name: calls.append(name) for name in ("ours", "theirs")}
    seconds = measure.interleaved(works, repeats=2, warmup=1, clock=lambda: float(next(ticks)))
    assert calls == ["ours", "theirs"] * 3
    assert seconds == {"ours": [1.0, 1.0], "theirs": [1.0, 1.0]}


def test_medians_of_times_and_of_the_ratios_of_repeats(measure: ModuleType) -> None:
    assert measure.median_ms([0.001, 0.002, 0.9]) == 2.0
    assert measure.median_ratio([1.0, 4.0, 9.0], [1.0, 2.0, 3.0]) == 2.0


def test_results_are_written_after_each_row(
    measure: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "result.json"
    monkeypatch.setattr(sys, "argv", ["/anywhere/padding.py", "--width", "8", "--json", str(file)])
    results = measure.Results(measure.parser("Measures nothing.", width=64).parse_args())
    results.add_printed("first", {"ms": 1.5})
    first = json.loads(file.read_text(encoding="utf-8"))
    results.add("second", {"ms": 2.5})
    result = json.loads(file.read_text(encoding="utf-8"))
    assert json.loads(capsys.readouterr().out) == {"ms": 1.5}
    assert first["rows"] == [{"name": "first", "metrics": {"ms": 1.5}}]
    assert [row["name"] for row in result["rows"]] == ["first", "second"]
    assert set(result) == {"script", "command", "commit", "machine", "date", "settings", "rows"}
    assert result["script"] == "benchmarks/padding.py"
    assert result["settings"] == {"width": 8}
    assert {"cpu", "cores", "memory_gib", "gpu", "torch", "threads"} <= set(result["machine"])


def test_a_function_of_the_search_that_is_never_called_is_an_error(
    measure: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    trie = importlib.import_module("trie")
    sys.modules.pop("trie")
    with trie.PartTimes() as times:
        pass
    with pytest.raises(RuntimeError, match="never called expand"):
        times.check("free")
    monkeypatch.setattr(trie, "PARTS", (trie.Part(trie.PrefixTrie, "renamed", "gathering"),))
    with pytest.raises(AttributeError, match="renamed"), trie.PartTimes():
        pass
