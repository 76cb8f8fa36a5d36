"""Tests of new items without training: `with_catalog` of models with each kind of table, and training on afterwards."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import polars as pl
import pytest
import torch

from nextitem.core.components import build_component
from nextitem.core.dataset import Dataset
from nextitem.core.errors import UserError
from nextitem.core.ids import IdMap
from nextitem.core.jagged import Jagged
from nextitem.core.recommender import Recommender
from nextitem.core.registry import MODELS
from nextitem.core.roles import Extendable
from nextitem.data.protocols import make_split
from nextitem.nn.tables.growing import GrowingTable
from nextitem.testing.known_answers import cycle
from nextitem.training.config import TrainingConfig
from nextitem.training.fit import fit

GROWING = {"kind": "growing", "block_rows": 16}
# Fields that do not compare with the catalogue as a whole: shares shrink towards its shares, which new items change.
FIELDS = ["item.id", "history.id", "cross.id", "cross.id.since", "cross.id.last"]
SETTINGS: dict[str, dict[str, Any]] = {
    "sasrec": {"width": 16, "dropout": 0.0},
    "hstu": {"width": 16, "heads": 1, "head_width": 16},
    "sr-gnn": {"width": 16},
    "two-tower": {"width": 16, "field_width": 8, "hidden": [16]},
    "deepfm": {"width": 4, "hidden": [16], "fields": FIELDS},
    "din": {"width": 4, "hidden": [16], "unit": [8, 4], "fields": FIELDS},
    "lr": {"fields": FIELDS},
}


def trained(name: str, table: object, dataset: Dataset) -> Recommender:
    torch.manual_seed(0)
    model: Recommender = build_component("model", {"name": name, "table": table, **SETTINGS[name]}, dataset.catalog)
    model.set_popularity_from(dataset)
    fit(model, model.examples(dataset), TrainingConfig(max_epochs=2, learning_rate=0.01), progress=False)  # type: ignore[operator]
    return model


def with_new_items(dataset: Dataset) -> Dataset:
    """Return the data set with two more items, and events of the first of them after each event of item 1."""
    former = dataset.catalog
    ids = pl.Series("item_id", ["new-1", "new-2"] if former.ids.external.dtype == pl.String else [9001, 9002])
    text = None if former.text is None else pl.Series(["first", "second"])
    table = pl.DataFrame({"item_id": ids.cast(former.ids.external.dtype)})
    later = former.extend(table, text=text)
    log = dataset.interactions
    items = log.item_ids.copy()
    items[items == 2] = later.num_items - 1
    return dataset.with_interactions(replace(log, item_ids=items, num_items=later.num_items)).with_catalog(later)


@pytest.mark.parametrize("table", [GROWING, "hashed", "dense"])
@pytest.mark.parametrize("name", list(SETTINGS))
def test_former_items_keep_their_scores_and_new_ones_get_some(name: str, table: object) -> None:
    dataset = cycle()
    model = trained(name, table, dataset)
    catalog = with_new_items(dataset).catalog
    if table == "dense" and name in ("two-tower", "deepfm", "din", "lr"):
        with pytest.raises(UserError, match=r'cannot take new items without training: .*table = "growing"'):
            model.with_catalog(catalog)
        return
    before = {key: value.clone() for key, value in model.state_dict().items()}
    later = model.with_catalog(catalog)
    requests = make_split(dataset, "leave-one-out").test
    former_items = torch.arange(1, dataset.catalog.num_items + 1)
    candidates = Jagged.from_rows([former_items.tolist()] * requests.num_requests)
    requests = replace(requests, candidates=candidates)
    k = dataset.catalog.num_items
    first, second = model.recommend(requests, k), later.recommend(requests, k)
    assert torch.equal(first.item_ids, second.item_ids)
    torch.testing.assert_close(first.scores, second.scores)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0, equal_nan=True)
    lists = later.recommend(replace(requests, candidates=None), catalog.num_items).item_ids
    assert torch.equal(lists.sort(dim=1).values, torch.arange(1, catalog.num_items + 1).expand_as(lists))


@pytest.mark.parametrize(("name", "epochs"), [("sasrec", 6), ("deepfm", 6), ("two-tower", 20)])
def test_a_new_item_is_learned_by_training_on(name: str, epochs: int) -> None:
    dataset = cycle()
    model = trained(name, GROWING, dataset)
    more = with_new_items(dataset)
    later = model.with_catalog(more.catalog)
    keys = {part: set(part.ids.tolist()) for part in later.modules() if isinstance(part, GrowingTable)}
    later.set_popularity_from(more)
    later.train()
    fit(later, later.examples(more), TrainingConfig(max_epochs=epochs, learning_rate=0.02), progress=False)  # type: ignore[operator]
    assert all(ids < set(part.ids.tolist()) for part, ids in keys.items() if len(ids) > 10)  # rows for new ids
    requests = make_split(more, "leave-one-out").test
    is_after_first = requests.items.values[requests.items.offsets[1:] - 1] == 1
    requests = requests.select(is_after_first.nonzero()[:, 0])
    assert requests.num_requests
    places = (later.recommend(requests, 14).item_ids == more.catalog.num_items - 1).int().argmax(1)
    unknown_places = (later.recommend(requests, 14).item_ids == more.catalog.num_items).int().argmax(1)
    assert float(places.float().mean()) < 3
    assert float(unknown_places.float().mean()) > 5


def test_a_catalogue_of_other_items_is_refused() -> None:
    dataset = cycle()
    model = trained("sasrec", GROWING, dataset)
    ids = dataset.catalog.ids.external.reverse()
    other = replace(dataset.catalog, ids=IdMap(ids))
    with pytest.raises(UserError, match="must begin with the 12 items"):
        model.with_catalog(other)


def test_every_registered_model_is_extendable() -> None:
    assert all(issubclass(entry.load(), Extendable) for entry in MODELS.values())
