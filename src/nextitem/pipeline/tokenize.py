"""From items to content vectors to semantic IDs, for `nextitem tokenize` and for models that need identifiers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import polars as pl
import torch
from torch import nn

from nextitem.core.catalog import Catalog
from nextitem.core.components import build_component, component_class
from nextitem.core.dataset import Dataset
from nextitem.core.errors import UserError
from nextitem.core.identifiers import IdentifierTable
from nextitem.core.roles import ClosedForm, HasTrainedPart, Trainable
from nextitem.data.protocols import make_split
from nextitem.data.readers import load_dataset
from nextitem.data.text import NoContentError, content_vectors
from nextitem.decoding.trie import PrefixTrie
from nextitem.pipeline.bundle import (
    check_same_recipe,
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

TOKENIZER_FILE, CONTENT_FILE = "tokenizer.safetensors", "content.safetensors"


def learns_from_events(recipe: Recipe) -> bool:
    """Return whether the semantic IDs of a recipe depend on training events, not on the items alone."""
    if recipe.content.collaborative or recipe.tokenizer is None:
        return recipe.content.collaborative
    cls, config = component_class("tokenizer", recipe.tokenizer)
    return bool(cls.learns_from_events(config))


def tokenizer_needs_content(recipe: Recipe) -> bool:
    """Return whether the recipe's tokenizer requires content vectors."""
    assert recipe.tokenizer is not None
    cls, config = component_class("tokenizer", recipe.tokenizer)
    return "content" in cls.needs | config.needs


def with_content(
    train: Dataset, recipe: Recipe, *, is_required: bool = True, out: Path | None = None, progress: bool = True
) -> Dataset:
    """Return the data set with the content vectors of the recipe.

    If content.collaborative is true, the vectors are moved by a projection that is trained on the events of `train`.
    If the items have no content and `is_required` is false, the data set is returned without.

    Args:
        train: training data.
        recipe: settings of the run.
        is_required: whether it is an error if the items have no content.
        out: folder to which the trained projection is saved (content.safetensors); None: do not save it.
        progress: show a progress bar.

    """
    try:
        catalog = train.catalog.with_content(content_vectors(train.catalog, recipe.content))
    except NoContentError:
        if is_required:
            raise
        return train
    if recipe.content.collaborative:
        torch.manual_seed(recipe.seed)
        projection = CollaborativeContent(catalog)
        pairs = projection.examples(train)
        if pairs.num_batches(1):
            fit(projection, pairs, recipe.content_training, seed=recipe.seed, progress=progress, label="content")
        assert catalog.content is not None
        catalog = catalog.with_content(projection.eval().vectors(catalog.content))
        if out is not None:
            save_weights(out / CONTENT_FILE, projection)
    return train.with_catalog(catalog)


def make_tokenizer(
    train: Dataset, recipe: Recipe, *, out: Path | None, resume: bool = False, progress: bool = True
) -> Tokenizer:
    """Train the recipe's tokenizer on the content vectors of `train.catalog`; the same seed gives the same codes.

    Args:
        train: training data with content vectors.
        recipe: settings of the run.
        out: folder in which training writes its resume points (subfolder tokenizer); None: none.
        resume: continue from the resume point in `out`.
        progress: show a progress bar.

    Raises:
        KeyboardInterrupt: training was interrupted; the resume point is in `out`.

    """
    assert recipe.tokenizer is not None
    torch.manual_seed(recipe.seed)
    tokenizer = cast(Tokenizer, build_component("tokenizer", recipe.tokenizer, train.catalog))
    learner = tokenizer.trained_part if isinstance(tokenizer, HasTrainedPart) else tokenizer
    examples = learner.examples(train) if isinstance(learner, Trainable) else None
    if examples is not None and examples.num_batches(1):
        result = fit(
            cast(nn.Module, learner),
            examples,
            recipe.tokenizer_training,
            seed=recipe.seed,
            out=None if out is None else out / "tokenizer",
            resume=resume,
            progress=progress,
            label=recipe.tokenizer["name"],
        )
        if result.stop_reason == "interrupted":
            raise KeyboardInterrupt
    if isinstance(tokenizer, ClosedForm):
        tokenizer.fit(train)
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
    """Create semantic IDs for the items of a data set, and write them, their trie and the tokenizer into `out`.

    Args:
        name: name, import path ("my_package.my_module:MyTokenizer") or class of a tokenizer.
        data: a data set, the path of its folder, or "shop", the simulated shop.
        out: the folder of the semantic IDs; refused if it is not empty, unless `append`.
        settings: nested tables, {"tokenizer": {"levels": 4}}, or dotted keys, {"tokenizer.levels": 4}.
        recipe: a .toml file, or the name of a recipe that ships with the package; None: the defaults of the tokenizer.
        protocol: protocol whose training events the IDs may learn from. It matters only if they learn from events, as
            those of `clusters` or with content.collaborative; a model that uses such IDs must be evaluated under the
            same protocol. None: that of the recipe, or the default of the data.
        seed: seed of the tokenizer, and of a protocol that samples users; None: that of the recipe, or 0.
        append: add codes for new items to the IDs in `out`; the codes of other items do not change.
        overrides: settings as text, such as "tokenizer.levels=4", as the command line takes them.
        drop_unknown_items: skip events of items that are not in the items table; otherwise they are an error.
        resume: continue a call that was interrupted. It ends with the same IDs as an uninterrupted one.
        overwrite: replace semantic IDs or a run in `out`.
        progress: show progress: a bar on a terminal, otherwise one line for each epoch.
        log: function that is called with each line of progress, and with a warning if the IDs have collapsed.

    Returns:
        The table of codes; its `report` contains quality figures, such as the rate of collisions.

    Raises:
        UserError: a mistake in the data, the settings or the arguments. The message names it and the way out.

    Examples:
        >>> table = ni.tokenize("residual-kmeans", "shop", out="ids", settings={"tokenizer.levels": 3})
        >>> table.report
        >>> run = ni.train("tiger", "shop", out="runs/tiger", ids="ids")

    """
    tokenizer_name = name if isinstance(name, str) else f"{name.__module__}:{name.__qualname__}"
    if append:
        unused = {"recipe": recipe, "seed": seed, "set": overrides or settings or None, "overwrite": overwrite or None}
        unused_options = [f"--{option}" for option, value in unused.items() if value is not None]
        if unused_options:
            raise UserError(
                f"--append uses the settings of the table in --out: it does not take {', '.join(unused_options)}"
            )
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
    if learns_from_events(resolved):  # otherwise the IDs depend on items alone, and a log too small to split will do
        split = make_split(dataset, resolved.data.protocol, seed=resolved.seed)
        resolved, train = resolved.model_copy(update={"data": data_table(resolved.data, dataset, split)}), split.train
    else:
        table = resolved.data.model_copy(update={"fingerprint": dataset.fingerprint})
        resolved = resolved.model_copy(update={"data": table})
    for note in dataset.notes:
        log(f"note: {note}")
    folder = prepare_out(out, resume=resume, overwrite=overwrite)
    if resume:
        check_same_recipe(folder, resolved)
    return tokenize_items(train, resolved, out=folder, log=log, resume=resume, progress=progress)


def tokenize_items(
    train: Dataset, recipe: Recipe, *, out: Path, log: Log, resume: bool = False, progress: bool = True
) -> IdentifierTable:
    """Write semantic IDs, their trie, the tokenizer and its quality report into `out`, and log a collapse.

    Args:
        train: data whose items are tokenized, and whose events content vectors and tokenizer may learn from.
        recipe: settings of content vectors, tokenizer and quality.
        out: an existing folder.
        log: function that is called with a warning if the IDs have collapsed.
        resume: continue from the resume point of the tokenizer in `out`.
        progress: show a progress bar.

    Returns:
        The table of codes.

    """
    assert recipe.tokenizer is not None
    finish_replacing(out)
    save_recipe(out, recipe)
    train = _tokenizer_data(train, recipe, out=out, progress=progress, log=log)
    tokenizer = make_tokenizer(train, recipe, out=out, resume=resume, progress=progress)
    table = build_table(tokenizer, train.catalog)
    save_weights(out / TOKENIZER_FILE, tokenizer)
    save_catalog(out, train.catalog.with_identifiers(table))
    PrefixTrie.from_table(table).save(out / "trie.safetensors")
    warning = collapse_warning(table.report or {}, recipe.quality)
    if warning:
        log(f"warning: {warning}")
    return table


def _tokenizer_data(train: Dataset, recipe: Recipe, *, out: Path | None, progress: bool, log: Log) -> Dataset:
    """Return the data set with content vectors, or without if there are none and the tokenizer can do without.

    The arguments are those of `tokenize_items`.
    """
    data = with_content(train, recipe, is_required=tokenizer_needs_content(recipe), out=out, progress=progress)
    if data.catalog.content is None:
        log("note: the items have no content, so the semantic IDs depend on events alone")
    return data


def append_new_items(catalog: Catalog, folder: Path, *, tokenizer_name: str, log: Log) -> IdentifierTable:
    """Add codes for items of `catalog` that the table in `folder` lacks; the codes of other items do not change.

    The text encoder stays the one that was fitted to the items of the first version, so new vectors are in its space.
    If this is interrupted, the folder contains either the previous version or the new one.

    Args:
        catalog: catalogue with the new items.
        folder: folder of `tokenize`.
        tokenizer_name: name of the tokenizer that created the table, as a check.
        log: function that is called with the numbers of new items and of shared codes.

    Returns:
        The new version of the table, or the table itself if there are no new items.

    Raises:
        UserError: the folder was not written by `tokenize`, or by another tokenizer.

    """
    finish_replacing(folder)
    table = IdentifierTable.load(folder)
    if not (folder / TOKENIZER_FILE).is_file():
        raise UserError(f"{folder} was not made by nextitem tokenize, so nothing can be appended; choose another --out")
    recipe, old_catalog = load_recipe(folder), load_catalog(folder)
    if recipe.tokenizer is None or tokenizer_name != table.tokenizer:
        raise UserError(
            f"{folder} contains codes of {table.tokenizer}, not of {tokenizer_name}: append with {table.tokenizer}"
        )
    is_new = old_catalog.ids.encode(catalog.ids.external) == 0
    if not is_new.any():
        log(f"no new items; version {table.version} stays")
        return table
    extended = extended_catalog(old_catalog, catalog, recipe, folder, num_first_items=old_catalog.num_items)
    appended = extended.identifiers
    assert appended is not None

    def write(fresh: Path) -> None:
        save_catalog(fresh, extended)
        PrefixTrie.from_table(appended).save(fresh / "trie.safetensors")

    replace_files(folder, write)
    log(f"{int(is_new.sum()):,} new items, {table.num_items:,} unchanged; version {appended.version}")
    for codes, description in (
        (appended.without_extra_level().codes[1:], "the codes of the tokenizer"),
        (appended.codes[1:], "their whole sequence"),
    ):
        _, groups, sizes = torch.unique(codes, dim=0, return_inverse=True, return_counts=True)
        num_sharing = int((sizes[groups[table.num_items :]] > 1).sum())
        log(f"{num_sharing:,} of the new items share {description} with another item")
    return appended


def extended_catalog(
    former: Catalog, catalog: Catalog, recipe: Recipe, folder: Path, *, num_first_items: int
) -> Catalog:
    """Return `former` with the items of `catalog` that it lacks, with content vectors and codes if `former` has them.

    Encoders stay as they were fitted, so that a new vector or code means the same as an old one. Items of `former` keep
    their numbers, vectors and codes; release times are dropped.

    Args:
        former: the catalogue to extend.
        catalog: a catalogue with the new items.
        recipe: settings of content vectors and tokenizer.
        folder: folder with the weights of the tokenizer (tokenizer.safetensors) and of the projection of content
            vectors (content.safetensors), as far as the recipe has them.
        num_first_items: number of items that the text encoder was fitted to, unless the codes have a report.

    Raises:
        UserError: the columns of new items do not fit, or a file is missing or damaged.

    """
    is_new = pl.Series(former.ids.encode(catalog.ids.external) == 0)
    extended = replace(former, identifiers=None, content=None, released_ms=None).extend(
        catalog.table.filter(is_new), text=None if catalog.text is None else catalog.text.filter(is_new)
    )
    table = former.identifiers
    if table is not None and table.report is not None:
        num_first_items = int(table.report["items"])
    if former.content is not None:
        extended = extended.with_content(content_vectors(extended, recipe.content, fit_items=num_first_items))
    if recipe.content.collaborative and extended.content is not None:
        projection = CollaborativeContent(extended)
        load_weights(folder / CONTENT_FILE, projection)
        extended = extended.with_content(projection.eval().vectors(extended.content))
    if table is None:
        return extended
    tokenizer = cast(Tokenizer, build_component("tokenizer", recipe.tokenizer or {}, extended))
    load_weights(folder / TOKENIZER_FILE, tokenizer)
    return extended.with_identifiers(append_items(tokenizer.eval(), table, extended))


def read_identifiers(folder: Path, catalog: Catalog) -> IdentifierTable:
    """Read the table of codes in `folder`, with rows in the order of `catalog`.

    Raises UserError if an item of `catalog` has no codes, or a file is missing or damaged.
    """
    saved_catalog = load_catalog(folder)
    table = saved_catalog.identifiers if saved_catalog.identifiers is not None else IdentifierTable.load(folder)
    rows = torch.tensor(saved_catalog.ids.encode(catalog.ids.external)).long()
    missing = int((rows == 0).sum())
    if missing:
        raise UserError(
            f"{folder}: {missing:,} of {catalog.num_items:,} items have no semantic ID; "
            "add them with: nextitem tokenize NAME --append"
        )
    codes = torch.cat([table.codes[:1], table.codes[rows]])
    return replace(table, codes=codes, catalog_fingerprint=catalog.fingerprint)


def require_identifiers(train: Dataset, recipe: Recipe, options: FitOptions) -> Dataset:
    """Return the data set with semantic IDs: those in the folder `recipe.ids`, or new ones of the recipe's tokenizer.

    A new tokenizer is saved in the folder of the run, so that codes of later items can be appended.

    Raises UserError if they have collapsed, if those in a folder may have learned from test targets of this run, or if
    the recipe has neither a folder nor a tokenizer.
    """
    if recipe.ids is not None:
        folder = Path(recipe.ids)
        _check_origin(folder, recipe, options.log)
        table = read_identifiers(folder, train.catalog)
    else:
        if recipe.tokenizer is None:
            raise UserError(f"{recipe.model['name']} needs semantic IDs: give --ids, or a [tokenizer] in the recipe")
        if train.catalog.content is None:
            out = options.bundle_folder
            train = _tokenizer_data(train, recipe, out=out, progress=options.progress, log=options.log)
        options.log(f"semantic IDs by {recipe.tokenizer['name']}")
        tokenizer = make_tokenizer(train, recipe, out=options.folder, resume=options.resume, progress=options.progress)
        table = build_table(tokenizer, train.catalog)
        if options.bundle_folder is not None:
            save_weights(options.bundle_folder / TOKENIZER_FILE, tokenizer)
    warning = collapse_warning(table.report or {}, recipe.quality)
    if warning:
        raise UserError(
            f"these semantic IDs cannot carry a model: {warning}. "
            "Use richer content or another tokenizer, or lower the thresholds in [quality]"
        )
    return train.with_catalog(train.catalog.with_identifiers(table))


def _check_origin(folder: Path, recipe: Recipe, log: Log) -> None:
    """Check that semantic IDs in a folder have not learned from test targets of this run.

    If they learned from events, these must be training events of the run's own split; otherwise UserError is raised. If
    this cannot be decided, a note is logged.
    """
    if not (folder / "recipe.toml").is_file():
        log(f"note: {folder} does not record how its IDs were made; if from events, these may contain test targets")
        return
    ids_recipe = load_recipe(folder)
    try:
        is_from_events = learns_from_events(ids_recipe)
    except UserError as error:  # a class of the user's own that is not on the path
        log(f"note: whether {folder} learned from events is unknown ({error}); if so, it may contain test targets")
        return
    if not is_from_events:
        return  # created from the items alone
    problem = leak(ids_recipe.data, recipe.data)
    if problem is not None:
        raise UserError(f"--ids {folder}: {problem}")
    if ids_recipe.data.fingerprint != recipe.data.fingerprint:
        log(f"note: {folder} was made from other data; test targets of this data may be among its training events")
