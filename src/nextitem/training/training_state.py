"""What happens around the steps: validation, best weights, budgets, checkpoints, interruption."""

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
from nextitem.training.loader import ScheduledBatch
from nextitem.training.module import TrainingModule
from nextitem.training.optimizers import clear_state
from nextitem.training.progress import Progress

_DUE = [None, "interrupted", "time", "save"]


class TrainingState(lightning.Callback):
    """The state of a training run beyond weights and optimizer; it is saved in every checkpoint."""

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
        self.interrupted = False
        self.stopped: str | None = None
        self.epoch = 0  # the next batch: its epoch ...
        self.batch = 0  # ... and its place within it
        self.seconds = 0.0  # spent by earlier parts of the run
        self.bad = 0  # validations since the best one
        self.num_undefined = 0  # validations that gave no figure
        self.best_value = -float("inf")
        self.best_epoch = 0
        self.best_weights: dict[str, Tensor] = {}
        self.history: list[dict[str, float]] = []
        self.sums: dict[str, Tensor] = {}  # of the losses in this epoch, over ...
        self.count = 0  # ... so many batches
        self._began = self._saved = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds of training, all parts of the run together."""
        return self.seconds + time.monotonic() - self._began

    def state_dict(self) -> dict[str, Any]:
        """Lightning's hook: goes into the checkpoint; plain values and tensors only."""
        judged = ("bad", "num_undefined", "best_value", "best_epoch", "best_weights")
        state = {
            name: getattr(self, name) for name in ("stopped", "epoch", "batch", *judged, "history", "sums", "count")
        }
        return {**state, "seconds": self.elapsed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        for name, value in state.items():
            setattr(self, name, value)

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Lightning's hook."""
        self._began = self._saved = time.monotonic()

    def on_train_batch_end(
        self, trainer: Any, module: TrainingModule, outputs: Any, batch: ScheduledBatch[Any], batch_idx: int
    ) -> None:
        """Lightning's hook: moves the cursor, and looks whether anything is due."""
        self.epoch, self.batch = (batch.epoch + 1, 0) if batch.is_last else (batch.epoch, batch.index + 1)
        for name, value in module.terms.items():
            self.sums[name] = self.sums.get(name, 0) + value.double()
        self.count += 1
        self.progress.step(batch.epoch, module.terms["loss"])
        if batch.is_last:
            self._end_epoch(module)
            if self.stopped is None and not trainer.is_last_batch:
                self._alternate(trainer, module.model)
        # Gradients of a group that is not complete are in no checkpoint: the run is cut between groups only.
        if self.stopped is None and (batch_idx + 1) % self.config.accumulate == 0:
            due = _DUE[processes.broadcast_int(_DUE.index(self._due()))]  # clocks differ, what is done must not
            if due == "save":
                self.save(trainer)
            else:
                self.stopped = due
        trainer.should_stop = self.stopped is not None

    def _due(self) -> str | None:
        if self.interrupted:
            return "interrupted"
        if self.config.max_minutes is not None and self.elapsed > 60 * self.config.max_minutes:
            return "time"
        return "save" if time.monotonic() - self._saved > 60 * self.config.checkpoint_minutes else None

    def finish(self, trainer: Any, module: TrainingModule) -> None:
        """Training has ended: writes the last resume point and judges an epoch that the budget cut off."""
        self.stopped = self.stopped or "finished"
        self.save(trainer)
        self.judge_rest(module)
        self.seconds = self.elapsed
        self._began = time.monotonic()

    def judge_rest(self, module: TrainingModule) -> None:
        """Validates the part of an epoch that the budget left; it is in no checkpoint, a longer run goes on without."""
        if self.stopped == "time" and self.batch:
            self._record(module, self.epoch + 1, judge=True)

    def save(self, trainer: Any) -> None:
        """Writes the resume point; a kill while it is written leaves the former one."""
        if self.checkpoint is None:
            return
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        beside = self.checkpoint.with_suffix(".tmp")
        trainer.save_checkpoint(beside)
        if processes.rank() == 0:
            os.replace(beside, self.checkpoint)
        self._saved = time.monotonic()

    def _end_epoch(self, module: TrainingModule) -> None:
        self._record(module, self.epoch, judge=self.epoch % self.config.validate_every == 0)
        self.sums, self.count = {}, 0
        if self.config.patience is not None and self.bad >= self.config.patience:
            self.stopped = "patience"

    def _alternate(self, trainer: Any, model: Any) -> None:
        """What an HasEpochHook model changes between epochs; moments of what begins anew are dropped."""
        if not isinstance(model, HasEpochHook):
            return
        for parameter in model.after_epoch(self.epoch):
            for optimizer in trainer.optimizers:
                clear_state(optimizer, parameter)

    def _record(self, module: TrainingModule, epoch: int, *, judge: bool) -> None:
        """Adds the means of an epoch, and its validation, to the history."""
        names = list(self.sums)
        # Of several processes each has summed its own parts, weighted: their mean is that of the whole batches.
        sums = torch.stack(processes.gather(torch.stack([self.sums[name].cpu() for name in names]))).mean(0)
        entry = {name: float(total) / self.count for name, total in zip(names, sums, strict=True)}
        if judge and self.validate is not None:
            value = self._judge(module, epoch, self.validate)
            entry.update({} if math.isnan(value) else {"validation": value})
        self.record(entry, epoch)
        self.history.append({"epoch": float(epoch), **entry})
        self.progress.epoch(self.history[-1], best_epoch=self.best_epoch)

    def _judge(self, module: TrainingModule, epoch: int, validate: Callable[[], float]) -> float:
        """Validate, and keep the weights if they are the best so far.

        NaN says that there was nothing to judge by (labels of one kind only): neither better nor worse.
        """
        module.model.eval()
        value = validate()
        module.model.train()
        if value > self.best_value:
            self.best_value, self.best_epoch, self.bad = value, epoch, 0
            self.best_weights = {name: part.detach().cpu().clone() for name, part in module.model.state_dict().items()}
        elif math.isnan(value):
            self.num_undefined += 1
        else:
            self.bad += 1
        return value
