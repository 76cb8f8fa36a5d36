"""Items -> content vectors -> semantic IDs: what `nextitem tokenize` does, and training where a model needs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import polars as pl
import torch

from nextitem.core.catalog import Catalog
from nextitem.core.components import build_component
from nextitem.core.dataset import Dataset
from nextitem.core.errors import UserError
from nextitem.core.identifiers import IdentifierTable
from nextitem.core.roles import ClosedForm, Trainable
from nextitem.data.protocols import make_split
from nextitem.data.readers import load_dataset
from nextitem.data.text import content_vectors
from nextitem.decoding.trie import PrefixTrie
from nextitem.pipeline.bundle import (
    load_catalog,
    load_recipe,
    load_weights,
    save_catalog,
    save_recipe,
    save_weights,
)
from nextitem.pipeline.folders import finish_replacing, prepare_out, replace_files
from nextitem.pipeline.options import FitOptions, Log, silent
from nextitem.pipeline.provenance import data_table, leak
from nextitem.pipeline.recipe import Recipe, resolve_recipe, settings_table
from nextitem.recipes import read_recipe
from nextitem.tokenizers.collaborative import CollaborativeContent
from nextitem.tokenizers.collisions import append_items, build_table
from nextitem.tokenizers.quality import collapse_warning
from nextitem.tokenizers.tokenizer import Tokenizer
from nextitem.training.fit import fit


def with_content(train: Dataset, recipe: Recipe, *, out: Path | None = None, progress: bool = True) -> Dataset:
    """The data set with the content vectors that the recipe asks for; what moved them is written into `out`."""
    catalog = train.catalog.with_content(content_vectors(train.catalog, recipe.content))
    if recipe.content.collaborative:
        torch.manual_seed(recipe.seed)
        mover = CollaborativeContent(catalog)
        pairs = mover.examples(train)
        if pairs.num_batches(1):
            fit(mover, pairs, recipe.content_training, seed=recipe.seed, progress=progress, label="content")
        assert catalog.content is not None
        catalog = catalog.with_content(mover.eval().vectors(catalog.content))
        if out is not None:
            save_weights(out / "content.safetensors", mover)
    return train.with_catalog(catalog)


def make_tokenizer(train: Dataset, recipe: Recipe, *, out: Path | None, progress: bool = True) -> Tokenizer:
    """Trains the recipe's tokenizer on the content vectors of `train.catalog`; same seed, same codes."""
    assert recipe.tokenizer is not None
    torch.manual_seed(recipe.seed)
    tokenizer = cast(Tokenizer, build_component("tokenizer", recipe.tokenizer, train.catalog))
    if isinstance(tokenizer, ClosedForm):
        tokenizer.fit(train)
    else:
        assert isinstance(tokenizer, Trainable)
        fit(
            tokenizer,
            tokenizer.examples(train),
            recipe.tokenizer_training,
            seed=recipe.seed,
            out=None if out is None else out / "tokenizer",
            progress=progress,
            label=recipe.tokenizer["name"],
        )
    return tokenizer.eval()


def tokenize(
    name: str | type[Tokenizer],
    data: Dataset | str | Path,
    *,
    out: str | Path,
    settings: Mapping[str, Any] | None = None,
    recipe: str | Path | None = None,
    protocol: str | None = None,
    seed: int | None = None,
    append: bool = False,
    overrides: Sequence[str] = (),
    drop_unknown_items: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    log: Log = silent,
) -> IdentifierTable:
    """Turn the items of a data set into semantic IDs; write them, their trie and the tokenizer into `out`.

    Args:
        name: name, import path or class of a tokenizer.
        data: a data set, its folder, or "shop".
        out: folder of the semantic IDs; refused if it is not empty, unless `append`.
        settings: nested tables, {"tokenizer": {"levels": 4}}, or with dotted keys.
        recipe: a .toml file, or a recipe that ships with the package.
        protocol: whose training events the IDs may learn from, if they learn from events (content.collaborative); None:
            the recipe's, else by the data. A model that uses these IDs must be judged under the same.
        seed: of the tokenizer, and of a protocol that samples users.
        append: add codes for new items to the IDs in `out`; old codes stay as they are.
        overrides: settings as text, "tokenizer.levels=4".
        drop_unknown_items: leave out events of items that the items table lacks.
        resume, overwrite: as for `train`.
        progress: show a bar on a terminal, a line an epoch elsewhere.
        log: receives lines of progress, and a warning if the IDs have collapsed.

    Returns:
        The table of codes; its `report` holds quality figures.

    """
    tokenizer_name = name if isinstance(name, str) else f"{name.__module__}:{name.__qualname__}"
    if append:
        useless = {"recipe": recipe, "seed": seed, "set": overrides or settings or None, "overwrite": overwrite or None}
        given = [f"--{option}" for option, value in useless.items() if value is not None]
        if given:
            raise UserError(f"--append goes on as the table was made: it does not take {', '.join(given)}")
        dataset = data if isinstance(data, Dataset) else load_dataset(data, drop_unknown_items=drop_unknown_items)
        return append_new_items(dataset.catalog, Path(out), tokenizer_name=tokenizer_name, log=log)
    path = str(data) if not isinstance(data, Dataset) else data.source or data.name
    arguments: dict[str, Any] = {"data": {"path": path}, "model": {}, "tokenizer": {"name": tokenizer_name}}
    arguments["data"] |= {} if protocol is None else {"protocol": protocol}
    arguments |= {} if seed is None else {"seed": seed}
    layers = [read_recipe(recipe)] if recipe is not None else []
    layers.append(("the arguments", arguments))
    if settings is not None:
        layers.append(("settings", settings_table(settings)))
    resolved = resolve_recipe(layers, overrides=overrides, kind="tokenizer")
    if resolved.tokenizer is None or resolved.tokenizer["name"] != tokenizer_name:
        raise UserError(f"recipe {recipe} is not for {tokenizer_name}")
    dataset = data if isinstance(data, Dataset) else load_dataset(data, drop_unknown_items=drop_unknown_items)
    train = dataset
    if resolved.content.collaborative:  # otherwise the IDs depend on items alone, and even a tiny log will do
        split = make_split(dataset, resolved.data.protocol, seed=resolved.seed)
        resolved, train = resolved.model_copy(update={"data": data_table(resolved.data, dataset, split)}), split.train
    else:
        own = resolved.data.model_copy(update={"fingerprint": dataset.fingerprint})
        resolved = resolved.model_copy(update={"data": own})
    for note in dataset.notes:
        log(f"note: {note}")
    folder = prepare_out(out, resume=resume, overwrite=overwrite)
    return tokenize_items(train, resolved, out=folder, log=log, progress=progress)


def tokenize_items(train: Dataset, recipe: Recipe, *, out: Path, log: Log, progress: bool = True) -> IdentifierTable:
    """Write semantic IDs, their trie, the tokenizer and its quality report into `out`; warn of a collapse."""
    assert recipe.tokenizer is not None
    finish_replacing(out)
    save_recipe(out, recipe)
    train = with_content(train, recipe, out=out, progress=progress)
    tokenizer = make_tokenizer(train, recipe, out=out, progress=progress)
    table = build_table(tokenizer, train.catalog)
    save_weights(out / "tokenizer.safetensors", tokenizer)
    save_catalog(out, train.catalog.with_identifiers(table))
    PrefixTrie.from_table(table).save(out / "trie.safetensors")
    warning = collapse_warning(table.report or {}, recipe.quality)
    if warning:
        log(f"warning: {warning}")
    return table


def append_new_items(catalog: Catalog, folder: Path, *, tokenizer_name: str, log: Log) -> IdentifierTable:
    """Gives codes to the items of `catalog` that the table in `folder` lacks; old codes stay as they are.

    The text encoder is the one that was fitted to the first version's items, so new vectors lie in its space. Where
    this is cut off, the former version stands, or the new one.
    """
    finish_replacing(folder)
    table = IdentifierTable.load(folder)
    if not (folder / "tokenizer.safetensors").is_file():
        raise UserError(f"{folder} was not made by nextitem tokenize; it cannot be appended to")
    recipe, known = load_recipe(folder), load_catalog(folder)
    if recipe.tokenizer is None or tokenizer_name != table.tokenizer:
        raise UserError(f"{folder} holds codes of {table.tokenizer}, not of {tokenizer_name}: append with the former")
    new = known.ids.encode(catalog.ids.external) == 0
    rows = pl.Series(new)
    if not new.any():
        log(f"no new items; version {table.version} stays")
        return table
    longer = replace(known, identifiers=None, content=None, released_ms=None).extend(
        catalog.table.filter(rows), text=None if catalog.text is None else catalog.text.filter(rows)
    )
    first = int((table.report or {})["items"])
    longer = longer.with_content(content_vectors(longer, recipe.content, fit_items=first))
    if recipe.content.collaborative:
        mover = CollaborativeContent(longer)
        load_weights(folder / "content.safetensors", mover)
        assert longer.content is not None
        longer = longer.with_content(mover.eval().vectors(longer.content))
    tokenizer = cast(Tokenizer, build_component("tokenizer", recipe.tokenizer, longer))
    load_weights(folder / "tokenizer.safetensors", tokenizer)
    appended = append_items(tokenizer.eval(), table, longer)

    def write(fresh: Path) -> None:
        save_catalog(fresh, longer.with_identifiers(appended))
        PrefixTrie.from_table(appended).save(fresh / "trie.safetensors")

    replace_files(folder, write)
    log(f"{int(new.sum()):,} new items, {table.num_items:,} unchanged; version {appended.version}")
    learnt = appended.codes[1:, : len(tokenizer.codebook_sizes)]
    for codes, what in ((learnt, "the codes that the tokenizer gives"), (appended.codes[1:], "their whole sequence")):
        _, group, sizes = torch.unique(codes, dim=0, return_inverse=True, return_counts=True)
        sharing = int((sizes[group[table.num_items :]] > 1).sum())
        log(f"{sharing:,} of the new items share {what} with another item")
    return appended


def read_identifiers(folder: Path, catalog: Catalog) -> IdentifierTable:
    """The table in `folder`, its rows in the order of `catalog`; UserError where an item has no codes."""
    known = load_catalog(folder)
    table = known.identifiers if known.identifiers is not None else IdentifierTable.load(folder)
    rows = torch.tensor(known.ids.encode(catalog.ids.external)).long()
    missing = int((rows == 0).sum())
    if missing:
        raise UserError(
            f"{folder}: {missing:,} of {catalog.num_items:,} items have no semantic ID; "
            "add them with: nextitem tokenize NAME --append"
        )
    codes = torch.cat([table.codes[:1], table.codes[rows]])
    return replace(table, codes=codes, catalog_fingerprint=catalog.fingerprint)


def require_identifiers(train: Dataset, recipe: Recipe, options: FitOptions) -> Dataset:
    """Return the data set with semantic IDs, ready-made or trained.

    Raises UserError if they have collapsed, or if ready-made ones may have learnt from what the run is judged on.
    """
    if recipe.ids is not None:
        folder = Path(recipe.ids)
        _check_origin(folder, recipe, options.log)
        table = read_identifiers(folder, train.catalog)
    else:
        if recipe.tokenizer is None:
            raise UserError(f"{recipe.model['name']} needs semantic IDs: give --ids, or a [tokenizer] in the recipe")
        if train.catalog.content is None:
            train = with_content(train, recipe, progress=options.progress)
        options.log(f"semantic IDs by {recipe.tokenizer['name']}")
        tokenizer = make_tokenizer(train, recipe, out=options.folder, progress=options.progress)
        table = build_table(tokenizer, train.catalog)
    warning = collapse_warning(table.report or {}, recipe.quality)
    if warning:
        raise UserError(
            f"these semantic IDs cannot carry a model: {warning}. "
            "Use richer content or another tokenizer, or lower the thresholds in [quality]"
        )
    return train.with_catalog(train.catalog.with_identifiers(table))


def _check_origin(folder: Path, recipe: Recipe, log: Log) -> None:
    """Identifiers that learnt from events must have learnt from training events of the run's own split."""
    if not (folder / "recipe.toml").is_file():
        log(f"note: {folder} does not say how its semantic IDs were made; if from events, they may know test targets")
        return
    own = load_recipe(folder)
    if not own.content.collaborative:
        return  # made from the items alone
    problem = leak(own.data, recipe.data)
    if problem is not None:
        raise UserError(f"--ids {folder}: {problem}")
    if own.data.fingerprint != recipe.data.fingerprint:
        log(
            f"note: {folder} was made from other data; test targets of this data may be among the events it learnt from"
        )
