"""RecTools' DSSM: triplets of a user, an item that the user took, and another.

The other side of benchmarks/two_tower_speed.py; it runs in an environment with rectools[torch]==0.19.0 and imports
nothing of nextitem. The log has columns user_id and item_id; `--features` is a folder with items.csv and users.csv: an
id and categorical columns. With `--what rectools-dssm-ids` an item's id is one more of its features.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import rectools
import torch
from meter import Enough, peer_parser, silence, watch_for
from pytorch_lightning import Callback, seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import DSSMModel


class Watcher(Callback):
    """Report batches to the watch."""

    def __init__(self, watch: Any) -> None:
        self.watch = watch

    def __deepcopy__(self, memo: Any) -> Watcher:
        return self  # the model trains with a copy of its trainer

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Lightning's hook: an example is a triplet, one a user and epoch."""
        users = len(trainer.train_dataloader.dataset)
        self.watch.begin(events=users, batches=trainer.num_training_batches, answers=dict)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Lightning's hook."""
        self.watch.batch(len(batch[0]))


def features(table: pd.DataFrame, ids: str, names: list[str]) -> pd.DataFrame:
    """Return one row for each value of each feature, as RecTools reads them."""
    long = table.melt(id_vars=ids, value_vars=names, var_name="feature", value_name="value").dropna()
    return long.rename(columns={ids: "id"})


def main() -> None:
    parser = peer_parser(__doc__.splitlines()[0], what=["rectools-dssm", "rectools-dssm-ids"])
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--factors", type=int, default=128)
    arguments = parser.parse_args()
    silence()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(arguments.threads)
    seed_everything(arguments.seed)
    log = pd.read_csv(arguments.csv)[[Columns.User, Columns.Item]].drop_duplicates()
    log[Columns.Weight] = 1.0
    log[Columns.Datetime] = "2024-01-01"
    items = pd.read_csv(arguments.features / "items.csv")
    users = pd.read_csv(arguments.features / "users.csv")
    items = items[items[Columns.Item].isin(log[Columns.Item])]
    users = users[users[Columns.User].isin(log[Columns.User])]
    names = [name for name in items.columns if name != Columns.Item]
    if arguments.what.endswith("-ids"):
        items["id_of_item"] = items[Columns.Item].astype(str)
        names.append("id_of_item")
    of_items = features(items, Columns.Item, names)
    of_users = features(users, Columns.User, [name for name in users.columns if name != Columns.User])
    data = Dataset.construct(
        log,
        user_features_df=of_users,
        cat_user_features=sorted(of_users["feature"].unique()),
        item_features_df=of_items,
        cat_item_features=sorted(of_items["feature"].unique()),
    )
    watch = watch_for(arguments)
    # Its trainer saves itself in the current folder.
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        model = DSSMModel(
            n_factors=arguments.factors,
            max_epochs=1000,
            batch_size=arguments.batch,
            callbacks=[Watcher(watch)],
            loggers=False,
        )
        try:
            model.fit(data)
        except Enough:
            watch.report(version=f"rectools {rectools.__version__}", torch=torch.__version__)


if __name__ == "__main__":
    main()
