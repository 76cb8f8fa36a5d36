"""The options of the scripts in benchmarks/, read from their source without importing them."""

from __future__ import annotations

import ast
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "benchmarks"
PARSERS = {"parser": "measure", "trainers_parser": "peer_processes"}  # functions that add --json, by module


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
