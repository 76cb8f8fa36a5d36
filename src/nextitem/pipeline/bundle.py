"""Files of a run's bundle: recipe, weights, catalogue, identifiers, metrics. Nothing in them is pickled."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import tomli_w
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from nextitem.core.catalog import Catalog, ColumnEncoding
from nextitem.core.components import build_component
from nextitem.core.config import parse, read_toml, to_toml_values, write_toml
from nextitem.core.errors import UserError
from nextitem.core.identifiers import IdentifierTable
from nextitem.core.ids import IdMap
from nextitem.core.recommender import Recommender
from nextitem.core.tensor_files import save_tensors
from nextitem.pipeline.recipe import Recipe

# Columns of catalog.parquet in addition to those of the user's items table.
_TEXT, _CONTENT, _RELEASED = "__text__", "__content__", "__released_ms__"


def save_recipe(folder: Path, recipe: Recipe) -> None:
    """Write recipe.toml with every setting, so that it reproduces the run."""
    write_toml(folder / "recipe.toml", recipe.model_dump())


def load_recipe(folder: Path) -> Recipe:
    """Read recipe.toml of a run. Raises UserError if the folder is not a run."""
    file = folder / "recipe.toml"
    if not file.is_file():
        raise UserError(f"{folder} is not a run: it has no recipe.toml; make one with: nextitem train")
    return parse(Recipe, read_toml(file), where=str(file))


def check_same_recipe(folder: Path, recipe: Recipe) -> None:
    """Raise UserError if the recipe that `folder` contains is another one: then its resume points do not fit."""
    if not (folder / "recipe.toml").is_file():
        return
    as_read_back = tomllib.loads(tomli_w.dumps(to_toml_values(recipe.model_dump())))
    if read_toml(folder / "recipe.toml") != as_read_back:
        raise UserError(f"{folder} was begun with other settings or data; resume with the same, or use --overwrite")


def save_model(folder: Path, model: Recommender) -> None:
    """Write weights.safetensors, the catalogue and, if the model has them, its identifiers."""
    save_weights(folder / "weights.safetensors", model)
    catalog, table = model.catalog, model.identifiers
    save_catalog(folder, catalog if table is None else catalog.with_identifiers(table))


def load_model(folder: Path, recipe: Recipe) -> Recommender:
    """Build the model that `save_model` wrote, in evaluation mode. Raises UserError if a file is missing or damaged."""
    model: Recommender = build_component("model", recipe.model, load_catalog(folder))
    load_weights(folder / "weights.safetensors", model)
    return model.eval()


def save_weights(file: Path, module: nn.Module) -> None:
    """Write parameters and buffers of a module as safetensors; tied parameters are written once."""
    tensors: dict[str, Tensor] = {}
    saved_as: dict[int, str] = {}  # id of a tensor -> name
    for name, value in module.state_dict(keep_vars=True).items():
        if id(value) not in saved_as:
            saved_as[id(value)] = name
            tensors[name] = value.detach().cpu().contiguous()
    save_tensors(tensors, file)


def load_weights(file: Path, module: nn.Module) -> None:
    """Fill a module from safetensors, including buffers whose size depends on the data.

    Raises UserError if the file is missing or damaged, or does not belong to this model.
    """
    try:
        saved = load_file(file)
    except (FileNotFoundError, SafetensorError) as error:
        raise UserError(f"{file} is missing or damaged ({error}); train again") from None
    for name, value in saved.items():
        path, _, attribute = name.rpartition(".")
        try:
            submodule = module.get_submodule(path)
        except AttributeError:
            raise UserError(
                f"{file} has {name!r}, which this model lacks: another version wrote it; train again"
            ) from None
        if attribute in submodule._buffers:
            submodule._buffers[attribute] = value
    state = module.state_dict(keep_vars=True)
    tied = {id(state[name]) for name in saved if name in state}
    missing = [name for name, value in state.items() if name not in saved and id(value) not in tied]
    if missing:
        raise UserError(f"{file} lacks {', '.join(missing[:3])}: another version wrote it; train again")
    try:
        module.load_state_dict(saved, strict=False)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{file} does not fit the recipe beside it ({reason}); train again") from None


def save_catalog(folder: Path, catalog: Catalog) -> None:
    """Write catalog.parquet, the encodings of request and event columns as JSON, and any identifiers."""
    columns: list[pl.Series] = []
    if catalog.text is not None:
        columns.append(catalog.text.alias(_TEXT))
    if catalog.content is not None:
        vectors = catalog.content[1:].cpu().numpy()
        columns.append(pl.Series(_CONTENT, vectors, dtype=pl.Array(pl.Float32, vectors.shape[1])))
    if catalog.released_ms is not None:
        columns.append(pl.Series(_RELEASED, catalog.released_ms))
    table = catalog.table.with_columns(catalog.ids.external.alias("item_id"), *columns)
    metadata = {"features": json.dumps(catalog.features), "labels": json.dumps(catalog.labels)}
    table.write_parquet(folder / "catalog.parquet", metadata=metadata)
    save_encodings(folder, catalog)
    if catalog.identifiers is not None:
        catalog.identifiers.save(folder)


def save_encodings(folder: Path, catalog: Catalog) -> None:
    """Write requests.json and events.json: how columns of requests and of events become codes."""
    for name, encodings in (("requests", catalog.requests), ("events", catalog.events)):
        if encodings:
            columns_json = {column: _column_json(encoding) for column, encoding in encodings.items()}
            write_json(folder / f"{name}.json", columns_json)


def load_catalog(folder: Path) -> Catalog:
    """Read the catalogue that `save_catalog` wrote. Raises UserError if a file is missing or damaged."""
    file = folder / "catalog.parquet"
    try:
        table = pl.read_parquet(file)
        metadata = pl.read_parquet_metadata(file)
        features, labels = json.loads(metadata["features"]), tuple(json.loads(metadata.get("labels", "[]")))
    except (FileNotFoundError, pl.exceptions.ComputeError, KeyError) as error:
        raise UserError(f"{file} is missing or damaged ({error}); train again") from None
    text = table[_TEXT] if _TEXT in table.columns else None
    content = None
    if _CONTENT in table.columns:
        vectors = torch.from_numpy(np.array(table[_CONTENT].to_numpy()))
        content = torch.cat([vectors.new_zeros(1, vectors.shape[1]), vectors])
    released = table[_RELEASED].to_numpy() if _RELEASED in table.columns else None
    catalog = Catalog(
        IdMap(table["item_id"]),
        table.drop(_TEXT, _CONTENT, _RELEASED, strict=False),
        features=features,
        text=text,
        content=content,
        released_ms=released,
        requests=_load_encodings(folder / "requests.json"),
        events=_load_encodings(folder / "events.json"),
        labels=labels,
    )
    if not (folder / "identifiers.json").is_file():
        return catalog
    identifiers = IdentifierTable.load(folder)
    if identifiers.catalog_fingerprint != catalog.fingerprint or identifiers.num_items != catalog.num_items:
        raise UserError(
            f"{folder}: the identifiers belong to another catalogue than the one beside them; if nextitem tokenize "
            "--append was interrupted, run it again, otherwise create them again"
        )
    return catalog.with_identifiers(identifiers)


def _column_json(column: ColumnEncoding) -> dict[str, Any]:
    values = None if column.values is None else column.values.to_list()
    return {"kind": column.kind, "values": values, "buckets": column.buckets}


def _load_encodings(file: Path) -> dict[str, ColumnEncoding]:
    if not file.is_file():
        return {}
    try:
        columns = json.loads(file.read_text(encoding="utf-8"))
        return {
            name: ColumnEncoding(
                column["kind"],
                None if column["values"] is None else pl.Series(column["values"], dtype=pl.String),
                column["buckets"],
            )
            for name, column in columns.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is damaged ({error}); train again") from None


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    """Write a mapping as indented JSON, with its keys in their order."""
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
