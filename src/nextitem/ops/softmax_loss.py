"""Cross-entropy over the whole catalogue, computed without storing all logits.

Shapes: T positions, N items, D width, K targets of a position.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 2**20  # logits in memory at once: 4 MiB in float32, so that they stay in the cache of a CPU between products
ROWS = 64  # minimum number of positions in a block: with fewer, products with the table are several times slower


def softmax_loss(hidden: Tensor, table: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean over T of -log softmax(hidden . items)[target], scalar; differentiable once.

    A position may have several targets, whose losses are summed, each times its weight: they share one softmax, so that
    further targets cost almost nothing.

    Memory is twice `BLOCK` logits plus the gradients, independent of T and N.

    The gradient of a cross-entropy depends on the probabilities only. So the forward pass computes both gradients while
    a block of probabilities is in memory. A small catalogue is processed in blocks of positions: each product is
    computed once, as in the plain version. A large catalogue, for which few positions would fit into a block, is
    processed in blocks of items: once for the normaliser and once for the gradients.

    Args:
        hidden: hidden states [T, D].
        table: item vectors [N + 1, D]; row 0 is padding and never competes.
        targets: item ids [T] or [T, K], 1..N; an absent target is any item of weight 0.
        weights: weights [T, K] of the targets; None: 1.

    Raises:
        ValueError: there is no position.

    """
    if not len(hidden):
        raise ValueError("softmax_loss needs at least one position with a target")
    targets = targets.view(len(hidden), -1)
    loss: Tensor = _SoftmaxLoss.apply(hidden, table, targets, weights)  # type: ignore[no-untyped-call]
    return loss


def softmax_loss_reference(hidden: Tensor, table: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return what `softmax_loss` returns, computed from all logits at once."""
    targets = targets.view(len(hidden), -1)
    losses = -torch.log_softmax(hidden @ table[1:].T, 1).gather(1, targets - 1)
    return (losses if weights is None else losses * weights).sum() / len(hidden)


class _SoftmaxLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, table: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        needs_gradients = any(ctx.needs_input_grad[:2])
        with torch.autocast(hidden.device.type, enabled=False):
            items = table[1:].to(hidden.dtype)
            weights = torch.ones_like(targets, dtype=hidden.dtype) if weights is None else weights.to(hidden.dtype)
            by_rows = BLOCK // len(items) >= min(ROWS, len(hidden))
            blocks = _blocks_of_positions if by_rows else _blocks_of_items
            grad_table = torch.zeros_like(table, dtype=hidden.dtype) if needs_gradients else None
            grad_items = None if grad_table is None else grad_table[1:]
            losses, grad_hidden = blocks(hidden, items, targets - 1, weights, grad_items)
        if grad_hidden is not None and grad_table is not None:
            ctx.save_for_backward(grad_hidden, grad_table.to(table.dtype))
        return losses.sum() / len(hidden)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_table = ctx.saved_tensors
        return grad_hidden * grad, grad_table * grad, None, None


def _blocks_of_positions(
    hidden: Tensor, items: Tensor, targets: Tensor, weights: Tensor, grad_items: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return the losses [T] and the gradient of their mean with respect to `hidden`, in blocks of positions.

    `items [N, D]` are the item vectors without padding, `targets [T, K]` their row numbers, from 0. The gradient with
    respect to `items` is added to `grad_items`; if that is None, no gradients are computed.
    """
    rows = max(1, BLOCK // len(items))
    losses = []
    grad_hidden = None if grad_items is None else torch.empty_like(hidden)
    logits, out = torch.empty(2, min(rows, len(hidden)), len(items), dtype=hidden.dtype, device=hidden.device)
    for start in range(0, len(hidden), rows):
        span = slice(start, start + rows)
        part, target, weight = hidden[span], targets[span], weights[span]
        block = torch.mm(part, items.T, out=logits[: len(part)])
        probabilities, normaliser = _normalise(block, out[: len(part)])
        losses.append(((normaliser[:, None] - block.gather(1, target).to(normaliser.dtype)) * weight).sum(1))
        if grad_items is not None and grad_hidden is not None:
            probabilities *= weight.sum(1, keepdim=True)
            probabilities.scatter_add_(1, target, -weight)
            torch.mm(probabilities, items, out=grad_hidden[start : start + rows])
            grad_items.addmm_(probabilities.T, part, alpha=1 / len(hidden))
    return torch.cat(losses), None if grad_hidden is None else grad_hidden.div_(len(hidden))


def _normalise(logits: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """Return the softmax of the rows, in `out` if the type allows it, and the log of their normalisers [T].

    For float16 and bfloat16 the normalisers are float32 and `out` is not used.
    """
    if logits.dtype in (torch.bfloat16, torch.float16):
        exact = logits.float()
        normaliser = exact.logsumexp(1)
        return (exact - normaliser[:, None]).exp_().to(logits.dtype), normaliser
    # softmax has the fastest exponential here. Its value at the highest logit is at least 1 / N, so its log is exact.
    probabilities = torch.softmax(logits, 1, out=out)
    return probabilities, logits.amax(1) - probabilities.amax(1).log()


def _blocks_of_items(
    hidden: Tensor, items: Tensor, targets: Tensor, weights: Tensor, grad_items: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return what `_blocks_of_positions` returns, computed in blocks of items."""
    columns = max(1, BLOCK // len(hidden))
    exact = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    normaliser = torch.full((len(hidden),), -torch.inf, dtype=exact, device=hidden.device)
    for part in torch.split(items, columns):
        normaliser = torch.logaddexp(normaliser, (hidden @ part.T).to(exact).logsumexp(1))
    logits = torch.einsum("td,tkd->tk", hidden, items[targets]).to(exact)
    losses = ((normaliser[:, None] - logits) * weights).sum(1)
    if grad_items is None:
        return losses, None
    grad_hidden = torch.zeros_like(hidden, dtype=exact)
    shift, totals = normaliser[:, None], weights.sum(1, keepdim=True)
    for part, grad_part in zip(torch.split(items, columns), torch.split(grad_items, columns), strict=True):
        probabilities = ((hidden @ part.T).to(exact) - shift).exp_().mul_(totals).to(hidden.dtype)
        grad_hidden += probabilities @ part
        torch.mm(probabilities.T, hidden, out=grad_part)
    # The part of the gradient that comes from the targets; it needs no blocks.
    grad_hidden -= torch.einsum("tk,tkd->td", weights, items[targets])
    pulls = weights[..., None] * hidden[:, None]
    grad_items.index_add_(0, targets.flatten(), pulls.flatten(0, 1), alpha=-1)
    grad_items.div_(len(hidden))
    return losses, grad_hidden.div_(len(hidden)).to(hidden.dtype)
