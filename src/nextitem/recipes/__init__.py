"""The recipes that ship with the package, and how they are read; without torch, so that mistakes are told at once."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from nextitem.core.config import read_toml
from nextitem.core.errors import UserError


def read_recipe(name: str | Path) -> tuple[str, dict[str, Any]]:
    """Reads a recipe: a file, or one that ships with the package, such as amazon14-beauty/sasrec."""
    path = Path(name)
    if path.suffix == ".toml":
        return str(path), read_toml(path)
    shipped = resources.files("nextitem.recipes")
    inside = shipped.joinpath(f"{name}.toml")
    if not inside.is_file():
        raise UserError(
            f"no recipe is called {str(name)!r}; give a .toml file or one of: {', '.join(shipped_recipes())}"
        )
    with resources.as_file(inside) as file:
        return str(name), read_toml(file)


def default_recipe(model: str) -> tuple[str, dict[str, Any]]:
    """The laptop-sized recipe of a model; without one, the defaults of its Config."""
    name = f"default/{model}"
    return read_recipe(name) if name in shipped_recipes() else (model, {"model": {"name": model}})


def shipped_recipes() -> list[str]:
    """The recipes that ship with the package."""
    root = resources.files("nextitem.recipes")
    return sorted(
        f"{folder.name}/{file.name.removesuffix('.toml')}"
        for folder in root.iterdir()
        if folder.is_dir()
        for file in folder.iterdir()
        if file.name.endswith(".toml")
    )
