"""Tests of every registered tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.planted_content import catalog_of, clusters, learn, purity

from nextitem.core.config import parse
from nextitem.core.registry import TOKENIZERS
from nextitem.core.roles import ClosedForm, Trainable
from nextitem.pipeline.bundle import load_weights, save_weights
from nextitem.tokenizers.collisions import append_items, build_table
from nextitem.tokenizers.quality import QualityConfig, collapse_warning
from nextitem.tokenizers.tokenizer import Tokenizer

NAMES = sorted(TOKENIZERS)
ORDERED = [name for name in NAMES if TOKENIZERS[name].load().coarse_to_fine]
CONTENT, TRUTH = clusters()
# Three levels of eight codes: `tree` has them for 320 items by itself, `fsq` by the values of its dimensions.
SETTINGS: dict[str, dict[str, Any]] = {
    **{name: {"levels": 3, "codebook_size": 8} for name in NAMES},
    "tree": {"codebook_size": 8},
    "fsq": {"levels": 3, "values": (4, 2)},
    "clusters": {"codebook_sizes": (8, 8, 8)},
}
SIZES = {name: {key: value for key, value in table.items() if key != "levels"} for name, table in SETTINGS.items()}
# Maximum error of decoded vectors, as a share of the variance; random codes contain no information.
ERROR = {"random": 1.001, "lsh": 0.6}
UNIQUE = {"tree", "clusters"}  # equal items get different codes


@pytest.fixture(scope="module", params=NAMES)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return learn(request.param, catalog_of(CONTENT), **SETTINGS[request.param])


def _train_again(tokenizer: Tokenizer) -> Tokenizer:
    return learn(tokenizer.name, catalog_of(CONTENT), **SETTINGS[tokenizer.name])


def test_it_is_fitted_either_in_closed_form_or_by_gradient(tokenizer: Tokenizer) -> None:
    assert isinstance(tokenizer, ClosedForm) != isinstance(tokenizer, Trainable)


def test_its_name_is_its_registry_name(tokenizer: Tokenizer) -> None:
    assert TOKENIZERS[tokenizer.name].load() is type(tokenizer)


def test_codes_have_the_promised_shape_and_range(tokenizer: Tokenizer) -> None:
    codes = tokenizer.encode(CONTENT)
    assert codes.shape == (len(CONTENT), 3)
    assert codes.dtype == torch.int64
    assert len(tokenizer.codebook_sizes) == 3
    assert bool((codes >= 0).all())
    assert bool((codes < torch.tensor(tokenizer.codebook_sizes)).all())


def test_codes_of_a_row_do_not_depend_on_other_rows(tokenizer: Tokenizer) -> None:
    together = tokenizer.encode(CONTENT[:40])
    assert torch.equal(torch.cat([tokenizer.encode(row[None]) for row in CONTENT[:40]]), together)


def test_decoding_is_better_than_the_mean_vector(tokenizer: Tokenizer) -> None:
    decoded = tokenizer.decode(tokenizer.encode(CONTENT))
    assert decoded.shape == CONTENT.shape
    error = (decoded - CONTENT).square().sum()
    limit = ERROR.get(tokenizer.name, 0.1)
    assert float(error) < limit * float((CONTENT - CONTENT.mean(0)).square().sum())


def test_codes_of_one_cluster_are_similar_and_random_ones_are_not(tokenizer: Tokenizer) -> None:
    codes, cluster = tokenizer.encode(CONTENT), TRUTH[:, 0] * 4 + TRUTH[:, 1]
    same = cluster[:, None] == cluster
    agreement = (codes[:, None] == codes).double().mean(2)
    others = ~torch.eye(len(codes), dtype=torch.bool)
    within, between = float(agreement[same & others].mean()), float(agreement[~same].mean())
    if tokenizer.name == "random":
        assert within == pytest.approx(between, abs=0.02)
    else:
        assert within > 1.5 * between


@pytest.mark.parametrize("tokenizer", ORDERED, indirect=True)
def test_codes_that_go_from_coarse_to_fine_recover_planted_clusters(tokenizer: Tokenizer) -> None:
    codes = tokenizer.encode(CONTENT)
    shuffled = codes[torch.randperm(len(codes), generator=torch.Generator().manual_seed(0))]
    assert purity(codes[:, :1], TRUTH[:, 0]) > 0.99
    assert purity(codes[:, :2], TRUTH[:, 0] * 4 + TRUTH[:, 1]) > 0.8  # rq-vae: 0.81 to 0.94, depending on the seed
    assert purity(shuffled[:, :1], TRUTH[:, 0]) < 0.5


def test_the_same_seed_results_in_the_same_codes(tokenizer: Tokenizer) -> None:
    assert torch.equal(_train_again(tokenizer).encode(CONTENT), tokenizer.encode(CONTENT))


def test_weights_on_disk_result_in_the_same_codes(tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_weights(tmp_path / "tokenizer.safetensors", tokenizer)
    torch.manual_seed(99)
    config = parse(tokenizer.Config, SETTINGS[tokenizer.name], where="test")
    fresh = type(tokenizer)(config, catalog_of(CONTENT)).eval()
    load_weights(tmp_path / "tokenizer.safetensors", fresh)
    assert fresh.codebook_sizes == tokenizer.codebook_sizes
    assert torch.equal(fresh.encode(CONTENT), tokenizer.encode(CONTENT))
    codes = tokenizer.encode(CONTENT)
    assert torch.equal(fresh.decode(codes), tokenizer.decode(codes))
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in tokenizer.state_dict().items())


def test_items_are_appended_without_changing_old_codes(tokenizer: Tokenizer) -> None:
    table = build_table(tokenizer, catalog_of(CONTENT))
    longer = append_items(tokenizer, table, catalog_of(torch.cat([CONTENT, CONTENT[:7], CONTENT[:7]])))
    assert torch.equal(longer.codes[: len(CONTENT) + 1], table.codes)
    assert longer.version == 2
    if tokenizer.has_item_numbers:
        assert torch.equal(longer.codes[-7:, :2].long(), tokenizer.encode(CONTENT[:7])[:, :2])
    else:
        assert torch.equal(longer.codes[-7:, :3], table.codes[1:8, :3])
    if tokenizer.has_unique_codes:
        assert table.num_levels == 3
        if not tokenizer.has_item_numbers:
            return  # there is no number for a new item: it shares its leaf with an old one
    # Codes are unique as far as the numbers of the last level suffice; beyond that, items share codes.
    prefixes, sizes = torch.unique(longer.codes[1:, :-1], dim=0, return_counts=True)
    for prefix, size in zip(prefixes, sizes, strict=True):
        same = longer.codes[(longer.codes[:, :-1] == prefix).all(1)]
        assert len(torch.unique(same, dim=0)) == min(int(size), longer.codebook_sizes[-1])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_fewer_items_than_codes_have_unique_codes(name: str, count: int) -> None:
    catalog = catalog_of(CONTENT[:count])
    tokenizer = learn(name, catalog, epochs=30, **SIZES[name])
    table = build_table(tokenizer, catalog)
    assert table.is_unique
    assert collapse_warning(table.report or {}, QualityConfig()) is None
    assert torch.isfinite(tokenizer.decode(tokenizer.encode(CONTENT[:count]))).all()


@pytest.mark.parametrize("name", NAMES)
def test_identical_items_collide_and_get_unique_codes(name: str) -> None:
    catalog = catalog_of(CONTENT[:16].repeat_interleave(5, dim=0))
    table = build_table(learn(name, catalog, **SETTINGS[name]), catalog)
    assert table.is_unique
    assert table.report is not None
    if name in UNIQUE:
        assert table.report["collision_rate"] == 0
        return
    grouped = table.codes[1:].reshape(16, 5, 4)
    assert bool((grouped[:, :, :3] == grouped[:, :1, :3]).all())
    assert table.report["collision_rate"] == 1
    assert table.report["avoidable_collision_rate"] < (
        0.7 if name == "vq-vae" else 0.5
    )  # a slice may have no information
    assert collapse_warning(table.report, QualityConfig()) is None


@pytest.mark.parametrize("name", NAMES)
def test_constant_content_results_in_a_warning(name: str) -> None:
    catalog = catalog_of(torch.ones(60, 6) / 6**0.5)
    table = build_table(learn(name, catalog, epochs=5, **SETTINGS[name]), catalog)
    warning = collapse_warning(table.report or {}, QualityConfig())
    assert warning is not None
    assert "collapsed" in warning or "cannot tell items apart" in warning
    assert table.is_unique
