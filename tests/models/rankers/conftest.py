"""Fixtures of rankers: the impressions of a small simulated shop, requests, and rankers with random weights."""

from __future__ import annotations

import pytest
import torch
from support.rankers import BuildRanker, RankerT

from nextitem.core.batch import SequenceBatch
from nextitem.core.config import parse
from nextitem.core.dataset import Split
from nextitem.data.protocols import make_split
from nextitem.data.readers import load_dataset
from nextitem.data.shop.shop import generate_shop
from nextitem.models.rankers.config import RankingConfig


@pytest.fixture(scope="session")
def impressions(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """Return a split of the impressions of a simulated shop with 150 items and 400 customers."""
    folder = tmp_path_factory.mktemp("shop")
    generate_shop(3, num_items=150, num_users=400).write(folder)
    return make_split(load_dataset(folder), "impressions")


@pytest.fixture(scope="session")
def requests(impressions: Split) -> SequenceBatch:
    """Return twenty test requests, one of them with an empty history."""
    test = impressions.test
    longest = test.items.lengths.argsort(descending=True)[:19]
    return test.select(torch.cat([longest, test.items.lengths.argsort()[:1]]))


@pytest.fixture(scope="session")
def ranker(impressions: Split) -> BuildRanker:
    """Return the function `ranker(DIN, **settings)`, which builds a model with fitted fields and random weights."""

    def build(kind: type[RankerT], **settings: object) -> RankerT:
        torch.manual_seed(0)
        config = parse(kind.Config, settings, where=kind.__name__)
        assert isinstance(config, RankingConfig)
        model = kind(config, impressions.train.catalog)
        model.examples(impressions.train)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape))
        return model.eval()

    return build
