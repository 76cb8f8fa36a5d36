"""Greedy MAP inference of a determinantal point process: items one by one, each adding most to the log-determinant.

Chen, Zhang, Zhou (arXiv 1709.05135), algorithm 1: with a Cholesky factor that grows by one row an item, what each
item would add (d^2, the last pivot) costs O(N) to bring up to date, so M items of N cost O(N M^2).

Shapes: B kernels, N items, k items chosen.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

DEPENDENT = 1e-10  # d^2 over L_ii below which an item is a combination of those chosen
LAST = -1e6  # keys of such items, below those of all others
TIE_DIGITS = 9  # to which keys are compared: rounding decides nothing


def greedy_map(
    row: Callable[[Tensor], Tensor],
    diagonal: Tensor,
    k: int,
    *,
    log_quality: Tensor | None = None,
    barred: Tensor | None = None,
    window: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The order in which items are chosen [B, k] int64, and the logarithm of what each adds, log d^2 [B, k].

    `row` gives rows of S, [B] -> [B, N] float64, and `diagonal [B, N]` its diagonal; L = diag(q) S diag(q) with
    `log_quality` = log q [B, N] (None: 0). Factors are kept of S and q enters the keys alone, so no q is too large.
    Where all that is left depends on what is chosen (d^2 < 1e-10 S_ii), items follow in their given order, and add
    -inf. `barred [B, N]` is -inf for what may not be chosen; k must not exceed what is left (a row with fewer is
    meaningless from there on). With a `window` w, an item must differ from the w - 1 chosen last only.
    """
    residual = diagonal.clone()  # d^2 of every item
    gain = torch.zeros_like(diagonal) if log_quality is None else 2 * log_quality
    open_ = torch.zeros_like(diagonal) if barred is None else barred.clone()
    late = LAST - torch.arange(diagonal.shape[1], dtype=diagonal.dtype, device=diagonal.device)
    floor = DEPENDENT * diagonal
    factor = diagonal.new_empty((len(diagonal), k, diagonal.shape[1]))  # row t: c_t of every item
    rows = torch.empty_like(factor) if window is not None else None
    chosen, added = [], []
    for step in range(k):
        free = residual > floor
        keys = torch.where(free, gain + residual.log(), late) + open_
        place = keys.round(decimals=TIE_DIGITS).argmax(1, keepdim=True)
        chosen.append(place)
        added.append(keys.gather(1, place))
        open_.scatter_(1, place, -torch.inf)
        own = row(place[:, 0])
        depends = ~free.gather(1, place)
        if rows is not None and window is not None:
            rows[:, step] = own.masked_fill(depends, 0.0)
            if step + 1 >= window:
                recent = slice(step + 2 - window, step + 1)
                residual = _residual(rows[:, recent], torch.cat(chosen[recent], 1), diagonal)
                continue
        # Dividing by infinity makes a row of zeros: an item that depends on others adds nothing to the factor.
        pivot = residual.gather(1, place).sqrt().masked_fill(depends, torch.inf)
        before = factor[:, :step]
        at = before.gather(2, place[:, None].expand(-1, step, 1))
        factor[:, step] = torch.baddbmm(own[:, None], at.transpose(1, 2), before, alpha=-1)[:, 0] / pivot
        residual = torch.addcmul(residual, factor[:, step], factor[:, step], value=-1)
    gains = torch.cat(added, 1)
    return torch.cat(chosen, 1), gains.masked_fill(gains <= LAST, -torch.inf)


def _residual(rows: Tensor, chosen: Tensor, diagonal: Tensor) -> Tensor:
    """d^2 [B, N] of every item given those `chosen [B, W]` alone, whose rows of S are `rows [B, W, N]`, 0: left out."""
    kept = rows.any(2)
    gram = rows.gather(2, chosen[:, None].expand(-1, rows.shape[1], -1)) * kept[:, None]
    gram.diagonal(dim1=1, dim2=2).copy_(diagonal.gather(1, chosen))
    factor = torch.linalg.solve_triangular(torch.linalg.cholesky(gram), rows, upper=False)
    residual: Tensor = diagonal - factor.square().sum(1)
    return residual


def greedy_map_reference(kernel: Tensor, k: int, *, window: int | None = None) -> tuple[list[int], list[float]]:
    """The same for one kernel L [N, N] by determinants, without a factor; it ends where nothing is left to add."""
    chosen: list[int] = []
    added: list[float] = []
    while len(chosen) < k:
        recent = chosen if window is None else chosen[max(0, len(chosen) - window + 1) :]
        known = torch.logdet(kernel[recent][:, recent]) if recent else torch.zeros(())
        best, most = -1, -torch.inf
        for item in sorted(set(range(len(kernel))) - set(chosen)):
            own = [*recent, item]
            gain = float(torch.logdet(kernel[own][:, own]) - known)
            if gain > most + 1e-9:  # equal ones: the first; NaN: the determinant is not positive
                best, most = item, gain
        if best < 0 or most < torch.log(DEPENDENT * kernel[best, best]):
            break
        chosen.append(best)
        added.append(most)
    return chosen, added
