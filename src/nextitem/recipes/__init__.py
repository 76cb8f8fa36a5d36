"""Recipes of the package, and how they are read; without torch, so that mistakes are reported immediately.

Folders: `default` has the laptop-sized recipe of each model, `debug` one that trains in seconds, and the others, named
after a data set, tuned or published settings.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from nextitem.core.config import read_toml
from nextitem.core.errors import UserError


def read_recipe(name: str | Path) -> tuple[str, dict[str, Any]]:
    """Read a recipe: a .toml file, or one of the package, such as amazon14-beauty/sasrec.

    Returns its name and its tables. Raises UserError if there is no such recipe.
    """
    path = Path(name)
    if path.suffix == ".toml":
        return str(path), read_toml(path)
    resource = resources.files("nextitem.recipes").joinpath(f"{name}.toml")
    if not resource.is_file():
        raise UserError(
            f"no recipe is called {str(name)!r}; give a .toml file or one of: {', '.join(shipped_recipes())}"
        )
    with resources.as_file(resource) as file:
        return str(name), read_toml(file)


def default_recipe(model: str) -> tuple[str, dict[str, Any]]:
    """Return name and tables of a model's default recipe; if it has none, a table that contains only its name."""
    name = f"default/{model}"
    return read_recipe(name) if name in shipped_recipes() else (model, {"model": {"name": model}})


def shipped_recipes() -> list[str]:
    """Return the names of all recipes of the package, sorted."""
    root = resources.files("nextitem.recipes")
    return sorted(
        f"{folder.name}/{file.name.removesuffix('.toml')}"
        for folder in root.iterdir()
        if folder.is_dir()
        for file in folder.iterdir()
        if file.name.endswith(".toml")
    )
