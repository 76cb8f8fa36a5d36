"""Checks that need neither torch nor a model, so that most mistakes are reported within a second."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nextitem.core import registry
from nextitem.core.errors import UserError
from nextitem.core.setting_names import field_names, setting_names

if TYPE_CHECKING:
    from nextitem.core.dataset import Dataset


def check_names(kind: str, names: Sequence[str]) -> None:
    """Raise UserError if a name of this kind (model, tokenizer, ...) is unknown; import paths are checked later."""
    for name in names:
        if ":" not in name:
            registry.entry(kind, name)


def check_settings(kind: str, name: str, overrides: Sequence[str]) -> None:
    """Raise UserError if an override names no setting of a registered component; values are checked later."""
    entry = registry.KINDS[kind].get(name)
    names = {
        kind: None if entry is None else setting_names(entry.path),
        "training": field_names("nextitem.training.config:TrainingConfig"),
    }
    for override in overrides:
        table, _, path = override.partition("=")[0].strip().partition(".")
        field, known_names = path.partition(".")[0], names.get(table)
        if known_names and field and field != "name" and field not in known_names:
            title = f"[{table}] {name}" if table == kind else f"[{table}]"
            raise UserError(f"{title}: unknown setting {field!r}; known are {', '.join(known_names)}")


def check_out(out: str, *, resume: bool, overwrite: bool) -> None:
    """Raise UserError if the folder `out` may not be written under these options."""
    from nextitem.pipeline.folders import check_out as check

    check(out, resume=resume, overwrite=overwrite)


def check_run(run: str) -> None:
    """Raise UserError if the folder is not a run."""
    folder = Path(run)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run; make one with: nextitem train")
    if not (folder / "recipe.toml").is_file():
        raise UserError(f"{folder} is not a run: it has no recipe.toml; make one with: nextitem train")


def load_data(
    data: str, *, drop_unknown_items: bool, recipe: str | None = None, overrides: Sequence[str] = ()
) -> Dataset:
    """Load a data set as `train` would: events of unknown items are skipped if the options or the recipe say so."""
    from nextitem.core.config import apply_overrides
    from nextitem.data.readers import load_dataset
    from nextitem.recipes import read_recipe

    table = apply_overrides(read_recipe(recipe)[1] if recipe is not None else {}, overrides)
    data_table = table.get("data", {})
    is_dropping = isinstance(data_table, dict) and data_table.get("drop_unknown_items") is True
    return load_dataset(data, drop_unknown_items=drop_unknown_items or is_dropping)
