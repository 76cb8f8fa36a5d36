"""Identifier tables: the running index, appended items, and a full additional level."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.planted_content import catalog_of
from torch import Tensor

from nextitem.core.config import Config
from nextitem.core.errors import UserError
from nextitem.core.identifiers import IdentifierTable
from nextitem.tokenizers.collisions import append_items, build_table, running_index
from nextitem.tokenizers.tokenizer import Standardizer, Tokenizer


class ContentTokenizer(Tokenizer):
    """A tokenizer whose codes are the content itself: two small whole numbers."""

    name = "rounding"
    Config = Config
    sizes = (4, 4)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return self.sizes

    def encode(self, content: Tensor) -> Tensor:
        return content.long()

    def decode(self, codes: Tensor) -> Tensor:
        return codes.float()


def _content(*rows: tuple[int, int]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 2)


def _table(content: Tensor, *, extra_level: bool = True) -> tuple[ContentTokenizer, IdentifierTable]:
    catalog = catalog_of(content)
    tokenizer = ContentTokenizer(Config(), catalog)
    return tokenizer, build_table(tokenizer, catalog, extra_level=extra_level)


CONTENT = _content((1, 2), (0, 0), (1, 2), (3, 3), (1, 2))


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=40))
def test_running_index_equals_a_naive_count(rows: list[tuple[int, int]]) -> None:
    expected = [rows[:index].count(row) for index, row in enumerate(rows)]
    assert running_index(torch.tensor(rows, dtype=torch.int64).reshape(-1, 2)).tolist() == expected


def test_the_additional_level_counts_in_item_order() -> None:
    _, table = _table(CONTENT)
    assert table.codes[1:].tolist() == [[1, 2, 0], [0, 0, 0], [1, 2, 1], [3, 3, 0], [1, 2, 2]]
    assert table.codebook_sizes == (4, 4, 4)
    assert table.is_unique
    assert table.tokenizer == "rounding"
    assert table.version == 1
    assert table.report is not None
    assert table.report["largest_group"] == 3


def test_the_additional_level_grows_with_the_largest_group() -> None:
    _, table = _table(_content(*[(1, 1)] * 9, (0, 0)))
    assert table.codebook_sizes == (4, 4, 9)
    assert table.is_unique


def test_without_the_additional_level_items_share_codes() -> None:
    _, table = _table(CONTENT, extra_level=False)
    assert table.num_levels == 2
    assert not table.is_unique


def test_appended_items_get_the_next_free_index() -> None:
    tokenizer, table = _table(CONTENT)
    longer = append_items(tokenizer, table, catalog_of(torch.cat([CONTENT, _content((1, 2), (2, 2), (0, 0))])))
    assert torch.equal(longer.codes[:6], table.codes)
    assert longer.codes[6:].tolist() == [[1, 2, 3], [2, 2, 0], [0, 0, 1]]
    assert (longer.version, longer.is_unique) == (2, True)
    assert longer.codebook_sizes == table.codebook_sizes


def test_appending_step_by_step_equals_appending_at_once() -> None:
    new_content = _content((1, 2), (0, 0), (1, 2), (1, 2), (1, 2), (0, 0))
    tokenizer, table = _table(CONTENT)
    at_once = append_items(tokenizer, table, catalog_of(torch.cat([CONTENT, new_content])))
    for count in range(1, len(new_content) + 1):
        table = append_items(tokenizer, table, catalog_of(torch.cat([CONTENT, new_content[:count]])))
    assert torch.equal(table.codes, at_once.codes)
    assert table.version == 7
    assert table.catalog_fingerprint == at_once.catalog_fingerprint


def test_a_full_additional_level_is_shared_evenly() -> None:
    tokenizer, table = _table(CONTENT)
    longer = append_items(tokenizer, table, catalog_of(torch.cat([CONTENT, _content(*[(1, 2)] * 5)])))
    assert longer.codes[6:, 2].tolist() == [3, 0, 1, 2, 3]
    assert not longer.is_unique


def test_appended_items_without_an_additional_level_share_codes() -> None:
    tokenizer, table = _table(CONTENT, extra_level=False)
    longer = append_items(tokenizer, table, catalog_of(torch.cat([CONTENT, _content((1, 2))])))
    assert longer.codes[-1].tolist() == [1, 2]


def test_appending_nothing_is_a_new_version_of_the_same_codes() -> None:
    tokenizer, table = _table(CONTENT)
    longer = append_items(tokenizer, table, catalog_of(CONTENT))
    assert torch.equal(longer.codes, table.codes)


def test_a_saved_table_loads_unchanged(tmp_path: Path) -> None:
    tokenizer, table = _table(CONTENT)
    longer = append_items(tokenizer, table, catalog_of(torch.cat([CONTENT, CONTENT])))
    longer.save(tmp_path)
    loaded = IdentifierTable.load(tmp_path)
    assert torch.equal(loaded.codes, longer.codes)
    assert (loaded.version, loaded.tokenizer, loaded.report) == (2, "rounding", table.report)


def test_another_catalogue_raises() -> None:
    tokenizer, table = _table(CONTENT)
    with pytest.raises(UserError, match="must come first"):
        append_items(tokenizer, table, catalog_of(CONTENT[:3]))


def test_another_tokenizer_raises() -> None:
    tokenizer, table = _table(CONTENT)
    tokenizer.sizes = (4, 5)
    with pytest.raises(UserError, match="append with the tokenizer that made the table"):
        append_items(tokenizer, table, catalog_of(CONTENT))


def test_standardising_can_be_inverted() -> None:
    vectors = torch.randn((50, 3), generator=torch.Generator().manual_seed(0)) * 5 + 3
    vectors[:, 1] = 0.1
    standard = Standardizer(3)
    standard.fit(vectors)
    out = standard(vectors)
    torch.testing.assert_close(out.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std(0, correction=0), torch.tensor([1.0, 0.0, 1.0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(standard.inverse(out), vectors)


def test_a_catalogue_without_content_raises() -> None:
    catalog = catalog_of(CONTENT)
    without_content = type(catalog)(catalog.ids, catalog.table)
    with pytest.raises(UserError, match="made from content vectors, and this catalogue has none"):
        ContentTokenizer(Config(), without_content)
