"""A few plain training steps, whose losses show whether anything that training reads has changed."""

from __future__ import annotations

from typing import Any

import torch

from nextitem.core.dataset import Dataset

NUM_STEPS = 3


def three_losses(learner: Any, train: Dataset) -> list[float]:
    """Return the losses of three steps of plain gradient descent on batches of eight, dropout included."""
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(learner.parameters(), 0.1)  # it takes sparse gradients too
    losses = []
    learner.train()
    for batch, _ in zip(learner.examples(train).batches(8, epoch=0, seed=0), range(NUM_STEPS), strict=False):
        loss = learner.training_loss(batch).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
