"""Names of the settings of a class, read from its source: no model and no torch is imported."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path

_BASE = "nextitem.core.config:Config"


def setting_names(path: str) -> list[str] | None:
    """Return the names of the settings of a component, base classes first.

    Args:
        path: the component, "package.module:Class", whose body says `Config = ItsConfig`.

    Returns:
        The names of the fields; None if the source does not tell, for example because a base class is elsewhere.

    """
    module, _, name = path.partition(":")
    tree = _tree_of(module)
    node = None if tree is None else _class_in(tree, name)
    if node is None:
        return None
    for statement in node.body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "Config":
            return field_names(f"{module}:{ast.unparse(statement.value)}")
    return None


def field_names(path: str) -> list[str] | None:
    """Return the fields of a config class and of its base classes; None if one of them cannot be read.

    Those of a base class that is named later come first, as in `model_fields`.
    """
    if path == _BASE:
        return []
    module, _, name = path.partition(":")
    tree = _tree_of(module)
    node = None if tree is None else _class_in(tree, name)
    if tree is None or node is None:
        return None
    names: list[str] = []
    for base in reversed(node.bases):
        of_base = field_names(_origin(tree, module, ast.unparse(base)))
        if of_base is None:
            return None
        names += [each for each in of_base if each not in names]
    own = [
        each.target.id
        for each in node.body
        if isinstance(each, ast.AnnAssign)
        and isinstance(each.target, ast.Name)
        and "ClassVar" not in ast.unparse(each.annotation)
    ]
    return [*names, *(each for each in own if each not in names)]


def _origin(tree: ast.Module, module: str, name: str) -> str:
    """Return "module:Class" of a name that a module uses: imported, an attribute of an imported module, or its own."""
    owner, _, attribute = name.rpartition(".")
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == (owner or name):
                    return f"{node.module}.{alias.name}:{attribute}" if owner else f"{node.module}:{alias.name}"
    return f"{module}:{name}"


def _class_in(tree: ast.Module, name: str) -> ast.ClassDef | None:
    return next((node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name), None)


def _tree_of(module: str) -> ast.Module | None:
    """Return the parsed source of a module of this package, None for any other module."""
    if not module.startswith("nextitem."):
        return None
    spec = find_spec(module)
    return None if spec is None or spec.origin is None else ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
