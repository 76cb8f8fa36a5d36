"""A small shop whose impressions rankers learn from."""

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
def shown(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """Impressions of a shop of 150 items and 400 customers."""
    folder = tmp_path_factory.mktemp("shop")
    generate_shop(3, num_items=150, num_users=400).write(folder)
    return make_split(load_dataset(folder), "impressions")


@pytest.fixture(scope="session")
def requests(shown: Split) -> SequenceBatch:
    """Twenty test requests, one of them without a history."""
    test = shown.test
    longest = test.items.lengths.argsort(descending=True)[:19]
    return test.select(torch.cat([longest, test.items.lengths.argsort()[:1]]))


@pytest.fixture(scope="session")
def ranker(shown: Split) -> BuildRanker:
    """`ranker(DIN, **settings)`: the model, its fields fitted, its weights drawn, ready to answer."""

    def build(kind: type[RankerT], **settings: object) -> RankerT:
        torch.manual_seed(0)
        config = parse(kind.Config, settings, where=kind.__name__)
        assert isinstance(config, RankingConfig)
        model = kind(config, shown.train.catalog)
        model.examples(shown.train)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape))
        return model.eval()

    return build
