"""The query transformer against a plain computation, query by query."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from nextitem.nn.attention.query_transformer import QueryBlock, QueryTransformer


def transformer(**settings: int) -> QueryTransformer:
    torch.manual_seed(0)
    sizes = {"queries": 3, "layers": 2, "heads": 2, "inner": 10} | settings
    model = QueryTransformer(8, **sizes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return model.eval()


def norm(vector: Tensor, layer: nn.Module) -> Tensor:
    assert isinstance(layer, nn.RMSNorm)
    return vector / (vector.square().mean(-1, keepdim=True) + 1e-6).sqrt() * layer.weight


def plain(model: QueryTransformer, sequence: Tensor) -> Tensor:
    """Return the summary of one sequence [L, 8], computed query by query and head by head."""
    source, hidden = norm(sequence, model.norm_input), list(model.queries)
    for block in cast(list[QueryBlock], list(model.blocks)):
        key, value = block.cross.key_value.weight.split(8)
        first, second = (cast(nn.Linear, layer).weight for layer in block.feed.layers)
        for number, query in enumerate(hidden):
            request = block.cross.query.weight @ norm(query, block.norm_cross)
            heads = []
            for head in (slice(0, 4), slice(4, 8)):
                shares = torch.stack([(key[head] @ event) @ request[head] for event in source]).softmax(0)
                heads.append(shares @ torch.stack([value[head] @ event for event in source]))
            query = query + block.cross.output.weight @ torch.cat(heads)
            hidden[number] = query + second @ (first @ norm(query, block.norm_feed)).relu()
    return torch.stack([norm(query, model.norm) for query in hidden])


def test_summaries_are_those_of_a_plain_computation() -> None:
    model, lengths = transformer(), torch.tensor([5, 1, 0, 3])
    sequences = torch.randn(4, 5, 8)
    summaries = model(sequences, lengths)
    assert summaries.shape == (4, 3, 8)
    for row in (0, 1, 3):
        torch.testing.assert_close(summaries[row], plain(model, sequences[row, : lengths[row]]))
    assert not bool(summaries[2].any())


def test_padding_and_order_change_nothing() -> None:
    model, lengths = transformer(), torch.tensor([3, 2])
    sequences = torch.randn(2, 3, 8)
    other = torch.cat([sequences[:, [1, 0, 2]], torch.full((2, 4, 8), 100.0)], 1)
    torch.testing.assert_close(model(sequences, lengths), model(other, lengths))


def test_an_empty_sequence_has_finite_gradients() -> None:
    model = transformer().train()
    sequences = torch.randn(2, 2, 8, requires_grad=True)
    model(sequences, torch.tensor([0, 2])).sum().backward()
    assert sequences.grad is not None
    assert bool(sequences.grad.isfinite().all())
    assert not bool(sequences.grad[0].any())
    assert all(bool(parameter.grad.isfinite().all()) for parameter in model.parameters() if parameter.grad is not None)
