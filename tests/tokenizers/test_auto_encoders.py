"""Auto-encoders vq-vae and fsq, and the options of learned codebooks."""

from __future__ import annotations

import pytest
import torch
from support.planted_content import catalog_of, clusters, learn

from nextitem.nn.quantisation.finite_scalars import FiniteScalars
from nextitem.nn.quantisation.learnt_codebooks import LearntCodebooks
from nextitem.nn.quantisation.quantizers import balanced_plan, product_quantise
from nextitem.tokenizers.fsq import FSQ, FSQConfig

CONTENT, TRUTH = clusters()


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_product_quantisation_takes_the_nearest_code_of_each_slice() -> None:
    vectors, books = _normal(30, 6), [_normal(5, 3, seed=1), _normal(4, 3, seed=2)]
    result = product_quantise(vectors, books)
    for row, codes in zip(vectors, result.codes.tolist(), strict=True):
        assert codes == [
            int((books[0] - row[:3]).square().sum(1).argmin()),
            int((books[1] - row[3:]).square().sum(1).argmin()),
        ]
    torch.testing.assert_close(
        result.quantised, torch.cat([books[0][result.codes[:, 0]], books[1][result.codes[:, 1]]], dim=1)
    )


def test_moving_averages_follow_the_equations_of_the_paper() -> None:
    """N <- d N + (1 - d) n; m <- d m + (1 - d) sum; e = m / N (arXiv 1711.00937, appendix A.1)."""
    books = LearntCodebooks((1, 3, 2), split="residual", update="ema", decay=0.9, revive_every=10**6).train()
    books(_normal(50, 2))  # starts by k-means
    table, counts = books.tables[0].clone(), books.counts[0].clone()
    rows = _normal(20, 2, seed=1)
    codes = books(rows).codes[:, 0]
    for code in range(3):
        members = rows[codes == code]
        count = 0.9 * counts[code] + 0.1 * len(members)
        total = 0.9 * counts[code] * table[code] + 0.1 * members.sum(0)
        torch.testing.assert_close(books.counts[0, code], count)
        torch.testing.assert_close(books.tables[0, code], total / count)


def test_moving_averages_have_no_gradient_and_no_codebook_loss() -> None:
    model = learn("rq-vae", catalog_of(CONTENT), epochs=1, codebook_size=8, codebook_update="ema")
    assert not any("tables" in name for name, _ in model.named_parameters())
    latent = _normal(40, 2).requires_grad_()
    quantised = LearntCodebooks((2, 4, 2), split="residual", update="ema").train()(latent)
    assert float(quantised.codebook) == 0
    assert quantised.commitment.requires_grad


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_both_updates_of_codebooks_reach_a_low_error(update: str) -> None:
    model = learn("rq-vae", catalog_of(CONTENT), codebook_size=8, codebook_update=update)
    error = (model.decode(model.encode(CONTENT)) - CONTENT).square().sum()
    assert float(error) < 0.06 * float((CONTENT - CONTENT.mean(0)).square().sum())


def test_a_balanced_plan_gives_every_code_the_same_share_and_prefers_near_codes() -> None:
    vectors, book = _normal(60, 2), _normal(6, 2, seed=1)
    plan = balanced_plan(vectors, book, 0.05)
    torch.testing.assert_close(plan.sum(0), torch.full((6,), 1 / 6))
    torch.testing.assert_close(plan.sum(1), torch.full((60,), 1 / 60), atol=2e-3, rtol=0)
    balanced = torch.bincount(plan.argmax(1), minlength=6)
    nearest = torch.bincount(torch.cdist(vectors, book).argmin(1), minlength=6)
    assert int(balanced.max() - balanced.min()) < int(nearest.max() - nearest.min())
    # If the nearest codes already have equal shares, the plan selects them.
    apart = torch.tensor([[0.0, 0.0], [9.0, 9.0]])
    rows = apart.repeat(5, 1)
    assert balanced_plan(rows, apart, 0.05).argmax(1).tolist() == [0, 1] * 5


def test_balanced_training_uses_codes_more_evenly() -> None:
    skewed = torch.cat([_normal(900, 4) * 0.05, _normal(100, 4, seed=1) * 3])
    plain, even = (
        learn("rq-vae", catalog_of(skewed), epochs=20, levels=1, codebook_size=16, sinkhorn=value)
        for value in (None, 0.02)
    )
    counts = [torch.bincount(model.encode(skewed)[:, 0], minlength=16).double().std() for model in (plain, even)]
    assert float(counts[1]) < float(counts[0])


def test_levels_that_do_not_divide_the_latent_width_raise() -> None:
    with pytest.raises(ValueError, match="must divide latent_dim"):
        LearntCodebooks((3, 4, 8), split="product")


@pytest.mark.parametrize("values", [(4, 3), (8, 5, 5), (2,)])
def test_codes_of_finite_scalars_are_numbers_with_values_as_digits(values: tuple[int, ...]) -> None:
    scalars = FiniteScalars(2, values)
    size = scalars.codebook_sizes[0]
    codes = torch.cartesian_prod(torch.arange(size), torch.arange(size))
    latent = scalars.decode(codes)
    assert latent.shape == (size**2, 2 * len(values))
    assert len(torch.unique(latent, dim=0)) == size**2
    assert float(latent.abs().max()) <= 1
    # Very large and very small values have the last and the first code.
    far = torch.full((1, 2 * len(values)), 50.0)
    assert scalars.encode(far).tolist() == [[size - 1] * 2]
    assert scalars.encode(-far).tolist() == [[0] * 2]
    steps = torch.linspace(-6, 6, 400)[:, None].expand(-1, 2 * len(values))
    digits = scalars.decode(scalars.encode(steps))
    assert bool((digits.diff(dim=0) >= 0).all())
    assert [len(torch.unique(column)) for column in digits.T[: len(values)]] == list(values)


def test_rounding_passes_the_gradient_of_the_unrounded_value() -> None:
    scalars = FiniteScalars(1, (5,))
    latent = torch.linspace(-2, 2, 9)[:, None].requires_grad_()
    scalars(latent).latent.sum().backward()
    slope = (1 - torch.tanh(latent.detach()) ** 2) * 4 * 1.001 / 2 / 2  # d half tanh(z) / dz, over half = 2
    torch.testing.assert_close(latent.grad, slope, atol=1e-5, rtol=1e-4)


def test_training_fsq_lowers_its_reconstruction_error() -> None:
    early, late = (learn("fsq", catalog_of(CONTENT), epochs=epochs, values=(4, 4)) for epochs in (1, 60))
    errors = [float((model.decode(model.encode(CONTENT)) - CONTENT).square().mean()) for model in (early, late)]
    assert errors[1] < errors[0] / 5


def test_a_dimension_of_one_value_raises() -> None:
    with pytest.raises(ValueError, match="at least two"):
        FSQ(FSQConfig(values=(4, 1)), catalog_of(CONTENT))
