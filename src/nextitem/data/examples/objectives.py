"""Objectives: which events of a log are examples of an action, such as a click or a purchase, or of a label."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from nextitem.core.catalog import ACTION
from nextitem.core.dataset import Dataset
from nextitem.core.errors import UserError

OBJECTIVE = "#objective"  # context column of training examples: number of the objective, from 0


def objective_masks(train: Dataset, names: Sequence[str]) -> NDArray[np.bool_]:
    """Return which events are examples of each objective, bool [T, J].

    Such an event has the action of that name, or a value above 0 of the label of that name, and may be a target. It may
    be an example of several objectives. If an action and a label have the same name, the action counts.

    Raises:
        UserError: a name is neither an action nor a label, or has no event that may be a target.

    """
    log = train.interactions
    actions = log.columns[ACTION].cast(pl.String) if ACTION in log.columns.columns else None
    values = [] if actions is None else sorted(actions.drop_nulls().unique().to_list())
    masks = []
    for name in names:
        if actions is not None and name in values:
            mask = (actions == name).fill_null(False)
        elif name in train.labels:
            mask = (log.columns[name] > 0).fill_null(False)
        else:
            there = f"actions {', '.join(values)}" if values else "no actions"
            labels = f"labels {', '.join(train.labels)}" if train.labels else "no labels"
            raise UserError(f"model.objectives: {name!r} is neither an action nor a label; there are {there}; {labels}")
        masks.append(mask.to_numpy() & log.is_target())
        if not masks[-1].any():
            raise UserError(
                f"model.objectives: no training event of {name!r} may be a target; add it to [interactions] "
                "positive_actions in dataset.toml, or remove the objective"
            )
    return np.stack(masks, axis=1)
