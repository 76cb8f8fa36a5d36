"""Residual quantisation: naive loops, an independent library, and the gradient that public code got wrong."""

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


def _draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _books(levels: int, codes: int, dim: int, *, seed: int) -> list[Tensor]:
    return [_draw(codes, dim, seed=seed + level) / (level + 1) for level in range(levels)]


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 9), codes=st.integers(1, 7), dim=st.integers(1, 5), seed=st.integers(0, 999))
def test_codes_and_sums_equal_a_naive_loop(rows: int, codes: int, dim: int, seed: int) -> None:
    vectors, books = _draw(rows, dim, seed=seed).double(), _books(3, codes, dim, seed=seed + 1)
    books = [book.double() for book in books]
    found = residual_quantise(vectors, books)
    for row, vector in enumerate(vectors):
        rest, chosen = vector.clone(), []
        for level, book in enumerate(books):
            torch.testing.assert_close(found.asked[level][row], rest)
            distances = [float(((rest - entry) ** 2).sum()) for entry in book]
            chosen.append(distances.index(min(distances)))
            rest = rest - book[chosen[-1]]
        assert found.codes[row].tolist() == chosen
        torch.testing.assert_close(vector - found.quantised[row], rest)
    torch.testing.assert_close(sum_of_codes(found.codes, books), found.quantised)


def test_a_tie_goes_to_the_smaller_code() -> None:
    book = torch.tensor([[5.0], [1.0], [-1.0], [1.0]])
    assert nearest_code(torch.tensor([[0.0], [1.0]]), book).tolist() == [1, 1]


def test_chunks_do_not_change_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, book = _draw(100, 4, seed=0), _draw(6, 4, seed=1)
    whole = nearest_code(vectors, book)
    monkeypatch.setattr("nextitem.nn.quantisation.quantizers._CHUNK", 50)
    assert torch.equal(nearest_code(vectors, book), whole)


def test_residual_vq_of_an_independent_library_gives_the_same_codes() -> None:
    library = pytest.importorskip("vector_quantize_pytorch")
    books = _books(4, 32, 8, seed=3)
    oracle = library.ResidualVQ(dim=8, num_quantizers=4, codebook_size=32).eval()
    for layer, book in zip(oracle.layers, books, strict=True):
        layer._codebook.embed.copy_(book[None])
    vectors = _draw(200, 8, seed=9)
    quantised, codes, _ = oracle(vectors)
    found = residual_quantise(vectors, books)
    assert torch.equal(found.codes, codes)
    torch.testing.assert_close(found.quantised, quantised)


def test_residuals_never_grow_where_a_zero_code_exists() -> None:
    books = [torch.cat([torch.zeros(1, 6), book]) for book in _books(5, 8, 6, seed=4)]
    vectors = _draw(300, 6, seed=5)
    found = residual_quantise(vectors, books)
    norms = torch.stack([*(r.norm(dim=1) for r in found.asked), (vectors - found.quantised).norm(dim=1)])
    assert bool((norms[1:] <= norms[:-1] + 1e-6).all())
    assert bool((norms[-1] < norms[0] - 1e-3).any())


Quantise = Callable[[Tensor, Sequence[Tensor]], Quantised]


def _subtracting_the_straight_through_output(vectors: Tensor, books: Sequence[Tensor]) -> Quantised:
    """The mistake of a public RQ-VAE: r + sg(e - r) is subtracted, which cancels r's own gradient."""
    codes, residuals, chosen, rest = [], [], [], vectors
    for book in books:
        code = nearest_code(rest.detach(), book)
        codes.append(code)
        residuals.append(rest)
        chosen.append(book[code])
        rest = rest - (rest + (book[code] - rest).detach())
    return Quantised(torch.stack(codes, 1), tuple(residuals), tuple(chosen), torch.stack(chosen).sum(0))


def _commitment_gradients(quantise: Quantise, weight: Tensor, inputs: Tensor, books: list[Tensor]) -> list[Tensor]:
    """Gradient of each level's commitment term with respect to an encoder's weight."""
    gradients = []
    for level in range(len(books)):
        leaf = weight.clone().requires_grad_()
        found = quantise(inputs @ leaf, books)
        term = (found.asked[level] - found.chosen[level].detach()).square().sum()
        gradients.append(torch.autograd.grad(term, leaf)[0])
    return gradients


def test_commitment_reaches_the_encoder_at_every_level_as_finite_differences_say() -> None:
    inputs, weight = _draw(20, 5, seed=1).double(), _draw(5, 3, seed=2).double()
    books = [book.double() for book in _books(3, 6, 3, seed=3)]
    codes = residual_quantise(inputs @ weight, books).codes
    entries = [book[codes[:, level]] for level, book in enumerate(books)]

    def term(at: Tensor, level: int) -> float:
        rest = inputs @ at - sum(entries[:level], torch.zeros_like(entries[0]))
        return float((rest - entries[level]).square().sum())

    for level, gradient in enumerate(_commitment_gradients(residual_quantise, weight, inputs, books)):
        assert float(gradient.norm()) > 0.1
        for row in range(5):
            for column in range(3):
                step = torch.zeros_like(weight)
                step[row, column] = 1e-6
                slope = (term(weight + step, level) - term(weight - step, level)) / 2e-6
                assert float(gradient[row, column]) == pytest.approx(slope, rel=1e-5, abs=1e-6)


def test_the_published_mistake_loses_that_gradient_from_the_second_level_on() -> None:
    inputs, weight, books = _draw(20, 5, seed=1), _draw(5, 3, seed=2), _books(3, 6, 3, seed=3)
    wrong = _commitment_gradients(_subtracting_the_straight_through_output, weight, inputs, books)
    assert [float(gradient.norm()) > 0.1 for gradient in wrong] == [True, False, False]


def test_kmeans_finds_separate_clusters_and_repeats_itself() -> None:
    centres = torch.tensor([[0.0, 0.0], [20.0, 0.0], [0.0, 20.0], [20.0, 20.0]])
    truth = torch.arange(80) % 4
    vectors = centres[truth] + 0.1 * _draw(80, 2, seed=0)
    found = kmeans(vectors, 4, seed=5)
    codes = nearest_code(vectors, found)
    assert len({(int(a), int(b)) for a, b in zip(truth, codes, strict=True)}) == 4
    assert torch.equal(found, kmeans(vectors, 4, seed=5))


def test_kmeans_with_fewer_distinct_vectors_than_codes_takes_them_all() -> None:
    distinct = _draw(5, 3, seed=0)
    found = kmeans(distinct.repeat(7, 1), 16, seed=0)
    assert found.shape == (5, 3)
    assert torch.equal(found[nearest_code(distinct, found)], distinct)


@pytest.mark.parametrize("rows", [17, 40])
def test_kmeans_leaves_no_code_unused(rows: int) -> None:
    vectors = torch.cat([_draw(rows, 2, seed=1), torch.zeros(100, 2), torch.ones(100, 2)])
    found = kmeans(vectors, 16, seed=2)
    assert 1 < len(found) <= 16
    assert len(torch.unique(nearest_code(vectors, found))) == len(found)
