"""The index of benchmarks/README.md names every script once, with a command that its options accept."""

from __future__ import annotations

import ast
import re
import shlex

import pytest
from support.benchmark_options import FOLDER, PARSERS, calls_in, options_of, tree_of

PARTS = {"measure.py", "peer_processes.py", "own_training.py"}  # imported or started by the scripts
SCRIPTS = sorted({file.name for file in FOLDER.glob("*.py")} - PARTS)
INDEX = (FOLDER / "README.md").read_text(encoding="utf-8")


def rows() -> dict[str, list[str]]:
    """Return the cells of each row of the index, by script."""
    lines = [line for line in INDEX.splitlines() if line.startswith("| [")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].partition("]")[0][1:]: row for row in cells}


def test_the_index_names_each_script_once() -> None:
    names = re.findall(r"^\| \[([a-z_0-9]+\.py)\]\(\1\)", INDEX, flags=re.MULTILINE)
    assert sorted(names) == SCRIPTS


def test_every_row_has_a_question_a_command_and_what_is_printed() -> None:
    assert all(len(row) == 5 and all(row[:4]) for row in rows().values())


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_has_the_common_parser_and_writes_results(name: str) -> None:
    imports = {
        alias.name: node.module
        for node in ast.walk(tree_of(name))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    functions = {function for function, _ in calls_in(tree_of(name))}
    parsers = [function for function, module in PARSERS.items() if imports.get(function) == module]
    assert functions & set(parsers), "build the options with measure.parser, which has --json"
    assert "--json" in options_of(name)
    assert imports.get("Results") == "measure"
    assert "Results" in functions


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_command_of_the_index_uses_options_of_the_script(name: str) -> None:
    command = shlex.split(rows()[name][2].strip("`"))
    command = command[1:] if command[0].startswith("NEXTITEM_DATA=") else command
    assert command[:2] == ["python", f"benchmarks/{name}"]
    assert {word for word in command[2:] if word.startswith("-")} <= options_of(name)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_docstring_shows_the_command(name: str) -> None:
    assert f"python benchmarks/{name}" in (ast.get_docstring(tree_of(name)) or "")
