"""Quantizers: against naive loops and an independent library, and the gradient that public code got wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nextitem.nn.quantisation.quantizers import (
    Quantised,
    kmeans,
    nearest_code,
    residual_quantise,
    sum_of_codes,
)


def random_vectors(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_codebooks(levels: int, codes: int, dim: int, *, seed: int) -> list[Tensor]:
    return [random_vectors(codes, dim, seed=seed + level) / (level + 1) for level in range(levels)]


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 9), codes=st.integers(1, 7), dim=st.integers(1, 5), seed=st.integers(0, 999))
def test_residual_quantisation_equals_a_naive_loop(rows: int, codes: int, dim: int, seed: int) -> None:
    vectors, codebooks = random_vectors(rows, dim, seed=seed).double(), random_codebooks(3, codes, dim, seed=seed + 1)
    codebooks = [codebook.double() for codebook in codebooks]
    result = residual_quantise(vectors, codebooks)
    for row, vector in enumerate(vectors):
        residual, expected_codes = vector.clone(), []
        for level, codebook in enumerate(codebooks):
            torch.testing.assert_close(result.inputs[level][row], residual)
            distances = [float(((residual - code_vector) ** 2).sum()) for code_vector in codebook]
            expected_codes.append(distances.index(min(distances)))
            residual = residual - codebook[expected_codes[-1]]
        assert result.codes[row].tolist() == expected_codes
        torch.testing.assert_close(vector - result.quantised[row], residual)
    torch.testing.assert_close(sum_of_codes(result.codes, codebooks), result.quantised)


def test_ties_go_to_the_smaller_code() -> None:
    codebook = torch.tensor([[5.0], [1.0], [-1.0], [1.0]])
    assert nearest_code(torch.tensor([[0.0], [1.0]]), codebook).tolist() == [1, 1]


def test_codes_do_not_depend_on_the_chunk_size(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, codebook = random_vectors(100, 4, seed=0), random_vectors(6, 4, seed=1)
    unchunked = nearest_code(vectors, codebook)
    monkeypatch.setattr("nextitem.nn.quantisation.quantizers._CHUNK", 50)
    assert torch.equal(nearest_code(vectors, codebook), unchunked)


def test_codes_equal_those_of_an_independent_library() -> None:
    library = pytest.importorskip("vector_quantize_pytorch")
    codebooks = random_codebooks(4, 32, 8, seed=3)
    oracle = library.ResidualVQ(dim=8, num_quantizers=4, codebook_size=32).eval()
    for layer, codebook in zip(oracle.layers, codebooks, strict=True):
        layer._codebook.embed.copy_(codebook[None])
    vectors = random_vectors(200, 8, seed=9)
    quantised, codes, _ = oracle(vectors)
    result = residual_quantise(vectors, codebooks)
    assert torch.equal(result.codes, codes)
    torch.testing.assert_close(result.quantised, quantised)


def test_residuals_never_grow_if_there_is_a_zero_code() -> None:
    codebooks = [torch.cat([torch.zeros(1, 6), codebook]) for codebook in random_codebooks(5, 8, 6, seed=4)]
    vectors = random_vectors(300, 6, seed=5)
    result = residual_quantise(vectors, codebooks)
    norms = torch.stack([*(r.norm(dim=1) for r in result.inputs), (vectors - result.quantised).norm(dim=1)])
    assert bool((norms[1:] <= norms[:-1] + 1e-6).all())
    assert bool((norms[-1] < norms[0] - 1e-3).any())


Quantise = Callable[[Tensor, Sequence[Tensor]], Quantised]


def residual_quantise_with_the_known_mistake(vectors: Tensor, codebooks: Sequence[Tensor]) -> Quantised:
    """Residual quantisation with the mistake of a public RQ-VAE.

    It subtracts r + sg(e - r), which cancels the gradient of r itself.
    """
    codes, residuals, code_vectors, residual = [], [], [], vectors
    for codebook in codebooks:
        code = nearest_code(residual.detach(), codebook)
        codes.append(code)
        residuals.append(residual)
        code_vectors.append(codebook[code])
        residual = residual - (residual + (codebook[code] - residual).detach())
    return Quantised(torch.stack(codes, 1), tuple(residuals), tuple(code_vectors), torch.stack(code_vectors).sum(0))


def commitment_gradients(quantise: Quantise, weight: Tensor, inputs: Tensor, codebooks: list[Tensor]) -> list[Tensor]:
    """Return the gradient of each level's commitment term with respect to the weight of an encoder."""
    gradients = []
    for level in range(len(codebooks)):
        encoder_weight = weight.clone().requires_grad_()
        result = quantise(inputs @ encoder_weight, codebooks)
        commitment = (result.inputs[level] - result.code_vectors[level].detach()).square().sum()
        gradients.append(torch.autograd.grad(commitment, encoder_weight)[0])
    return gradients


def test_commitment_gradient_of_every_level_equals_finite_differences() -> None:
    inputs, weight = random_vectors(20, 5, seed=1).double(), random_vectors(5, 3, seed=2).double()
    codebooks = [codebook.double() for codebook in random_codebooks(3, 6, 3, seed=3)]
    codes = residual_quantise(inputs @ weight, codebooks).codes
    code_vectors = [codebook[codes[:, level]] for level, codebook in enumerate(codebooks)]

    def commitment(at: Tensor, level: int) -> float:
        residual = inputs @ at - sum(code_vectors[:level], torch.zeros_like(code_vectors[0]))
        return float((residual - code_vectors[level]).square().sum())

    for level, gradient in enumerate(commitment_gradients(residual_quantise, weight, inputs, codebooks)):
        assert float(gradient.norm()) > 0.1
        for row in range(5):
            for column in range(3):
                step = torch.zeros_like(weight)
                step[row, column] = 1e-6
                slope = (commitment(weight + step, level) - commitment(weight - step, level)) / 2e-6
                assert float(gradient[row, column]) == pytest.approx(slope, rel=1e-5, abs=1e-6)


def test_the_known_mistake_has_no_commitment_gradient_from_the_second_level() -> None:
    inputs, weight, codebooks = (
        random_vectors(20, 5, seed=1),
        random_vectors(5, 3, seed=2),
        random_codebooks(3, 6, 3, seed=3),
    )
    wrong = commitment_gradients(residual_quantise_with_the_known_mistake, weight, inputs, codebooks)
    assert [float(gradient.norm()) > 0.1 for gradient in wrong] == [True, False, False]


def test_kmeans_separates_clusters_and_is_deterministic() -> None:
    centres = torch.tensor([[0.0, 0.0], [20.0, 0.0], [0.0, 20.0], [20.0, 20.0]])
    clusters = torch.arange(80) % 4
    vectors = centres[clusters] + 0.1 * random_vectors(80, 2, seed=0)
    result = kmeans(vectors, 4, seed=5)
    codes = nearest_code(vectors, result)
    assert len({(int(a), int(b)) for a, b in zip(clusters, codes, strict=True)}) == 4
    assert torch.equal(result, kmeans(vectors, 4, seed=5))


def test_kmeans_with_few_distinct_vectors_returns_them_all() -> None:
    distinct = random_vectors(5, 3, seed=0)
    result = kmeans(distinct.repeat(7, 1), 16, seed=0)
    assert result.shape == (5, 3)
    assert torch.equal(result[nearest_code(distinct, result)], distinct)


@pytest.mark.parametrize("rows", [17, 40])
def test_kmeans_returns_no_unused_code(rows: int) -> None:
    vectors = torch.cat([random_vectors(rows, 2, seed=1), torch.zeros(100, 2), torch.ones(100, 2)])
    result = kmeans(vectors, 16, seed=2)
    assert 1 < len(result) <= 16
    assert len(torch.unique(nearest_code(vectors, result))) == len(result)
