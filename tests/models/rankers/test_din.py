"""DIN: attention equals a plain loop, and training batches share statistics, unlike the withdrawn results."""

from __future__ import annotations

import pytest
import torch
from support.modules import part
from support.rankers import BuildRanker

from nextitem.core.batch import SequenceBatch
from nextitem.models.rankers.din import DIN
from nextitem.nn.ranking.dice import Dice


@pytest.mark.parametrize("normalise", [False, True])
def test_interest_equals_a_plain_loop(normalise: bool, ranker: BuildRanker, requests: SequenceBatch) -> None:
    model = ranker(DIN, width=2, hidden=(5,), unit=(6, 3), normalise=normalise, max_history_length=7)
    codes = model.fields(requests)
    interest = model.interest(requests, codes)
    unit, histories = model.attention.unit, requests.items.last(7).to_lists()
    assert requests.candidates is not None
    width = interest.shape[1]
    for p, (item, row) in enumerate(zip(requests.candidates.values, codes.rows.tolist(), strict=True)):
        q = model.vectors.of_items(item[None])[0]
        keys = model.vectors.of_items(torch.tensor(histories[row], dtype=torch.int64)).view(-1, width)
        weights = [
            unit.last(torch.sigmoid(unit.second(torch.sigmoid(unit.first(torch.cat([q, k, q - k, q * k]))))))[0]
            for k in keys
        ]
        expected = torch.zeros(width)
        if weights:
            w = torch.stack(weights)
            expected = (torch.softmax(w / width**0.5, 0) if normalise else w) @ keys
        torch.testing.assert_close(interest[p], expected, rtol=1e-4, atol=1e-5)


def test_only_the_latest_events_of_the_history_are_read(ranker: BuildRanker, requests: SequenceBatch) -> None:
    model = ranker(DIN, width=2, hidden=(5,), max_history_length=3, fields=("item.id", "user.country"))
    torch.testing.assert_close(model.score(requests)["target"], model.score(requests.last(3))["target"])
    assert not torch.allclose(model.score(requests)["target"], model.score(requests.last(1))["target"])


def test_positives_and_negatives_of_a_training_batch_share_statistics(
    ranker: BuildRanker, requests: SequenceBatch
) -> None:
    """The logits of the batch are those of one pass over all candidates."""
    model = ranker(DIN, width=2, hidden=(5,)).train()
    codes = model.fields(requests)
    inputs = torch.cat([model.vectors(codes).flatten(1), model.interest(requests, codes)], 1)
    hidden = model.deep.get_submodule("shared.layers.0")(inputs)
    dice = part(model.deep, "shared.layers.1", Dice)
    share = torch.sigmoid((hidden - hidden.mean(0)) / (hidden.var(0, correction=0) + 1e-8).sqrt())
    expected = model.deep.towers[0](hidden * (share + (1 - share) * dice.alpha))
    torch.testing.assert_close(model.logits(requests, codes), expected, rtol=1e-4, atol=1e-5)
