"""Residual k-means: each level clusters the residuals of the level before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.planted_content import catalog_of, clusters, learn

from nextitem.data.readers import load_dataset
from nextitem.data.text import ContentConfig, content_vectors
from nextitem.nn.quantisation.quantizers import kmeans, nearest_code
from nextitem.tokenizers.collisions import build_table
from nextitem.tokenizers.quality import QualityConfig, collapse_warning
from nextitem.tokenizers.residual_kmeans import ResidualKMeans

CONTENT, _ = clusters(each=30)


def test_it_equals_kmeans_on_residuals_level_by_level() -> None:
    tokenizer = learn("residual-kmeans", catalog_of(CONTENT), codebook_size=6, standardise=False)
    residual = CONTENT
    for level, codes in enumerate(tokenizer.encode(CONTENT).T):
        book = kmeans(residual, 6, seed=int(tokenizer.seed) + level)
        assert torch.equal(nearest_code(residual, book), codes)
        residual = residual - book[codes]
    torch.testing.assert_close(tokenizer.decode(tokenizer.encode(CONTENT)), CONTENT - residual)


def test_more_levels_lower_the_reconstruction_error() -> None:
    errors = []
    for levels in (1, 2, 3, 4):
        tokenizer = learn("residual-kmeans", catalog_of(CONTENT), codebook_size=8, levels=levels)
        errors.append(float((tokenizer.decode(tokenizer.encode(CONTENT)) - CONTENT).square().sum()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 2


def test_every_code_is_used() -> None:
    tokenizer = learn("residual-kmeans", catalog_of(CONTENT), codebook_size=64)
    for codes, size in zip(tokenizer.encode(CONTENT).T, tokenizer.codebook_sizes, strict=True):
        assert len(torch.unique(codes)) == size


def test_another_seed_gives_other_codes() -> None:
    first, second = (learn("residual-kmeans", catalog_of(CONTENT), seed=seed).encode(CONTENT) for seed in (0, 1))
    assert not torch.equal(first, second)


def test_standardising_gives_a_dimension_in_small_units_the_same_weight() -> None:
    noise = torch.randn((40, 2), generator=torch.Generator().manual_seed(0)) * 0.05
    content = torch.stack([torch.arange(40) % 2, torch.arange(40) // 20], dim=1) + noise
    content[:, 0] *= 0.001
    standardised, unscaled = (
        learn("residual-kmeans", catalog_of(content), levels=1, codebook_size=4, standardise=standardise).encode(
            content
        )[:, 0]
        for standardise in (True, False)
    )
    even = torch.arange(40) % 2 == 0
    assert not set(standardised[even].tolist()) & set(standardised[~even].tolist())
    assert set(unscaled[even].tolist()) & set(unscaled[~even].tolist())


def test_codebooks_have_no_more_codes_than_the_data_needs() -> None:
    tokenizer = learn("residual-kmeans", catalog_of(CONTENT[:5]), codebook_size=8)
    assert isinstance(tokenizer, ResidualKMeans)
    assert tokenizer.codebook_sizes[0] == 5
    assert tokenizer.codebook_sizes[1:] == (1, 1)


@pytest.mark.slow
def test_codes_of_beauty_have_not_collapsed_and_preserve_neighbours(real_data: Path) -> None:
    catalog = load_dataset(real_data / "amazon14-beauty").catalog
    catalog = catalog.with_content(content_vectors(catalog, ContentConfig()))
    table = build_table(learn("residual-kmeans", catalog, codebook_size=256), catalog)
    report = table.report or {}
    assert table.is_unique
    assert table.codebook_sizes == (256, 256, 256, 256)
    assert collapse_warning(report, QualityConfig()) is None
    assert report["collision_rate"] < 0.35
    assert report["reconstruction_error"] < 0.15
    assert report["neighbours_sharing_prefix"][0] > 100 * report["chance_sharing_prefix"][0]
