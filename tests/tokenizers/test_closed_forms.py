"""Guarantees of lsh, random, opq, hierarchical-kmeans, tree and balanced residual-kmeans beyond the contract."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.planted_content import catalog_of, clusters, learn
from torch import Tensor

from nextitem.core.errors import UserError
from nextitem.tokenizers.collisions import append_items, build_table
from nextitem.tokenizers.hierarchical_kmeans import HierarchicalKMeans
from nextitem.tokenizers.lsh import LSH
from nextitem.tokenizers.opq import OPQ

CONTENT, TRUTH = clusters()


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_a_bit_of_lsh_is_the_side_of_a_hyperplane() -> None:
    model = learn("lsh", catalog_of(CONTENT), levels=2, codebook_size=8)
    assert isinstance(model, LSH)
    centred = (CONTENT - CONTENT.mean(0)) / CONTENT.std(0, correction=0)
    for row, codes in zip(centred[:50], model.encode(CONTENT[:50]).tolist(), strict=True):
        bits = [int(float(row.double() @ plane.double()) > 0) for plane in model.hyperplanes.T]
        assert codes == [bits[0] * 4 + bits[1] * 2 + bits[2], bits[3] * 4 + bits[4] * 2 + bits[5]]


def test_bits_of_lsh_agree_as_often_as_the_angle_predicts() -> None:
    """P(same side) = 1 - angle / pi (Charikar 2002)."""
    content = _normal(400, 16)
    model = learn("lsh", catalog_of(content), levels=64, codebook_size=2, standardise=False)
    bits = model.encode(content).double()
    same = 1 - (bits[:, None] - bits).abs().mean(2)
    unit = torch.nn.functional.normalize((content - content.mean(0)).double(), dim=1)
    expected = 1 - (unit @ unit.T).clamp(-1, 1).arccos() / torch.pi
    assert float((same - expected).abs().mean()) < 0.06
    assert abs(float((same - expected).mean())) < 0.01


@pytest.mark.parametrize("name", ["lsh", "tree"])
def test_a_codebook_size_that_is_no_power_of_two_raises(name: str) -> None:
    with pytest.raises((ValueError, UserError), match="power of two"):
        learn(name, catalog_of(CONTENT), codebook_size=6)


def test_random_codes_are_uniform_and_change_with_the_slightest_difference() -> None:
    content = _normal(4096, 4)
    model = learn("random", catalog_of(content), levels=2, codebook_size=16)
    codes = model.encode(content)
    joint = torch.bincount(codes[:, 0] * 16 + codes[:, 1], minlength=256).double()
    assert float(((joint - 16).square() / 16).sum()) < 330  # chi-square, 255 degrees of freedom: p = 0.001
    assert float((model.encode(content * (1 + 1e-6)) == codes).double().mean()) < 0.1
    other = learn("random", catalog_of(content), seed=1, levels=2, codebook_size=16)
    assert float((other.encode(content) == codes).double().mean()) < 0.1


def test_the_rotation_of_opq_is_orthogonal_and_lowers_the_error() -> None:
    """Content has correlated pairs within slices: without the rotation a slice is a line, and codes are wasted."""
    base = _normal(3000, 4)
    content = torch.stack([base[:, 0], base[:, 0], base[:, 1], base[:, 1] * 0.01], dim=1) + 0.01 * _normal(
        3000, 4, seed=1
    )
    model = learn("opq", catalog_of(content), levels=2, codebook_size=32)
    assert isinstance(model, OPQ)
    torch.testing.assert_close(model.rotation @ model.rotation.T, torch.eye(4), atol=1e-4, rtol=0)
    error = float((model.decode(model.encode(content)) - content).square().sum())
    model.rotation = torch.eye(4)
    plain = learn("residual-kmeans", catalog_of(content), levels=1, codebook_size=32)
    assert error < float((plain.decode(plain.encode(content)) - content).square().sum())


def test_a_code_of_hierarchical_kmeans_is_the_nearest_centroid_below_its_prefix() -> None:
    model = learn("hierarchical-kmeans", catalog_of(CONTENT), levels=3, codebook_size=4)
    assert isinstance(model, HierarchicalKMeans)
    vectors = model.standardizer(CONTENT)
    for row, codes in zip(vectors[:40], model.encode(CONTENT[:40]).tolist(), strict=True):
        cluster = 0
        for level, code in enumerate(codes):
            offsets, centroids = model.get_buffer(f"offsets_{level}"), model.get_buffer(f"centroids_{level}")
            children = centroids[int(offsets[cluster]) : int(offsets[cluster + 1])]
            assert code == int((children - row).square().sum(1).argmin())
            cluster = int(offsets[cluster]) + code


def test_enough_levels_of_hierarchical_kmeans_give_all_items_different_codes() -> None:
    content = _normal(60, 5)
    model = learn("hierarchical-kmeans", catalog_of(content), levels=5, codebook_size=4)
    codes = model.encode(content)
    assert len(torch.unique(codes, dim=0)) == 60
    torch.testing.assert_close(model.decode(codes), content, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("balanced_by", ["turns", "auction"])
@pytest.mark.parametrize(("count", "size"), [(60, 8), (64, 8), (61, 7), (9, 8)])
def test_sizes_of_balanced_clusters_differ_by_at_most_one_at_every_level(
    count: int, size: int, balanced_by: str
) -> None:
    catalog = catalog_of(_normal(count, 5))
    settings: dict[str, Any] = {"levels": 3, "codebook_size": size, "balanced": True, "balanced_by": balanced_by}
    model = learn("residual-kmeans", catalog, **settings)
    codes = model.encode_catalog(catalog)
    for level, codebook in enumerate(model.codebook_sizes):
        used = torch.bincount(codes[:, level], minlength=codebook)
        assert int(used.max()) - int(used.min()) <= 1
    entropies = [level["entropy_share"] for level in (build_table(model, catalog).report or {})["levels"]]
    assert min(entropies) > 0.97


def test_codes_of_balanced_clusters_do_not_depend_on_the_order_of_the_items() -> None:
    content, order = _normal(61, 5), torch.randperm(61, generator=torch.Generator().manual_seed(1))
    codes = []
    for rows in (content, content[order]):
        catalog = catalog_of(rows)
        codes.append(
            learn("residual-kmeans", catalog, levels=2, codebook_size=7, balanced=True).encode_catalog(catalog)
        )
    assert torch.equal(codes[0][order], codes[1])


def test_in_an_auction_no_cluster_takes_what_remains() -> None:
    content = _normal(600, 5)
    catalog, spreads = catalog_of(content), {}
    for balanced_by in ("turns", "auction"):
        settings: dict[str, Any] = {"levels": 1, "codebook_size": 20, "balanced": True, "balanced_by": balanced_by}
        model = learn("residual-kmeans", catalog, **settings)
        codes = model.encode_catalog(catalog)
        distances = (content - model.decode(codes)).square().sum(1)
        spreads[balanced_by] = torch.zeros(20).index_add_(0, codes[:, 0], distances) / 30
    assert spreads["turns"][-3:].mean() > 2 * spreads["turns"][:10].mean()  # the last ones
    assert spreads["auction"].max() < 0.7 * spreads["turns"].max()
    assert spreads["auction"].mean() < 0.9 * spreads["turns"].mean()


def test_balanced_clusters_recover_planted_clusters() -> None:
    catalog = catalog_of(CONTENT)
    model = learn("residual-kmeans", catalog, levels=1, codebook_size=16, balanced=True)
    pairs = torch.unique(
        torch.stack([model.encode_catalog(catalog)[:, 0], TRUTH[:, 0] * 4 + TRUTH[:, 1]], dim=1), dim=0
    )
    # Clusters are filled greedily, so the last ones may take a few items of others; most clusters are pure.
    assert len(pairs) < 32


def test_a_tree_gives_each_item_its_own_leaf_and_new_items_near_leaves() -> None:
    catalog = catalog_of(CONTENT)
    model = learn("tree", catalog)
    table = build_table(model, catalog)
    assert table.report is not None
    assert model.codebook_sizes == (2,) * 9  # 320 items
    assert table.report["collision_rate"] == 0
    near = CONTENT[:5] + 1e-3
    longer = append_items(model, table, catalog_of(torch.cat([CONTENT, near])))
    assert float((longer.codes[-5:, :6] == table.codes[1:6, :6]).double().mean()) > 0.9


def test_the_last_code_of_a_tree_covers_the_remaining_depth() -> None:
    model = learn("tree", catalog_of(CONTENT), codebook_size=16)
    assert model.codebook_sizes == (16, 16, 2)
