"""Values of the inputs of an ONNX file from requests as this package builds them: what a test of parity compares."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.jagged import Jagged
from nextitem.pipeline.exporting.onnx_files import Input

NO_MEMBER = -1  # pads lists of codes, as 0 is the code of an unknown member


def feeds_of(batch: SequenceBatch, inputs: Sequence[Input]) -> dict[str, Tensor]:
    """Return the value of each input; columns that the requests lack have missing values.

    Events of requests without times get no times.
    """
    values: dict[str, Tensor] = {}
    has_times = batch.timestamps is not None and batch.request_times is not None
    for each in inputs:
        if each.name == "items":
            values[each.name] = batch.items.to_padded()
        elif each.name in ("timestamps", "actions") or each.name.startswith("events."):
            values[each.name] = _event_column(batch, each, has_times=has_times)
        elif each.name == "request_times":
            times = batch.request_times
            values[each.name] = torch.zeros_like(batch.items.lengths) if times is None else times
        elif each.name == "users":
            keys = batch.user_ids
            values[each.name] = torch.zeros_like(batch.items.lengths) if keys is None else keys
        else:
            values[each.name] = _request_column(batch, each)
    return values


def _event_column(batch: SequenceBatch, each: Input, *, has_times: bool) -> Tensor:
    """Return a column of the events, padded on the right, [B, L]; NaN or 0 if the requests lack it."""
    dtype = getattr(torch, each.dtype)
    missing = float("nan") if dtype.is_floating_point else 0
    if each.name == "timestamps":
        column = batch.timestamps if has_times else None
    elif each.name == "actions":
        column = batch.actions
    else:
        column = batch.features.get(each.name.removeprefix("events."))
    if column is None:
        column = batch.items.with_values(torch.full_like(batch.items.values, missing, dtype=dtype))
    return column.to_padded(fill=missing).to(dtype)


def _request_column(batch: SequenceBatch, each: Input) -> Tensor:
    """Return a column of the requests, [B], or a list column padded with NO_MEMBER, [B, members]."""
    dtype, column = getattr(torch, each.dtype), batch.context.get(each.name)
    if len(each.shape) == 2:
        rows = Jagged.from_rows([[]] * batch.num_requests) if column is None else column
        padded: Tensor = rows.to_padded(max(1, int(rows.lengths.max())), fill=NO_MEMBER)
        return padded
    if column is None:
        return torch.full((batch.num_requests,), float("nan") if dtype.is_floating_point else 0, dtype=dtype)
    return column.to(dtype)  # type: ignore[no-any-return]
