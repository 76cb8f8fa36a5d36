"""Streaming frequencies: the recurrence by hand, convergence, and a stream that changes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nextitem.nn.streaming_frequency import StreamingFrequency


def stream(frequency: StreamingFrequency, probabilities: Tensor, steps: int, *, seed: int) -> None:
    """Steps that hold item i with probability `probabilities[i]`."""
    draw = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        frequency.update((torch.rand(len(probabilities), generator=draw) < probabilities).nonzero()[:, 0])


def test_gaps_by_hand() -> None:
    frequency = StreamingFrequency(3, rate=0.5)
    for held in ([1], [2], [1], [], [], [], [1, 2]):
        frequency.update(torch.tensor(held, dtype=torch.int64))
    # Item 1 after 1, 2 and 4 steps: 1; 1 + (2 - 1) / 2; 1.5 + (4 - 1.5) / 2. Item 2 after 2 and 5: 2 + (5 - 2) / 2.
    assert (1 / frequency.probability(torch.tensor([1, 2]))).tolist() == pytest.approx([2.75, 3.5])
    assert float(frequency.probability(torch.tensor(3))) == 0, "it has never been there"


def test_estimates_converge_to_the_true_frequencies() -> None:
    true = torch.tensor([0.0, 0.9, 0.5, 0.2, 0.05, 0.02])
    frequency = StreamingFrequency(5, rate=0.002)
    errors = []
    for part, steps in enumerate((200, 20_000)):
        stream(frequency, true, steps, seed=part)
        errors.append((frequency.probability(torch.arange(1, 6)) / true[1:]).log().abs().max())
    assert errors[1] < 0.12
    assert errors[1] < errors[0]


def test_a_change_of_the_stream_is_followed() -> None:
    before, after = torch.tensor([0.0, 0.5, 0.05]), torch.tensor([0.0, 0.05, 0.5])
    frequency = StreamingFrequency(2, rate=0.05)
    stream(frequency, before, 2000, seed=0)
    stream(frequency, after, 2000, seed=1)
    assert (frequency.probability(torch.arange(1, 3)) / after[1:]).log().abs().max() < 0.5
