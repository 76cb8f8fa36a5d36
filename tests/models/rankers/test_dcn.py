"""DCN against its formula, in each version and structure."""

from __future__ import annotations

import pytest
import torch
from support.modules import part
from support.rankers import BuildRanker
from torch import nn

from nextitem.core.batch import SequenceBatch
from nextitem.models.rankers.dcn import DCN


@pytest.mark.parametrize("structure", ["parallel", "stacked"])
@pytest.mark.parametrize("version", ["v1", "v2", "v2-mixture"])
def test_a_logit_is_what_crosses_and_network_say(
    version: str, structure: str, ranker: BuildRanker, requests: SequenceBatch
) -> None:
    model = ranker(DCN, width=2, hidden=(5,), version=version, structure=structure, crosses=2, rank=3)
    codes = model.fields(requests)
    inputs = model.vectors(codes).flatten(1)
    x = inputs
    for layer in range(2):
        if version == "v2-mixture":
            x = inputs * model.cross.get_submodule(f"layers.{layer}")(x) + x
        else:
            weight = model.cross.get_parameter(f"weights.{layer}.weight")
            bias = model.cross.get_parameter(f"biases.{layer}")
            x = (inputs * (x @ weight.T) + bias if version == "v1" else inputs * (x @ weight.T + bias)) + x
    first, second = (part(model.deep, path, nn.Linear) for path in ("shared.layers.0", "towers.0.0"))
    if structure == "stacked":
        expected = second(torch.relu(first(x)))
    else:
        assert model.of_crosses is not None
        side_by_side = torch.cat([x, torch.relu(first(inputs))], 1)
        expected = side_by_side @ torch.cat([model.of_crosses.weight, second.weight], 1).T + second.bias
    torch.testing.assert_close(model.logits(requests, codes), expected, rtol=1e-4, atol=1e-4)
