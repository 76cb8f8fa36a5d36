"""DeepFM against the loop over pairs of fields."""

from __future__ import annotations

import torch

from nextitem.core.batch import SequenceBatch


def test_a_logit_is_first_order_pairs_and_network(ranker, requests: SequenceBatch) -> None:
    model = ranker("deepfm", width=3, hidden=(5,))
    codes = model.fields(requests)
    vectors, weights = model.vectors(codes), model.linear(codes)
    fields = vectors.shape[1]
    assert fields == len(model.fields)
    pairs = sum((vectors[:, f] * vectors[:, g]).sum(1) for f in range(fields) for g in range(f + 1, fields))
    first, second = model.deep.shared.layers[0], model.deep.towers[0][0]
    network = second(torch.relu(first(vectors.flatten(1))))[:, 0]
    torch.testing.assert_close(model.logits(requests, codes)[:, 0], weights[:, :, 0].sum(1) + pairs + network)
