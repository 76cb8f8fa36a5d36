"""LightningModule that trains any Trainable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import lightning
import torch
from torch import Tensor, nn

from nextitem.core.errors import UserError
from nextitem.core.roles import HasBatchHook, LossTerms, Trainable, has_step_state
from nextitem.distributed import processes
from nextitem.training.config import TrainingConfig
from nextitem.training.growing_tables import change_rows, divide_tables, growing_tables
from nextitem.training.loader import ScheduledBatch
from nextitem.training.optimizers import build_optimizer, build_schedule, sparse_tables
from nextitem.training.synchronisation import Synchronisation

_MIX = 0x9E3779B97F4A7C15  # odd 64-bit constant that spreads neighbouring cursors over all seeds


class TrainingModule(lightning.LightningModule):
    """Adapter of a Trainable to Lightning.

    Each step seeds torch from (seed, epoch, batch). So dropout is a function of the cursor, a resumed run samples the
    same numbers as an uninterrupted one, and no generator state is ever saved.
    """

    def __init__(self, model: nn.Module, config: TrainingConfig, *, seed: int, total_steps: int) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.seed = seed
        self.total_steps = total_steps
        self.running_optimizers: Sequence[torch.optim.Optimizer] = ()  # while training runs
        self.terms: dict[str, Tensor] = {}  # loss of the last batch and its named parts, detached
        self._hooked_parts = [part for part in model.modules() if isinstance(part, HasBatchHook)]
        # Several processes add up their sparse gradients in on_before_optimizer_step. gloo's own reduction, which
        # DistributedDataParallel uses, corrupts memory now and then (torch 2.13).
        self._sparse = sparse_tables(model, config)
        self._synchronisation = Synchronisation(model)
        self._weight = 1.0  # of this process's part of the batch
        self._tables = growing_tables(model)
        self._divides_tables = processes.world_size() > 1 and any(table.config.is_divided for table in self._tables)
        self._ddp_params_and_buffers_to_ignore = [f"model.{name}" for name in self._sparse]

    def training_step(self, scheduled: ScheduledBatch[Any], batch_idx: int) -> Tensor:
        """Return the loss of one batch; raise UserError if it is not finite."""
        # torch.manual_seed formats a stack trace for every kind of device, which takes longer than a small step.
        seed = step_seed(self.seed, scheduled.epoch, scheduled.index, rank=processes.rank())
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        self._synchronisation.begin()
        terms = self._terms(scheduled)
        if not bool(torch.isfinite(terms.total)):
            raise UserError(
                f"the loss is {float(terms.total.detach())} in epoch {scheduled.epoch + 1}, "
                f"batch {scheduled.index + 1}: "
                "training has diverged; lower training.learning_rate or set training.gradient_clip"
            )
        self._weight = scheduled.weight
        self.terms = {"loss": terms.total.detach(), **terms.named}
        return terms.total

    def _terms(self, scheduled: ScheduledBatch[Any]) -> LossTerms:
        """Return the loss terms of this process's part.

        If the part is empty, the loss is 0, with zero gradients: the other processes wait for them.
        """
        if scheduled.weight == 0 and self._divides_tables:
            return self._terms_without_effect(scheduled)
        if scheduled.weight == 0:
            parameters = [
                p for name, p in self.model.named_parameters() if p.requires_grad and name not in self._sparse
            ]
            return LossTerms(torch.stack([parameter.sum() * 0 for parameter in parameters]).sum())
        terms = cast(Trainable[Any], self.model).training_loss(scheduled.batch)
        if scheduled.weight == 1:
            return terms
        named = {name: value * scheduled.weight for name, value in terms.named.items()}
        return LossTerms(terms.total * scheduled.weight, named)

    def _terms_without_effect(self, scheduled: ScheduledBatch[Any]) -> LossTerms:
        """Return the loss 0 of a part of another process, which takes part in the look-ups among processes.

        Nothing else comes of it: buffers are what they were before.
        """
        observed = [table.take_observed() for table in self._tables]
        buffers = [
            (part, name, buffer, buffer.clone())
            for part in self.model.modules()
            for name, buffer in part.named_buffers(recurse=False)
        ]
        terms = cast(Trainable[Any], self.model).training_loss(scheduled.batch)
        for part, name, buffer, former in buffers:
            part._buffers[name] = buffer.copy_(former)
        for table, ids in zip(self._tables, observed, strict=True):
            table.take_observed()
            table.observe_ids(ids)
        return LossTerms(terms.total * 0, {name: value * 0 for name, value in terms.named.items()})

    def on_after_backward(self) -> None:
        """Lightning's hook: change buffers, which the backward pass needs as they were in the forward pass."""
        self._synchronisation.end(self._weight)
        for part in self._hooked_parts:
            part.after_batch(self._weight)

    def on_train_start(self) -> None:
        """Lightning's hook: divide the rows of tables among processes."""
        self.running_optimizers = self.trainer.optimizers
        divide_tables(self.model, self.running_optimizers)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Lightning's hook: step the optimizer, then let growing tables admit and evict ids."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        change_rows(self._tables, self.running_optimizers[0])

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Lightning's hook: replace sparse gradients by their mean over all processes."""
        if processes.world_size() == 1:
            return
        divided = {id(part.weight) for part in self._tables if part.is_divided}
        for part in self._tables:
            part.collect_gradient()
        for table in self._sparse.values():
            if id(table) in divided:
                continue
            rows, values = torch.zeros(0, dtype=torch.int64), torch.zeros(0, table.shape[1])
            if table.grad is not None:  # None if this process's part of the batch was empty
                grad = table.grad.coalesce().cpu()
                rows, values = grad.indices()[0], grad.values()
            rows, values = (torch.cat(processes.gather(part)) for part in (rows, values / processes.world_size()))
            table.grad = torch.sparse_coo_tensor(rows[None], values, table.shape).to(table.device)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Lightning's hook: clip the norm of all gradients; torch cannot take the norm of sparse ones."""
        if not gradient_clip_val or not self._sparse:
            self.clip_gradients(
                optimizer, gradient_clip_val=gradient_clip_val, gradient_clip_algorithm=gradient_clip_algorithm
            )
            return
        divided = {id(table.weight) for table in self._tables if table.is_divided}
        total, own = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        gradients = []
        for parameter in self.model.parameters():
            if parameter.grad is None:
                continue
            if parameter.grad.is_sparse:
                parameter.grad = parameter.grad.coalesce()
            values = parameter.grad.values() if parameter.grad.is_sparse else parameter.grad
            gradients.append(values)
            square = values.square().sum()
            total, own = (total, own + square) if id(parameter) in divided else (total + square, own)
        if divided:
            own = torch.stack(processes.gather(own.cpu()[None])).sum().to(total)
        factor = (gradient_clip_val / ((total + own).sqrt() + 1e-6)).clamp(max=1)
        for values in gradients:
            values.mul_(factor)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Lightning's hook: move a batch to the device."""
        return batch.to(device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook: save the state that the model keeps between steps."""
        if has_step_state(self.model):
            parts = processes.gather(self.model.step_state.cpu())
            checkpoint["step_state"] = torch.stack([parts[lane % len(parts)][lane] for lane in range(len(parts[0]))])

    def configure_optimizers(self) -> Any:
        """Lightning's hook: return the optimizer and its schedule, which changes at every step."""
        optimizer = build_optimizer(self.model, self.config)
        schedule = build_schedule(optimizer, self.config, total_steps=self.total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def step_seed(seed: int, epoch: int, index: int, *, rank: int = 0) -> int:
    """Return the seed of one training step, which differs between processes."""
    return (((seed * _MIX + epoch) * _MIX + index) + rank * _MIX**2) % 2**63
