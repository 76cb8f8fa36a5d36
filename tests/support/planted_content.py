"""Content with planted clusters, and a plain training loop for tokenizers."""

from __future__ import annotations

import polars as pl
import torch
from torch import Tensor

from nextitem.core.catalog import Catalog
from nextitem.core.config import parse
from nextitem.core.dataset import Dataset, Users
from nextitem.core.ids import IdMap
from nextitem.core.interactions import Interactions
from nextitem.core.registry import entry
from nextitem.core.roles import ClosedForm, Trainable
from nextitem.tokenizers.tokenizer import Tokenizer


def catalog_of(content: Tensor) -> Catalog:
    """Return a catalogue of items i0, i1, ... with these content vectors [N, D]."""
    ids = pl.Series("item_id", [f"i{n}" for n in range(len(content))])
    catalog = Catalog(IdMap(ids), pl.DataFrame({"item_id": ids}))
    return catalog.with_content(torch.cat([torch.zeros(1, content.shape[1]), content]))


def clusters(*, coarse: int = 4, fine: int = 4, each: int = 20, dim: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return content of a two-level tree of clusters, [n, dim], and each row's (coarse, fine) cluster, [n, 2].

    n = coarse * fine * each: `each` rows for every pair of a coarse and a fine cluster.
    """
    generator = torch.Generator().manual_seed(seed)
    top = torch.eye(dim)[:coarse] * 10
    below = torch.randn((coarse, fine, dim), generator=generator) * 1.5
    truth = torch.cartesian_prod(torch.arange(coarse), torch.arange(fine)).repeat(each, 1)
    noise = torch.randn((len(truth), dim), generator=generator) * 0.1
    content = top[truth[:, 0]] + below[truth[:, 0], truth[:, 1]] + noise
    # Rotated, so that no single dimension identifies a cluster.
    return content @ torch.linalg.qr(torch.randn((dim, dim), generator=generator))[0], truth


def purity(codes: Tensor, truth: Tensor) -> float:
    """Return the share of rows that belong to the most frequent true cluster among rows with equal codes [n, M]."""
    groups = torch.unique(codes, dim=0, return_inverse=True)[1]
    num_right = sum(int(torch.bincount(truth[groups == group]).max()) for group in range(int(groups.max()) + 1))
    return num_right / len(truth)


def learn(name: str, catalog: Catalog, *, epochs: int = 60, seed: int = 0, **settings: object) -> Tokenizer:
    """Return the registered tokenizer of that name, trained on the catalogue."""
    kind = entry("tokenizer", name).load()
    torch.manual_seed(seed)
    tokenizer: Tokenizer = kind(parse(kind.Config, settings, where=name), catalog)
    no_events = Interactions(*(torch.empty(0, dtype=torch.int32).numpy(),) * 2, 1, catalog.num_items)
    train = Dataset("planted", no_events, catalog, Users(IdMap(pl.Series(["u"]))))
    if isinstance(tokenizer, ClosedForm):
        tokenizer.fit(train)
        return tokenizer.eval()
    assert isinstance(tokenizer, Trainable)
    examples = tokenizer.examples(train)
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=3e-3, weight_decay=0.0)
    tokenizer.train()
    for epoch in range(epochs):
        for batch in examples.batches(256, epoch=epoch, seed=seed):
            optimizer.zero_grad()
            tokenizer.training_loss(batch).total.backward()
            optimizer.step()
    return tokenizer.eval()
