"""Greedy MAP inference of a determinantal point process: select items one by one by their gain in log-determinant.

Chen, Zhang, Zhou (arXiv 1709.05135), algorithm 1. A Cholesky factor grows by one row for each selected item. The gain
of an item is log d^2, where d^2 is the pivot that the item would add. One update of all d^2 costs O(N) for each row of
the factor, so selecting M of N items costs O(N M^2).

Shapes: B kernels, N items, k selected items.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

DEPENDENT = 1e-10  # if d^2 / L_ii is below it, an item is a linear combination of the selected items
LAST = -1e6  # sort key of such items, below the keys of all others
TIE_DIGITS = 9  # decimals to which keys are compared, so that rounding errors do not decide the order


def greedy_map(
    row: Callable[[Tensor], Tensor],
    diagonal: Tensor,
    k: int,
    *,
    log_quality: Tensor | None = None,
    barred: Tensor | None = None,
    window: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the selected items in order of selection [B, k] int64, and their gains log d^2 [B, k].

    The kernel is L = diag(q) S diag(q). The Cholesky factor is that of S, and q enters the sort keys only, so q cannot
    be too large. If all remaining items depend on the selected ones (d^2 < 1e-10 S_ii), they follow in order of their
    numbers, with the gain -inf.

    Args:
        row: function that returns rows of S: item numbers [B] -> [B, N] float64.
        diagonal: diagonal of S, [B, N].
        k: number of items to select. It must not exceed the number of items that may be selected: a row with fewer is
            meaningless from there on.
        log_quality: log q, [B, N]; None: 0.
        barred: -inf for items that must not be selected, else 0, [B, N]; None: all items may be selected.
        window: if it is w, an item must be independent of the w - 1 items selected last only.

    """
    residual = diagonal.clone()  # d^2 of every item
    bonus = torch.zeros_like(diagonal) if log_quality is None else 2 * log_quality
    penalty = torch.zeros_like(diagonal) if barred is None else barred.clone()
    dependent_keys = LAST - torch.arange(diagonal.shape[1], dtype=diagonal.dtype, device=diagonal.device)
    floor = DEPENDENT * diagonal
    factor = diagonal.new_empty((len(diagonal), k, diagonal.shape[1]))  # row t: c_t of every item
    rows = torch.empty_like(factor) if window is not None else None
    selected, selected_gains = [], []
    for step in range(k):
        is_independent = residual > floor
        keys = torch.where(is_independent, bonus + residual.log(), dependent_keys) + penalty
        item = keys.round(decimals=TIE_DIGITS).argmax(1, keepdim=True)
        selected.append(item)
        selected_gains.append(keys.gather(1, item))
        penalty.scatter_(1, item, -torch.inf)
        item_row = row(item[:, 0])
        is_dependent = ~is_independent.gather(1, item)
        if rows is not None and window is not None:
            rows[:, step] = item_row.masked_fill(is_dependent, 0.0)
            if step + 1 >= window:
                recent = slice(step + 2 - window, step + 1)
                residual = _residual(rows[:, recent], torch.cat(selected[recent], 1), diagonal)
                continue
        # Dividing by infinity yields a row of zeros: an item that depends on others adds nothing to the factor.
        pivot = residual.gather(1, item).sqrt().masked_fill(is_dependent, torch.inf)
        former_rows = factor[:, :step]
        former_entries = former_rows.gather(2, item[:, None].expand(-1, step, 1))
        products = torch.baddbmm(item_row[:, None], former_entries.transpose(1, 2), former_rows, alpha=-1)
        factor[:, step] = products[:, 0] / pivot
        residual = torch.addcmul(residual, factor[:, step], factor[:, step], value=-1)
    gains = torch.cat(selected_gains, 1)
    return torch.cat(selected, 1), gains.masked_fill(gains <= LAST, -torch.inf)


def _residual(rows: Tensor, selected: Tensor, diagonal: Tensor) -> Tensor:
    """Return d^2 [B, N] of every item, given the items `selected [B, W]` alone.

    `rows [B, W, N]` are the rows of S of these items; a row of zeros means that its item is ignored.
    """
    is_used = rows.any(2)
    gram = rows.gather(2, selected[:, None].expand(-1, rows.shape[1], -1)) * is_used[:, None]
    gram.diagonal(dim1=1, dim2=2).copy_(diagonal.gather(1, selected))
    factor = torch.linalg.solve_triangular(torch.linalg.cholesky(gram), rows, upper=False)
    residual: Tensor = diagonal - factor.square().sum(1)
    return residual


def greedy_map_reference(kernel: Tensor, k: int, *, window: int | None = None) -> tuple[list[int], list[float]]:
    """Return the selected items and their gains for one kernel L [N, N], computed by determinants without a factor.

    It stops early if all remaining items depend on the selected ones.
    """
    selected: list[int] = []
    gains: list[float] = []
    while len(selected) < k:
        recent = selected if window is None else selected[max(0, len(selected) - window + 1) :]
        log_determinant = torch.logdet(kernel[recent][:, recent]) if recent else torch.zeros(())
        best_item, best_gain = -1, -torch.inf
        for item in sorted(set(range(len(kernel))) - set(selected)):
            items = [*recent, item]
            gain = float(torch.logdet(kernel[items][:, items]) - log_determinant)
            # Ties go to the first item. A gain is NaN if the determinant is not positive, and then never larger.
            if gain > best_gain + 1e-9:
                best_item, best_gain = item, gain
        if best_item < 0 or best_gain < torch.log(DEPENDENT * kernel[best_item, best_item]):
            break
        selected.append(best_item)
        gains.append(best_gain)
    return selected, gains
