"""DCN equals its formula, in each version and structure."""

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
def test_logits_are_those_of_the_cross_layers_and_the_deep_part(
    version: str, structure: str, ranker: BuildRanker, requests: SequenceBatch
) -> None:
    model = ranker(DCN, width=2, hidden=(5,), version=version, structure=structure, crosses=2, rank=3)
    codes = model.fields(requests)
    inputs = model.vectors(codes).flatten(1)
    crossed = inputs
    for layer in range(2):
        if version == "v2-mixture":
            crossed = inputs * model.cross.get_submodule(f"layers.{layer}")(crossed) + crossed
        else:
            weight = model.cross.get_parameter(f"weights.{layer}.weight")
            bias = model.cross.get_parameter(f"biases.{layer}")
            product = crossed @ weight.T
            crossed = (inputs * product + bias if version == "v1" else inputs * (product + bias)) + crossed
    first, second = (part(model.deep, path, nn.Linear) for path in ("shared.layers.0", "towers.0.0"))
    if structure == "stacked":
        expected = second(torch.relu(first(crossed)))
    else:
        assert model.of_crosses is not None
        outputs = torch.cat([crossed, torch.relu(first(inputs))], 1)
        expected = outputs @ torch.cat([model.of_crosses.weight, second.weight], 1).T + second.bias
    torch.testing.assert_close(model.logits(requests, codes), expected, rtol=1e-4, atol=1e-4)
