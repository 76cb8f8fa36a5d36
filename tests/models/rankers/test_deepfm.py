"""DeepFM equals a loop over pairs of fields."""

from __future__ import annotations

import torch
from support.rankers import BuildRanker

from nextitem.core.batch import SequenceBatch
from nextitem.models.rankers.deepfm import DeepFM


def test_a_logit_is_the_sum_of_linear_pairwise_and_deep_terms(ranker: BuildRanker, requests: SequenceBatch) -> None:
    model = ranker(DeepFM, width=3, hidden=(5,))
    codes = model.fields(requests)
    vectors, weights = model.vectors(codes), model.linear(codes)
    num_fields = vectors.shape[1]
    assert num_fields == len(model.fields)
    pairs = sum((vectors[:, f] * vectors[:, g]).sum(1) for f in range(num_fields) for g in range(f + 1, num_fields))
    first, second = (model.deep.get_submodule(path) for path in ("shared.layers.0", "towers.0.0"))
    network = second(torch.relu(first(vectors.flatten(1))))[:, 0]
    torch.testing.assert_close(model.logits(requests, codes)[:, 0], weights[:, :, 0].sum(1) + pairs + network)
