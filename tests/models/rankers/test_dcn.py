"""DCN against its formula, in each version and structure."""

from __future__ import annotations

import pytest
import torch

from nextitem.core.batch import SequenceBatch


@pytest.mark.parametrize("structure", ["parallel", "stacked"])
@pytest.mark.parametrize("version", ["v1", "v2", "v2-mixture"])
def test_a_logit_is_what_crosses_and_network_say(version: str, structure: str, ranker, requests: SequenceBatch) -> None:
    model = ranker("dcn", width=2, hidden=(5,), version=version, structure=structure, crosses=2, rank=3)
    codes = model.fields(requests)
    inputs = model.vectors(codes).flatten(1)
    x = inputs
    for layer in range(2):
        if version == "v2-mixture":
            x = inputs * model.cross.layers[layer](x) + x
        else:
            weight, bias = model.cross.weights[layer].weight, model.cross.biases[layer]
            x = (inputs * (x @ weight.T) + bias if version == "v1" else inputs * (x @ weight.T + bias)) + x
    first, second = model.deep.shared.layers[0], model.deep.towers[0][0]
    if structure == "stacked":
        expected = second(torch.relu(first(x)))
    else:
        side_by_side = torch.cat([x, torch.relu(first(inputs))], 1)
        expected = side_by_side @ torch.cat([model.of_crosses.weight, second.weight], 1).T + second.bias
    torch.testing.assert_close(model.logits(requests, codes), expected, rtol=1e-4, atol=1e-4)
