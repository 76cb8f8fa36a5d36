"""Items -> content vectors -> semantic IDs: what `nextitem tokenize` does, and training where a model needs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import polars as pl
import torch

from nextitem.core.catalog import Catalog
from nextitem.core.dataset import Dataset
from nextitem.core.errors import UserError
from nextitem.core.identifiers import IdentifierTable
from nextitem.core.roles import ClosedForm, Trainable
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
from nextitem.pipeline.folders import finish_replacing, replace_files
from nextitem.pipeline.recipe import Recipe, build
from nextitem.tokenizers.collaborative import CollaborativeContent
from nextitem.tokenizers.collisions import append_items, build_table
from nextitem.tokenizers.quality import collapse_warning
from nextitem.tokenizers.tokenizer import Tokenizer
from nextitem.training.fit import fit

Say = Callable[[str], None]


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
    tokenizer = cast(Tokenizer, build("tokenizer", recipe.tokenizer, train.catalog))
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


def tokenize(train: Dataset, recipe: Recipe, *, out: Path, say: Say, progress: bool = True) -> IdentifierTable:
    """Writes semantic IDs, their trie, the tokenizer and its quality report into `out`; warns of a collapse."""
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
        say(f"warning: {warning}")
    return table


def append(catalog: Catalog, folder: Path, *, tokenizer_name: str, say: Say) -> IdentifierTable:
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
        say(f"no new items; version {table.version} stays")
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
    tokenizer = cast(Tokenizer, build("tokenizer", recipe.tokenizer, longer))
    load_weights(folder / "tokenizer.safetensors", tokenizer)
    appended = append_items(tokenizer.eval(), table, longer)

    def write(fresh: Path) -> None:
        save_catalog(fresh, longer.with_identifiers(appended))
        PrefixTrie.from_table(appended).save(fresh / "trie.safetensors")

    replace_files(folder, write)
    say(f"{int(new.sum()):,} new items, {table.num_items:,} unchanged; version {appended.version}")
    learnt = appended.codes[1:, : len(tokenizer.codebook_sizes)]
    for codes, what in ((learnt, "the codes that the tokenizer gives"), (appended.codes[1:], "their whole sequence")):
        _, group, sizes = torch.unique(codes, dim=0, return_inverse=True, return_counts=True)
        sharing = int((sizes[group[table.num_items :]] > 1).sum())
        say(f"{sharing:,} of the new items share {what} with another item")
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


def require_identifiers(train: Dataset, recipe: Recipe, *, out: Path, say: Say, progress: bool = True) -> Dataset:
    """The data set with semantic IDs, ready-made or trained; UserError where they have collapsed."""
    if recipe.ids is not None:
        table = read_identifiers(Path(recipe.ids), train.catalog)
    else:
        if recipe.tokenizer is None:
            raise UserError(f"{recipe.model['name']} needs semantic IDs: give --ids, or a [tokenizer] in the recipe")
        if train.catalog.content is None:
            train = with_content(train, recipe, progress=progress)
        say(f"semantic IDs by {recipe.tokenizer['name']}")
        tokenizer = make_tokenizer(train, recipe, out=out, progress=progress)
        table = build_table(tokenizer, train.catalog)
    warning = collapse_warning(table.report or {}, recipe.quality)
    if warning:
        raise UserError(
            f"these semantic IDs cannot carry a model: {warning}. "
            "Use richer content or another tokenizer, or lower the thresholds in [quality]"
        )
    return train.with_catalog(train.catalog.with_identifiers(table))
