"""Every registered model is updated with new events and items of a small shop, as docs/how_to/update_a_run.md says."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from support.simulated_shop import small_shop
from support.trained_models import few_epochs

import nextitem as ni
from nextitem.core.config import write_toml
from nextitem.core.registry import MODELS
from nextitem.data.shop.shop import SETTINGS
from nextitem.pipeline.updating import update as updates

TRAINED_ON = {"sasrec", "gru4rec", "hstu", "nextitnet", "sr-gnn", "streaming-vq", "tiger", "cobra"}
TRAINED_ON |= {"onerec", "onerec-tr", "onerec-v2"}  # the clusters stay, so the nodes above the leaves do
ANYWAY = ni.UpdateConfig(epochs=1, margin=100, min_users=5, max_requests=40)
NUM_NEW = 12
NUM_USERS = 50
# Tokenizers of debug recipes train for a moment, and 138 items share codes.
FOR_ONE_EPOCH = {name: ["quality.max_collision_rate=1", "quality.min_distinct_share=0"] for name in ("tiger", "cobra")}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of the first four fifths of the log without some items, and of the rest with all items."""
    root, shop = tmp_path_factory.mktemp("shop"), small_shop()
    log = shop.interactions.filter(pl.col("user_id").is_in(shop.users["user_id"].head(NUM_USERS)))
    cut = log["timestamp"].quantile(0.8)
    is_new = pl.col("item_id").is_in(shop.items["item_id"].gather_every(shop.items.height // NUM_NEW).head(NUM_NEW))
    is_later = pl.col("timestamp") > cut
    settings = {name: value for name, value in SETTINGS.items() if name != "impressions"}
    tables = {
        "data": (log.filter(~is_later & ~is_new), shop.items.filter(~is_new)),
        "later": (log.filter(is_later), shop.items),
    }
    for name, (events, items) in tables.items():
        (root / name).mkdir()
        events.write_parquet(root / name / "interactions.parquet")
        items.write_parquet(root / name / "items.parquet")
        shop.users.write_parquet(root / name / "users.parquet")
        write_toml(root / name / "dataset.toml", settings)
    return root / "data", root / "later"


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_updated(
    name: str, places: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(updates, "_former_skill", lambda *_: None)  # after one epoch, some models have none
    data, later = places
    run, overrides = tmp_path / "run", [*few_epochs(name, 1), *FOR_ONE_EPOCH.get(name, [])]
    ni.train(name, data, out=run, recipe=f"debug/{name}", overrides=overrides, progress=False)
    former = ni.load_run(run)
    card = ni.update(run, events=later, settings=ANYWAY, progress=False).card
    if name == "new-items":  # it now lists the items that nobody has had time to buy, and the events judge that
        assert (card["decision"], "worse" in card["reason"]) == ("not promoted", True)
        return
    assert card["decision"] == "promoted", card["reason"]
    assert (card["way"] == "trained on") == (name in TRAINED_ON), card["way"]
    assert card["events"]["new"] > 100
    assert card["new_items"] == NUM_NEW
    updated = ni.load_run(run)
    assert updated.folder == run / "versions" / "2"
    assert updated.model.num_items == former.model.num_items + NUM_NEW
    history = pl.read_parquet(later / "interactions.parquet")["item_id"].head(5).to_list()
    assert len(updated.recommend(history=history, k=5).item_ids) == 5
    everything = updated.rank(history=history, candidates=updated.model.catalog.ids.external.to_list())
    assert everything.height == updated.model.num_items
    assert len(ni.load_run(run).recommend(user=history_user(later), k=5).item_ids) == 5


def history_user(folder: Path) -> int:
    """Return a user of the new events."""
    return int(pl.read_parquet(folder / "interactions.parquet")["user_id"][0])
