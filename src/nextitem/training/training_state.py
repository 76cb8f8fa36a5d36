"""Control of training around the steps: validation, best weights, time budget, checkpoints, interruption."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor

from nextitem.core.roles import HasEpochHook
from nextitem.distributed import processes
from nextitem.training.config import TrainingConfig
from nextitem.training.growing_tables import gather_tables, whole_tables
from nextitem.training.loader import ScheduledBatch
from nextitem.training.module import TrainingModule
from nextitem.training.optimizers import clear_state
from nextitem.training.progress import Progress

_ACTIONS = [None, "interrupted", "time", "save"]  # between two steps: continue, stop for one of two reasons, save
# Attributes that a checkpoint contains, by their keys in it.
_CHECKPOINT_KEYS = {
    "stopped": "stop_reason",
    "epoch": "epoch",
    "batch": "batch",
    "bad": "epochs_without_improvement",
    "num_undefined": "num_undefined",
    "best_value": "best_value",
    "best_epoch": "best_epoch",
    "best_weights": "best_weights",
    "history": "epoch_log",
    "sums": "loss_sums",
    "count": "num_summed",
    "seconds": "seconds",
}


class TrainingState(lightning.Callback):
    """State of a training run beyond weights and optimizer; every checkpoint contains it.

    Args:
        config: settings of training.
        progress: display of the progress.
        validate: returns the value of the current weights, to be maximised; None: no validation.
        checkpoint: file of the checkpoint; None: none is saved.
        record: receives the figures of each epoch and its number, for TensorBoard.

    """

    def __init__(
        self,
        config: TrainingConfig,
        progress: Progress,
        *,
        validate: Callable[[], float] | None,
        checkpoint: Path | None,
        record: Callable[[dict[str, float], int], None],
    ) -> None:
        self.config = config
        self.progress = progress
        self.validate = validate
        self.checkpoint = checkpoint
        self.record = record
        self.is_interrupted = False
        self.stop_reason: str | None = None  # see TrainingResult
        self.epoch = 0  # epoch of the next batch, from 0
        self.batch = 0  # index of the next batch within its epoch
        self.seconds = 0.0  # of training before the last start of the clock
        self.epochs_without_improvement = 0  # number of validations since the best one
        self.num_undefined = 0  # number of validations whose value was NaN
        self.best_value = -float("inf")
        self.best_epoch = 0
        self.best_weights: dict[str, Tensor] = {}
        self.epoch_log: list[dict[str, float]] = []
        self.loss_sums: dict[str, Tensor] = {}  # sums of the loss and its parts over the batches of this epoch
        self.num_summed = 0  # number of these batches
        self._start_time = self._last_save = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds of training, over all parts of a resumed run."""
        return self.seconds + time.monotonic() - self._start_time

    def state_dict(self) -> dict[str, Any]:
        """Lightning's hook: return what goes into the checkpoint; plain values and tensors only."""
        state = {key: getattr(self, name) for key, name in _CHECKPOINT_KEYS.items()}
        return {**state, "seconds": self.elapsed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned."""
        for key, value in state.items():
            setattr(self, _CHECKPOINT_KEYS[key], value)

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Lightning's hook: start the clock."""
        self._start_time = self._last_save = time.monotonic()

    def on_train_batch_end(
        self, trainer: Any, module: TrainingModule, outputs: Any, batch: ScheduledBatch[Any], batch_idx: int
    ) -> None:
        """Lightning's hook: move the cursor, end the epoch, and save or stop if that is due."""
        self.epoch, self.batch = (batch.epoch + 1, 0) if batch.is_last else (batch.epoch, batch.index + 1)
        for name, value in module.terms.items():
            self.loss_sums[name] = self.loss_sums.get(name, 0) + value.double()
        self.num_summed += 1
        self.progress.step(batch.epoch, module.terms["loss"])
        if batch.is_last:
            self._end_epoch(module)
            if self.stop_reason is None and not trainer.is_last_batch:
                self._run_epoch_hook(trainer, module.model)
        # A checkpoint contains no accumulated gradients, so a run is saved and stopped only after an optimizer step.
        if self.stop_reason is None and (batch_idx + 1) % self.config.accumulate == 0:
            # Clocks differ between processes; rank 0 decides.
            action = _ACTIONS[processes.broadcast_int(_ACTIONS.index(self._due_action()))]
            if action == "save":
                self.save(trainer)
            else:
                self.stop_reason = action
        trainer.should_stop = self.stop_reason is not None

    def _due_action(self) -> str | None:
        """Return the entry of _ACTIONS that is due now."""
        if self.is_interrupted:
            return "interrupted"
        if self.config.max_minutes is not None and self.elapsed > 60 * self.config.max_minutes:
            return "time"
        return "save" if time.monotonic() - self._last_save > 60 * self.config.checkpoint_minutes else None

    def finish(self, trainer: Any, module: TrainingModule) -> None:
        """End training: save the last checkpoint, and validate an epoch that the time budget has cut."""
        self.stop_reason = self.stop_reason or "finished"
        gather_tables(module.model, trainer.optimizers)
        self.save(trainer)
        self.validate_partial_epoch(module)
        self.seconds = self.elapsed
        self._start_time = time.monotonic()

    def validate_partial_epoch(self, module: TrainingModule) -> None:
        """Validate the partial epoch at the end of the time budget.

        The result is in no checkpoint, so a resumed run ignores it.
        """
        if self.stop_reason == "time" and self.batch:
            self._record(module, self.epoch + 1, should_validate=True)

    def save(self, trainer: Any) -> None:
        """Save a checkpoint to resume from; a kill during the write leaves the former one intact."""
        if self.checkpoint is None:
            return
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.checkpoint.with_suffix(".tmp")
        with whole_tables(trainer.lightning_module.model, trainer.optimizers):
            trainer.save_checkpoint(temporary)
        if processes.rank() == 0:
            os.replace(temporary, self.checkpoint)
        self._last_save = time.monotonic()

    def _end_epoch(self, module: TrainingModule) -> None:
        """Log and validate a complete epoch, and stop if patience is exhausted."""
        self._record(module, self.epoch, should_validate=self.epoch % self.config.validate_every == 0)
        self.loss_sums, self.num_summed = {}, 0
        if self.config.patience is not None and self.epochs_without_improvement >= self.config.patience:
            self.stop_reason = "patience"

    def _run_epoch_hook(self, trainer: Any, model: Any) -> None:
        """Call the epoch hook of a model that has one; clear the optimizer state of parameters that it has reset."""
        if not isinstance(model, HasEpochHook):
            return
        for parameter in model.after_epoch(self.epoch):
            for optimizer in trainer.optimizers:
                clear_state(optimizer, parameter)

    def _record(self, module: TrainingModule, epoch: int, *, should_validate: bool) -> None:
        """Append the mean losses of an epoch, and its validation value if there is one, to the epoch log."""
        names = list(self.loss_sums)
        # Each of several processes has summed its weighted parts; the mean over processes is that of whole batches.
        sums = torch.stack(processes.gather(torch.stack([self.loss_sums[name].cpu() for name in names]))).mean(0)
        entry = {name: float(total) / self.num_summed for name, total in zip(names, sums, strict=True)}
        if should_validate and self.validate is not None:
            with whole_tables(module.model, module.running_optimizers):
                value = self._validate(module, epoch, self.validate)
            entry.update({} if math.isnan(value) else {"validation": value})
        self.record(entry, epoch)
        self.epoch_log.append({"epoch": float(epoch), **entry})
        self.progress.epoch(self.epoch_log[-1], best_epoch=self.best_epoch)

    def _validate(self, module: TrainingModule, epoch: int, validate: Callable[[], float]) -> float:
        """Return the validation value of an epoch, and store the weights if they are the best so far.

        NaN means that there was nothing to judge by (labels of one kind only): the epoch is neither better nor worse.
        """
        module.model.eval()
        value = validate()
        module.model.train()
        if value > self.best_value:
            self.best_value, self.best_epoch, self.epochs_without_improvement = value, epoch, 0
            self.best_weights = {
                name: weight.detach().cpu().clone() for name, weight in module.model.state_dict().items()
            }
        elif math.isnan(value):
            self.num_undefined += 1
        else:
            self.epochs_without_improvement += 1
        return value
