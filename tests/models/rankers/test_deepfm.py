"""DeepFM against the loop over pairs of fields."""

from __future__ import annotations

import torch
from support.rankers import BuildRanker

from nextitem.core.batch import SequenceBatch
from nextitem.models.rankers.deepfm import DeepFM


def test_a_logit_is_first_order_pairs_and_network(ranker: BuildRanker, requests: SequenceBatch) -> None:
    model = ranker(DeepFM, width=3, hidden=(5,))
    codes = model.fields(requests)
    vectors, weights = model.vectors(codes), model.linear(codes)
    fields = vectors.shape[1]
    assert fields == len(model.fields)
    pairs = sum((vectors[:, f] * vectors[:, g]).sum(1) for f in range(fields) for g in range(f + 1, fields))
    first, second = (model.deep.get_submodule(path) for path in ("shared.layers.0", "towers.0.0"))
    network = second(torch.relu(first(vectors.flatten(1))))[:, 0]
    torch.testing.assert_close(model.logits(requests, codes)[:, 0], weights[:, :, 0].sum(1) + pairs + network)
