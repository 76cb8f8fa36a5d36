"""StreamingFrequency: hand-computed gaps, convergence, and a stream whose frequencies change."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nextitem.nn.streaming_frequency import StreamingFrequency


def update_with_random_steps(frequency: StreamingFrequency, probabilities: Tensor, steps: int, *, seed: int) -> None:
    """Update with random steps that contain item i with probability `probabilities[i]`."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        frequency.update((torch.rand(len(probabilities), generator=generator) < probabilities).nonzero()[:, 0])


def test_mean_gaps_equal_hand_computed_ones() -> None:
    frequency = StreamingFrequency(3, rate=0.5)
    for items in ([1], [2], [1], [], [], [], [1, 2]):
        frequency.update(torch.tensor(items, dtype=torch.int64))
    # Item 1 has gaps of 1, 2 and 4 steps: 1; 1 + (2 - 1) / 2; 1.5 + (4 - 1.5) / 2. Item 2 has 2 and 5: 2 + (5 - 2) / 2.
    assert (1 / frequency.probability(torch.tensor([1, 2]))).tolist() == pytest.approx([2.75, 3.5])
    assert float(frequency.probability(torch.tensor(3))) == 0, "no step has contained item 3"


def test_estimates_converge_to_the_true_frequencies() -> None:
    true_probabilities = torch.tensor([0.0, 0.9, 0.5, 0.2, 0.05, 0.02])
    frequency = StreamingFrequency(5, rate=0.002)
    errors = []
    for part, steps in enumerate((200, 20_000)):
        update_with_random_steps(frequency, true_probabilities, steps, seed=part)
        errors.append((frequency.probability(torch.arange(1, 6)) / true_probabilities[1:]).log().abs().max())
    assert errors[1] < 0.12
    assert errors[1] < errors[0]


def test_estimates_follow_a_change_of_the_stream() -> None:
    before, after = torch.tensor([0.0, 0.5, 0.05]), torch.tensor([0.0, 0.05, 0.5])
    frequency = StreamingFrequency(2, rate=0.05)
    update_with_random_steps(frequency, before, 2000, seed=0)
    update_with_random_steps(frequency, after, 2000, seed=1)
    assert (frequency.probability(torch.arange(1, 3)) / after[1:]).log().abs().max() < 0.5
