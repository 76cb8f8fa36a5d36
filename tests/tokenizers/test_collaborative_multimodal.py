"""The collaborative multimodal tokenizer: its pairs, its losses, a second modality, and what training changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from support.planted_content import catalog_of, purity
from torch import Tensor
from torch.nn import functional as F

from nextitem.core.catalog import Catalog
from nextitem.core.dataset import Dataset
from nextitem.core.errors import UserError
from nextitem.core.interactions import Interactions
from nextitem.data.examples.item_pairs import ItemPairBatch, similar_recent_pairs
from nextitem.data.readers import dataset_from_frames
from nextitem.data.text import split_words
from nextitem.pipeline.recipe import resolve_recipe
from nextitem.pipeline.tokenize import append_new_items, make_tokenizer, tokenize, with_content
from nextitem.tokenizers.collaborative_multimodal import (
    CollaborativeMultimodal,
    CollaborativeMultimodalConfig,
    collaborative_pairs,
    hashed_words,
)
from nextitem.tokenizers.residual_kmeans import ResidualKMeans, ResidualKMeansConfig

SMALL: dict[str, Any] = {"levels": 2, "codebook_size": 4, "width": 16, "queries": 2, "layers": 1, "caption_words": 64}
KINDS = ["tent canvas", "kettle steel", "violin bow", "rope knot"]


def frames(num_items: int = 48) -> dict[str, pl.DataFrame]:
    """Return items of four kinds of text and two kinds of image; users take items of one image kind."""
    rng = np.random.default_rng(0)
    image = np.arange(num_items) // 4 % 2
    vectors = np.eye(3)[image] * 4 + rng.normal(size=(num_items, 3)) * 0.3
    items = pl.DataFrame(
        {
            "item_id": [f"i{n:02d}" for n in range(num_items)],
            "title": [f"{KINDS[n % 4]} model{n}" for n in range(num_items)],
            "content_image": vectors.tolist(),
        }
    )
    rows = [
        {"user_id": user, "item_id": f"i{item:02d}", "timestamp": 1_700_000_000 + 3600 * place}
        for user in range(120)
        for place, item in enumerate(rng.permutation(np.flatnonzero(image == user % 2))[:7])
    ]
    return {"interactions": pl.DataFrame(rows), "items": items}


def dataset(num_items: int = 48) -> Dataset:
    return dataset_from_frames(frames(num_items), {"items": {"text": "{title}"}}, name="images")


def recipe_of(**settings: Any) -> Any:
    table = {
        "data": {"path": "-"},
        "model": {},
        "content": {"dim": 16},
        "tokenizer": {"name": "collaborative-multimodal", **SMALL, **settings},
        "tokenizer_training": {"max_epochs": 3, "batch_size": 64, "learning_rate": 3e-3},
    }
    return resolve_recipe([("test", table)], kind="tokenizer")


def trained(data: Dataset, **settings: Any) -> tuple[CollaborativeMultimodal, Catalog]:
    recipe = recipe_of(**settings)
    train = with_content(data, recipe, progress=False)
    tokenizer = make_tokenizer(train, recipe, out=None, progress=False)
    assert isinstance(tokenizer, CollaborativeMultimodal)
    return tokenizer, train.catalog


def plain_pairs(sequences: list[list[int]], vectors: Tensor, recent: int) -> set[tuple[int, int, int]]:
    pairs = set()
    for user, row in enumerate(sequences):
        for place, item in enumerate(row):
            earlier = [other for other in row[max(0, place - recent) : place][::-1] if other != item]
            if earlier:
                cosines = [float(F.cosine_similarity(vectors[item], vectors[other], dim=0)) for other in earlier]
                pairs.add((user, earlier[int(np.argmax(cosines))], item))
    return pairs


@pytest.mark.parametrize("recent", [0, 1, 3, 50])
def test_a_partner_is_the_most_similar_recent_item(recent: int) -> None:
    rng = np.random.default_rng(0)
    sequences = [rng.integers(1, 11, length).tolist() for length in (1, 8, 2, 12)]
    vectors = torch.randn(11, 3, generator=torch.Generator().manual_seed(0))
    users = np.repeat(np.arange(1, 5), [len(row) for row in sequences]).astype(np.int32)
    log = Interactions(users, np.concatenate(sequences).astype(np.int32), 4, 10)
    left, right = similar_recent_pairs(log, vectors, recent=recent)
    expected = sorted((first, second) for _, first, second in plain_pairs(sequences, vectors, recent))
    assert sorted(set(zip(left.tolist(), right.tolist(), strict=True))) == sorted(set(expected))


def test_items_with_large_swings_are_pairs_too() -> None:
    data, config = dataset(), CollaborativeMultimodalConfig(recent=0, swing_neighbours=3)
    left, right = collaborative_pairs(data, torch.randn(48, 4), config)
    assert len(left) == 3 * len(left.unique())
    assert bool(((left - 1) // 4 % 2 == (right - 1) // 4 % 2).all())  # users stay within a kind of image
    both, _ = collaborative_pairs(data, torch.randn(48, 4), CollaborativeMultimodalConfig(swing_neighbours=3))
    assert len(both) > len(left)


def test_the_caption_loss_is_the_likelihood_of_the_words_of_both_titles() -> None:
    data = with_content(dataset(), recipe_of(), progress=False)
    torch.manual_seed(0)
    tokenizer = CollaborativeMultimodal(CollaborativeMultimodalConfig(**SMALL, caption_weight=0.7), data.catalog)
    part = tokenizer.trained_part
    pairs = part.examples(data)
    batch = ItemPairBatch(pairs.left[:5], pairs.right[:5])
    loss = part.training_loss(batch)
    assert part.words is not None
    log_probs, terms = part.words(part(part.content)).log_softmax(1), []
    titles = hashed_words(data.catalog.text.to_list(), 64).to_lists()  # type: ignore[union-attr]
    for item in [*batch.left.tolist(), *batch.right.tolist()]:
        assert len(titles[item]) == 3
        terms += [log_probs[item - 1, word] for word in titles[item]]
    torch.testing.assert_close(loss.named["caption"], -torch.stack(terms).mean().detach())
    torch.testing.assert_close(loss.total.detach(), loss.named["contrastive"] + 0.7 * loss.named["caption"])


def test_words_are_hashed_alike_in_every_catalogue() -> None:
    rows = hashed_words(["Tent, tent canvas", None, "帐篷"], 1000).to_lists()
    assert rows[0] == rows[2] == []
    assert rows[1] == hashed_words(["other", "canvas tent"], 1000).to_lists()[2]
    assert len(rows[1]) == 2
    assert len(rows[3]) == len(split_words("帐篷"))


def test_without_events_codes_are_those_of_residual_kmeans() -> None:
    content = torch.randn(60, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5, 0.1, 2, 1])
    catalog = catalog_of(content)
    torch.manual_seed(0)
    tokenizer = CollaborativeMultimodal(CollaborativeMultimodalConfig(**SMALL), catalog)
    plain = ResidualKMeans(ResidualKMeansConfig(levels=2, codebook_size=4), catalog)
    plain.seed.copy_(tokenizer.quantizer.seed)
    train = dataset().with_catalog(catalog)
    tokenizer.fit(train)
    plain.fit(train)
    assert torch.equal(tokenizer.encode(content), plain.encode(content))
    assert torch.equal(tokenizer.encode_catalog(catalog), plain.encode_catalog(catalog))
    torch.testing.assert_close(
        tokenizer.decode(plain.encode(content)), plain.decode(plain.encode(content)), atol=1e-4, rtol=1e-4
    )


def test_vectors_of_images_decide_codes_that_text_cannot() -> None:
    """Texts have four kinds that say nothing of the image; users take items of one kind of image."""
    image = torch.arange(48) // 4 % 2
    untrained = {"recent": 0, "swing_neighbours": 0, "levels": 1, "codebook_size": 8}
    by_text, catalog = trained(dataset(), modalities=[], **untrained)
    by_both, catalog_of_both = trained(dataset(), **untrained)
    assert by_both.content_dim == by_text.content_dim + 3
    assert by_both.transformer.widths == (by_text.content_dim, 3)
    text_codes, both_codes = by_text.encode_catalog(catalog), by_both.encode_catalog(catalog_of_both)
    assert purity(both_codes, image) > 0.95
    assert purity(text_codes, image) < 0.75
    kinds = torch.arange(48) % 4
    assert purity(both_codes, kinds) > 0.5


def test_training_moves_items_that_users_take_together_to_the_same_codes() -> None:
    """Of text alone, only events tell the kinds of images apart."""
    image, settings = torch.arange(48) // 4 % 2, {"modalities": [], "levels": 1, "codebook_size": 2}
    without, catalog = trained(dataset(), recent=0, swing_neighbours=0, **settings)
    learned, _ = trained(dataset(), **settings)
    before, after = (purity(part.encode_catalog(catalog), image) for part in (without, learned))
    assert after > before + 0.2


def test_a_column_of_the_content_itself_is_read_once() -> None:
    recipe = recipe_of()
    recipe = recipe.model_copy(update={"content": recipe.content.model_copy(update={"encoder": "content_image"})})
    train = with_content(dataset(), recipe, progress=False)
    assert CollaborativeMultimodal(CollaborativeMultimodalConfig(**SMALL), train.catalog).content_dim == 3


def test_modalities_have_the_same_variance_whatever_their_widths() -> None:
    tokenizer, catalog = trained(dataset(), recent=0, swing_neighbours=0)
    moved = tokenizer.transformer(tokenizer.item_content(catalog)).detach()
    text, images = moved.split(tokenizer.transformer.widths, dim=1)
    assert float(text.var(0, correction=0).sum()) == pytest.approx(float(images.var(0, correction=0).sum()), rel=1e-3)


def test_unknown_columns_and_wrong_ones_are_refused() -> None:
    train = with_content(dataset(), recipe_of(), progress=False)
    for name, message in (("content_sound", "no column 'content_sound'"), ("title", "must contain lists of numbers")):
        with pytest.raises(UserError, match=message):
            CollaborativeMultimodal(CollaborativeMultimodalConfig(modalities=(name,)), train.catalog)


def test_new_items_get_codes_by_their_content(tmp_path: Path) -> None:
    settings = {"tokenizer": SMALL, "content": {"dim": 16}, "tokenizer_training": {"max_epochs": 1, "batch_size": 64}}
    data = dataset()
    table = tokenize("collaborative-multimodal", data, out=tmp_path / "ids", settings=settings, progress=False)
    assert table.report is not None
    assert {"reconstruction_error", "transitions_sharing_prefix", "levels"} <= set(table.report)
    assert table.report["reconstruction_error"] < 1
    lines: list[str] = []
    later = append_new_items(
        dataset(56).catalog, tmp_path / "ids", tokenizer_name="collaborative-multimodal", log=lines.append
    )
    assert later.num_items == 56
    assert torch.equal(later.codes[:49], table.codes)
    again = tokenize("collaborative-multimodal", data, out=tmp_path / "again", settings=settings, progress=False)
    assert torch.equal(again.codes, table.codes)
