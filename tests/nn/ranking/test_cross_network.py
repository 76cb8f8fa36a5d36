"""Cross networks: equal their formulas, identity with zero weights, degree of the polynomial."""

from __future__ import annotations

import pytest
import torch
from support.modules import part
from torch import Tensor, nn

from nextitem.nn.ranking.cross_network import CrossMixture, CrossNetwork

X = 5


def with_random_parameters(network: nn.Module, scale: float = 1.0) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape))
    return network.double()


def network(version: str, layers: int) -> nn.Module:
    if version == "v2-mixture":
        return CrossMixture(X, layers=layers, rank=2, experts=3)
    return CrossNetwork(X, layers=layers, matrix=version == "v2")


def inputs() -> Tensor:
    return torch.randn(7, X, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("version", ["v1", "v2", "v2-mixture"])
def test_network_with_zero_weights_is_the_identity(version: str) -> None:
    torch.testing.assert_close(with_random_parameters(network(version, 3), 0.0)(inputs()), inputs())


def test_version_1_equals_its_formula_element_by_element() -> None:
    cross = with_random_parameters(network("v1", 3))
    start = inputs()
    for row in range(len(start)):
        x = x0 = start[row]
        for layer in range(3):
            w, b = cross.get_parameter(f"weights.{layer}.weight")[0], cross.get_parameter(f"biases.{layer}")
            product = torch.outer(x0, x) @ w  # the paper's x_0 x_l^T w
            x = product + b + x
        torch.testing.assert_close(cross(start)[row], x)


def test_version_2_equals_its_formula_element_by_element() -> None:
    cross = with_random_parameters(network("v2", 2))
    start = inputs()
    x = start.clone()
    for layer in range(2):
        w, b = cross.get_parameter(f"weights.{layer}.weight"), cross.get_parameter(f"biases.{layer}")
        x = torch.stack(
            [torch.stack([start[p, i] * (w[i] @ x[p] + b[i]) + x[p, i] for i in range(X)]) for p in range(len(start))]
        )
    torch.testing.assert_close(cross(start), x)


def test_mixture_equals_its_formula_expert_by_expert() -> None:
    cross = with_random_parameters(network("v2-mixture", 2), 0.5)
    start = inputs()
    for row in range(len(start)):
        x = x0 = start[row]
        for layer in part(cross, "layers", nn.ModuleList):
            down, inner, up, bias = (layer.get_parameter(name) for name in ("down", "inner", "up", "bias"))
            gates = torch.softmax(layer.get_parameter("gate.weight") @ x + layer.get_parameter("gate.bias"), 0)
            assert float(gates.detach().sum()) == pytest.approx(1)
            total = torch.zeros(X, dtype=torch.float64)
            for expert, gate in enumerate(gates):
                v, c, u = down[expert], inner[expert].T, up[expert].T
                total += gate * x0 * (u @ torch.tanh(c @ torch.tanh(v.T @ x)) + bias)
            x = total + x
        torch.testing.assert_close(cross(start)[row], x)


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_polynomial_degree_is_the_number_of_layers_plus_one(version: str, layers: int) -> None:
    """Along a line, differences of a polynomial of order degree + 1 are zero, and those of order degree are not."""
    cross = with_random_parameters(network(version, layers))
    line = torch.linspace(0, 1, layers + 3, dtype=torch.float64)[:, None] * inputs()[:1]
    differences = cross(line).detach()
    for _ in range(layers + 1):
        differences = differences.diff(dim=0)
    assert float(differences.abs().max()) > 1e-4
    assert float(differences.diff(dim=0).abs().max()) < 1e-10
