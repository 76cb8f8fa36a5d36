"""The index of benchmarks/README.md names every script once, with a command that its options accept."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
PARTS = {"measure.py", "peer_processes.py", "own_training.py"}  # imported or started by the scripts
SCRIPTS = sorted({file.name for file in FOLDER.glob("*.py")} - PARTS)
PARSERS = {"parser": "measure", "trainers_parser": "peer_processes"}  # functions that add --json, by module
INDEX = (FOLDER / "README.md").read_text(encoding="utf-8")


def rows() -> dict[str, list[str]]:
    """Return the cells of each row of the index, by script."""
    lines = [line for line in INDEX.splitlines() if line.startswith("| [")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].partition("]")[0][1:]: row for row in cells}


def tree_of(name: str) -> ast.Module:
    return ast.parse((FOLDER / name).read_text(encoding="utf-8"))


def calls_in(tree: ast.Module) -> list[tuple[str, ast.Call]]:
    """Return name and node of every call of a function or method."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [(str(getattr(call.func, "id", getattr(call.func, "attr", ""))), call) for call in calls]


def options_of(name: str) -> set[str]:
    """Return the options of a script or module, read from its calls without importing it."""
    options = set()
    for function, call in calls_in(tree_of(name)):
        if function == "add_argument":
            options |= {str(word.value) for word in call.args if isinstance(word, ast.Constant)}
        elif function in PARSERS:
            options |= {f"--{keyword.arg.replace('_', '-')}" for keyword in call.keywords if keyword.arg}
            module = PARSERS[function]
            if f"{module}.py" != name:
                options |= options_of(f"{module}.py")
    return options


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
