"""The quality report, compared with figures computed by hand, and the collapse warning."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from support.planted_content import catalog_of
from torch import Tensor

from nextitem.core.config import Config
from nextitem.tokenizers.quality import QualityConfig, collapse_warning, quality_report
from nextitem.tokenizers.tokenizer import Tokenizer


class FirstCodeTokenizer(Tokenizer):
    """A tokenizer that decodes to the first code on every dimension; the test provides the codes."""

    name = "fixed"
    Config = Config
    sizes: tuple[int, ...] = (4, 2)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return self.sizes

    def encode(self, content: Tensor) -> Tensor:
        raise AssertionError("the report must use the codes that are passed to it")

    def decode(self, codes: Tensor) -> Tensor:
        return codes[:, :1].float().repeat(1, self.content_dim)


def _report(content: Tensor, codes: list[list[int]], sizes: tuple[int, ...]) -> dict[str, Any]:
    catalog = catalog_of(content)
    tokenizer = FirstCodeTokenizer(Config(), catalog)
    tokenizer.sizes = sizes
    return quality_report(tokenizer, catalog, torch.tensor(codes))


def test_figures_equal_those_computed_by_hand() -> None:
    content = torch.tensor([[1.0, 1], [1.0, 1], [0.0, 2], [3.0, 0], [2.0, 0]])
    codes = [[1, 0], [1, 0], [1, 0], [3, 1], [3, 0]]
    report = _report(content, codes, (4, 2))
    assert report["items"] == 5
    assert report["distinct_contents"] == 4
    assert report["collision_rate"] == pytest.approx(3 / 5)
    assert report["avoidable_collision_rate"] == pytest.approx(2 / 4)
    assert report["largest_group"] == 3
    first, second = report["levels"]
    bits = -(0.6 * math.log2(0.6) + 0.4 * math.log2(0.4))
    assert first == {
        "codebook_size": 4,
        "used": 2,
        "usage": 0.5,
        "entropy_bits": pytest.approx(bits),
        "entropy_share": pytest.approx(bits / 2),
        # counts 0, 0, 2, 3: (2 * (3 * 2 + 4 * 3) / (4 * 5)) - 5 / 4
        "gini": pytest.approx(0.55),
    }
    assert second["used"] == 2
    # Errors to (1,1) (1,1) (1,1) (3,3) (3,3): 0 + 0 + 2 + 9 + 10; spread about the mean (1.4, 0.8).
    assert report["reconstruction_error"] == pytest.approx(21 / (5.2 + 2.8))
    assert report["chance_sharing_prefix"] == pytest.approx([(6 + 2) / 20, 6 / 20])
    # All four others are neighbours: items 1-3 share with two, items 4-5 with one (first code), then none.
    assert report["neighbours_sharing_prefix"] == pytest.approx([(3 * 0.5 + 2 * 0.25) / 5, 3 * 0.5 / 5])
    json.dumps(report)


def test_neighbours_are_the_ten_nearest_by_cosine() -> None:
    generator = torch.Generator().manual_seed(0)
    content = torch.randn((60, 5), generator=generator)
    codes = torch.randint(3, (60, 2), generator=generator)
    unit = content / content.norm(dim=1, keepdim=True)
    shares = []
    for item in range(60):
        order = sorted(set(range(60)) - {item}, key=lambda other: -float(unit[item] @ unit[other]))[:10]
        shares.append([sum(bool((codes[item, :d] == codes[o, :d]).all()) for o in order) / 10 for d in (1, 2)])
    expected = torch.tensor(shares).mean(0).tolist()
    assert _report(content, codes.tolist(), (3, 3))["neighbours_sharing_prefix"] == pytest.approx(expected)


def test_neighbours_of_large_catalogues_are_estimated_from_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    content = torch.randn((500, 4), generator=torch.Generator().manual_seed(0))
    codes = [[int(row[0] > 0), 0] for row in content]
    whole = _report(content, codes, (2, 1))["neighbours_sharing_prefix"][0]
    monkeypatch.setattr("nextitem.tokenizers.quality._SAMPLE", 200)
    assert _report(content, codes, (2, 1))["neighbours_sharing_prefix"][0] == pytest.approx(whole, abs=0.05)


def test_one_item_has_no_neighbours_and_no_warning() -> None:
    report = _report(torch.ones(1, 3), [[0, 0]], (1, 1))
    assert report["neighbours_sharing_prefix"] is None
    assert report["collision_rate"] == 0
    assert collapse_warning(report, QualityConfig()) is None


CONTENT = torch.randn((100, 4), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("codes", "words"),
    [
        ([[0, n % 20] for n in range(100)], "use 1 of 20 first codes"),
        ([[n % 3, n % 20] for n in range(100)], "use 3 of 20 first codes"),
        ([[n % 20 if n < 18 else 0, n % 7] for n in range(100)], "of the largest entropy"),
        ([[n % 20, 0] for n in range(100)], "100% of 100 items with different content"),
    ],
)
def test_a_collapse_is_described(codes: list[list[int]], words: str) -> None:
    warning = collapse_warning(_report(CONTENT, codes, (20, 20)), QualityConfig())
    assert warning is not None
    assert words in warning


def test_good_codes_give_no_warning_and_thresholds_are_settings() -> None:
    report = _report(CONTENT, [[n % 20, n // 20] for n in range(100)], (20, 20))
    assert collapse_warning(report, QualityConfig()) is None
    assert report["collision_rate"] == 0
    collided = _report(CONTENT, [[n % 20, n // 40] for n in range(100)], (20, 20))
    assert collapse_warning(collided, QualityConfig()) is None
    assert collapse_warning(collided, QualityConfig(max_collision_rate=0.5)) is not None


def test_content_that_cannot_tell_items_apart_is_described() -> None:
    content = torch.eye(3).repeat(70, 1)
    report = _report(content, [[n % 3, 0] for n in range(210)], (20, 20))
    assert "210 items have 3 different contents" in str(collapse_warning(report, QualityConfig()))
    assert collapse_warning(report, QualityConfig(min_distinct_share=0.01)) is None


def test_collisions_of_near_duplicates_give_no_warning() -> None:
    """Codes that contain nearly all information of the content have not collapsed."""
    content = torch.arange(100)[:, None] % 10 + torch.randn((100, 3), generator=torch.Generator().manual_seed(0)) / 10
    report = _report(content, [[n % 10, 0] for n in range(100)], (10, 10))
    assert report["avoidable_collision_rate"] == 1
    assert report["reconstruction_error"] < 0.01
    assert collapse_warning(report, QualityConfig()) is None
    assert collapse_warning(report, QualityConfig(excused_error=0.0)) is not None


def test_equal_codes_of_equal_content_give_no_warning() -> None:
    content = CONTENT[:10].repeat(10, 1)
    report = _report(content, [[n % 10, 0] for n in range(100)], (20, 20))
    assert report["collision_rate"] == 1
    assert report["avoidable_collision_rate"] == 0
    assert report["levels"][0]["usage"] == 1
    assert collapse_warning(report, QualityConfig()) is None
