"""The rules of docs/style.md that a program can check: names, docstrings, documented settings."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "nextitem"
FILES = sorted([*SOURCE.rglob("*.py"), *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")])
# Participles that do not describe what they name. A compound such as `selected_items` is fine.
BANNED = set(
    re.findall(r"\w+", "found chosen kept asked given drawn told said learnt made taken wanted shown held known")
)
MIN_DOCSTRING = 15  # characters of a first line
# Words of docs/style.md that a first line should not need.
STRANGE = re.compile(r"\b(anew|whatever it was|spelt|spells?|that stands?|so many)\b", re.IGNORECASE)


def names_of(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and name of all variables, arguments, attributes, functions, classes and import aliases of a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.alias) and node.asname:
            yield node.lineno, node.asname


def first_lines(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and first docstring line of the module, its classes and functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "lineno", 1), text.splitlines()[0]


def violations(file: Path) -> list[str]:
    """Return one line for each violation of the rules in a file."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    place = file.relative_to(ROOT)
    lines = [
        f"{place}:{line}: {name}: a participle alone is no name"
        for line, name in names_of(tree)
        if name.strip("_").lower() in BANNED
    ]
    for line, text in first_lines(tree):
        if len(text) < MIN_DOCSTRING:
            lines.append(f"{place}:{line}: {text!r}: say what it does in a first line that a stranger understands")
        elif STRANGE.search(text):
            lines.append(f"{place}:{line}: {text!r}: use the words of docs/style.md")
    return lines


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_names_and_docstrings_follow_the_style(file: Path) -> None:
    assert violations(file) == []


def config_classes() -> Iterator[tuple[Path, ast.ClassDef]]:
    """Yield file and node of every class of the package whose base is called ...Config."""
    for file in sorted(SOURCE.rglob("*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            bases = [ast.unparse(base).rsplit(".", 1)[-1] for base in getattr(node, "bases", [])]
            if isinstance(node, ast.ClassDef) and any(base.endswith("Config") for base in bases):
                yield file, node


def test_every_setting_is_documented() -> None:
    missing = []
    for file, node in config_classes():
        module = ".".join(file.relative_to(SOURCE.parent).with_suffix("").parts)
        inherited = {
            name
            for base in getattr(import_module(module), node.name).__mro__[1:]
            for name in getattr(base, "model_fields", {})
        }
        for field, below in pairwise([*node.body, ast.Pass()]):
            if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
                continue
            is_setting = "ClassVar" not in ast.unparse(field.annotation) and field.target.id not in inherited
            if is_setting and not (isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)):
                missing.append(f"{file.name}: {node.name}.{field.target.id}")
    assert missing == []


if __name__ == "__main__":  # python tests/architecture/test_style.py FOLDER ...: print the violations
    import sys

    for folder in sys.argv[1:]:
        for path in sorted(Path(folder).resolve().rglob("*.py")):
            print(*violations(path), sep="\n", end="\n" if violations(path) else "")
