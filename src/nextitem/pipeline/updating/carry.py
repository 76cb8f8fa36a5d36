"""Carry the weights of a model over to the same model of a later catalogue, as far as that is possible.

How they are taken over is in core.extension. A model that cannot is trained from scratch.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import torch

from nextitem.cascade.cascade import Cascade
from nextitem.core.catalog import Catalog
from nextitem.core.components import build_component, component_class
from nextitem.core.errors import UserError
from nextitem.core.extension import take_over_weights
from nextitem.core.recommender import Recommender
from nextitem.core.roles import ClosedForm, HasEpochHook, LearnsFromRequests, Trainable
from nextitem.decoding.guidance import GuidedRecommender
from nextitem.models.blend import Blend
from nextitem.nn.tables.row_table import RowTable
from nextitem.pipeline.recipe import Recipe
from nextitem.pipeline.stages import learns_by_gradient
from nextitem.pipeline.tokenize import extended_catalog, read_identifiers


class CannotContinueError(Exception):
    """The weights of a model cannot be carried over; the message is a clause that says why."""


def check_can_continue(model: Recommender) -> None:
    """Raise CannotContinueError if a model of this kind is always trained from scratch."""
    name = type(model).__name__
    if isinstance(model, Cascade | Blend):
        raise CannotContinueError(f"a {name} is composed of models that are trained in order")
    if isinstance(model, ClosedForm) or not isinstance(model, Trainable):
        raise CannotContinueError(f"{name} learns in one pass")
    if isinstance(model, LearnsFromRequests) and not any(isinstance(part, RowTable) for part in model.modules()):
        raise CannotContinueError(f"{name} fits the values of its fields to all data")
    if isinstance(model, HasEpochHook) and dict(model.config).get("relearn_after", True):
        raise CannotContinueError(f"{name} relearns its tree between epochs")
    if isinstance(model, GuidedRecommender) and model.guidance is not None:
        table = model.guidance.config.model
        if issubclass(component_class("model", table)[0], Blend) or learns_by_gradient(table):
            raise CannotContinueError("its guide is trained by gradient")


def later_catalog(former: Catalog, catalog: Catalog, recipe: Recipe, folder: Path, *, num_first_items: int) -> Catalog:
    """Return the former catalogue of a model, followed by the items of `catalog` that it lacks.

    Args:
        former: catalogue of the model.
        catalog: catalogue of the merged data.
        recipe: settings of the run.
        folder: folder of the version, with the encoders of its items.
        num_first_items: number of items that the encoder of texts was fitted to.

    Raises:
        CannotContinueError: new items cannot be encoded as the former ones were.
        UserError: the folder of semantic IDs that the recipe names lacks new items.

    """
    numbers = former.ids.encode(catalog.ids.external)
    if (numbers > 0).all() and len(numbers) == former.num_items:
        return former
    has_own_codes = former.identifiers is not None and recipe.ids is None
    try:
        plain = former if has_own_codes else replace(former, identifiers=None)
        later = extended_catalog(plain, catalog, recipe, folder, num_first_items=num_first_items)
    except UserError as error:
        raise CannotContinueError(str(error)) from None
    if former.identifiers is not None and recipe.ids is not None:
        table = read_identifiers(Path(recipe.ids), later)
        if not table.continues(former.identifiers):
            raise CannotContinueError(f"the semantic IDs in {recipe.ids} are others than those of the run")
        later = later.with_identifiers(table)
    if former.released_ms is not None and catalog.released_ms is not None:
        is_new = pl.Series(numbers == 0).to_numpy()
        later = replace(later, released_ms=np.concatenate([former.released_ms, catalog.released_ms[is_new]]))
    return later


def model_with_weights_of(former: Recommender, recipe: Recipe, catalog: Catalog) -> Recommender:
    """Return a model of a later catalogue that has the weights of a former model.

    What is fitted after training is not carried over: search indexes, and the model of a guide.

    Args:
        former: the model of the former catalogue.
        recipe: settings of the run.
        catalog: `later_catalog` of the former catalogue.

    Raises:
        CannotContinueError: a weight has another shape that is not due to the rows of new items.

    """
    torch.manual_seed(recipe.seed)
    model: Recommender = build_component("model", recipe.model, catalog)
    try:
        take_over_weights(model, former, num_items=model.num_items, num_former_items=former.num_items)
    except ValueError as error:
        raise CannotContinueError(str(error)) from None
    return model
