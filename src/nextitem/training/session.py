"""What happens around the steps: validation, best weights, budgets, checkpoints, interruption."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor

from nextitem.training.config import TrainingConfig
from nextitem.training.loader import Stamped
from nextitem.training.module import TrainingModule
from nextitem.training.progress import Progress


class Session(lightning.Callback):
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
        self.best_value = -float("inf")
        self.best_epoch = 0
        self.best_weights: dict[str, Tensor] = {}
        self.history: list[dict[str, float]] = []
        self.loss_sum = torch.zeros(())
        self.loss_count = 0
        self._began = self._saved = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds of training, all parts of the run together."""
        return self.seconds + time.monotonic() - self._began

    def state_dict(self) -> dict[str, Any]:
        """Lightning's hook: goes into the checkpoint; plain values and tensors only."""
        kept = ("stopped", "epoch", "batch", "bad", "best_value", "best_epoch", "best_weights", "history")
        state = {name: getattr(self, name) for name in kept}
        return {**state, "loss_sum": self.loss_sum, "loss_count": self.loss_count, "seconds": self.elapsed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        for name, value in state.items():
            setattr(self, name, value)

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Lightning's hook."""
        self._began = self._saved = time.monotonic()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Stamped, batch_idx: int) -> None:
        """Lightning's hook: moves the cursor, and looks whether anything is due."""
        self.epoch, self.batch = (batch.epoch + 1, 0) if batch.is_last else (batch.epoch, batch.index + 1)
        self.loss_sum = self.loss_sum + outputs["loss"].detach().cpu()
        self.loss_count += 1
        self.progress.step(self.epoch, float(self.loss_sum) / self.loss_count)
        if batch.is_last:
            self._end_epoch(module)
        if self.stopped is None and self.interrupted:
            self.stopped = "interrupted"
        if self.stopped is None and self.config.max_minutes is not None and self.elapsed > 60 * self.config.max_minutes:
            self.stopped = "time"
            if not batch.is_last:
                self._judge(module)
        if self.stopped is not None:
            trainer.should_stop = True
        elif (batch_idx + 1) % self.config.accumulate == 0 and self._due():
            self.save(trainer)

    def settle(self) -> None:
        """Training has ended: fixes the time that it took, and why it ended."""
        self.seconds = self.elapsed
        self._began = time.monotonic()
        self.stopped = self.stopped or "finished"

    def save(self, trainer: Any) -> None:
        """Writes the resume point; a kill while it is written leaves the former one."""
        if self.checkpoint is None:
            return
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        beside = self.checkpoint.with_suffix(".tmp")
        trainer.save_checkpoint(beside)
        os.replace(beside, self.checkpoint)
        self._saved = time.monotonic()

    def _due(self) -> bool:
        return time.monotonic() - self._saved > 60 * self.config.checkpoint_minutes

    def _end_epoch(self, module: TrainingModule) -> None:
        entry = {"epoch": float(self.epoch), "loss": float(self.loss_sum) / self.loss_count}
        self.history.append(entry)
        self.loss_sum, self.loss_count = torch.zeros(()), 0
        if self.epoch % self.config.validate_every == 0:
            self._judge(module)
        self.record({name: value for name, value in entry.items() if name != "epoch"}, self.epoch)
        self.progress.epoch(self.history[-1], best_epoch=self.best_epoch)

    def _judge(self, module: TrainingModule) -> None:
        """Validates; keeps the weights where they are the best so far."""
        if self.validate is None:
            return
        module.model.eval()
        value = self.validate()
        module.model.train()
        if self.history:
            self.history[-1]["validation"] = value
        if value > self.best_value:
            self.best_value, self.best_epoch, self.bad = value, self.epoch, 0
            self.best_weights = {name: part.detach().cpu().clone() for name, part in module.model.state_dict().items()}
            return
        self.bad += 1
        if self.config.patience is not None and self.bad >= self.config.patience:
            self.stopped = "patience"
