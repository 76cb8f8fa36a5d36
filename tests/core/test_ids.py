"""IdMap: dense numbers that stay when ids are added, and equal for an integer and its text; stable keys of ids."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextitem.core.ids import FEW_IDS, IdMap, stable_keys

IDS = st.lists(st.integers(-(2**62), 2**62), min_size=1, unique=True) | st.lists(
    st.text(max_size=5), min_size=1, unique=True
)


@given(IDS)
def test_encode_and_decode_are_inverse(ids: list[int] | list[str]) -> None:
    series = pl.Series("id", ids)
    numbers = IdMap(series).encode(series)
    assert numbers.tolist() == list(range(1, len(ids) + 1))
    assert IdMap(series).decode(numbers).to_list() == ids


def test_unknown_ids_are_zero_and_decode_to_null() -> None:
    ids = IdMap(pl.Series(["b", "a"]))
    assert ids.encode(pl.Series(["a", "x", None, "b"])).tolist() == [2, 0, 0, 1]
    assert ids.decode(np.array([0, 2])).to_list() == [None, "a"]


def test_text_of_integers_is_encoded_as_integer_ids() -> None:
    ids = IdMap(pl.Series([30, 2**40]))
    assert ids.encode(pl.Series(["30", str(2**40), "x"])).tolist() == [1, 2, 0]


@given(st.data())
def test_a_lookup_finds_what_encode_finds(data: st.DataObject) -> None:
    ids = data.draw(IDS)
    known_ids = st.sampled_from([str(each) for each in ids])
    texts = data.draw(st.lists(known_ids | st.text(max_size=3) | st.integers().map(str), max_size=5))
    numbers = IdMap(pl.Series(ids))
    assert numbers.lookup(texts).tolist() == numbers.encode(pl.Series(texts, dtype=pl.String)).tolist()


def test_a_lookup_tells_ids_with_equal_keys_apart() -> None:
    ids = IdMap(pl.Series(["a", "b", "c"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nextitem.core.ids.stable_keys", lambda texts: np.ones(len(texts), np.int64))
        assert ids.lookup(["c", "x", "b"]).tolist() == [3, 0, 2]


def test_extend_never_renumbers() -> None:
    longer = IdMap(pl.Series([7, 3])).extend(pl.Series([3, 9, 7, 1, 9]))
    assert longer.external.to_list() == [7, 3, 9, 1]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (pl.Series(["a", "a"]), "distinct"),
        (pl.Series(["a", None]), "null"),
        (pl.Series([1.5]), "strings or integers"),
    ],
)
def test_bad_ids_are_refused(ids: pl.Series, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IdMap(ids)


def fnv_then_mix(text: str) -> int:
    """Return the stable key of a text by the published definitions of FNV-1a and MurmurHash3, in Python integers."""
    key = 0xCBF29CE484222325
    for byte in text.encode():
        key = (key ^ byte) * 0x100000001B3 % 2**64
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53, 1):
        key = (key ^ (key >> 33)) * factor % 2**64
    return (key >> 1) or 1


@given(st.lists(st.text(max_size=20), max_size=20))
def test_a_key_depends_on_the_text_of_its_id_alone(ids: list[str]) -> None:
    keys = [fnv_then_mix(text) for text in ids]
    assert stable_keys(pl.Series(ids, dtype=pl.String)).tolist() == keys
    assert stable_keys(ids).tolist() == keys
    assert stable_keys(ids * (1 + FEW_IDS)).tolist() == keys * (1 + FEW_IDS)


def test_a_number_and_its_text_have_the_same_key() -> None:
    numbers = stable_keys(pl.Series([0, 7, -3, 2**62]))
    assert numbers.tolist() == stable_keys(pl.Series(["0", "7", "-3", str(2**62)])).tolist()
    assert len(set(stable_keys(pl.Series(range(100_000))).tolist())) == 100_000
