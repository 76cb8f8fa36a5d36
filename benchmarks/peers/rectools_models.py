"""RecTools' SASRec and HSTU with full softmax, stock or with the loss at real targets only.

The other side of benchmarks/training_speed.py and benchmarks/time_to_quality.py; it runs in an environment with
rectools[torch]==0.19.0 and imports nothing of nextitem. The log has columns user_id, item_id, position and, if
events have times, timestamp in ms. HSTU attends to times if there are any; its logits are cosines over 0.05.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pandas as pd
import rectools
import torch
from meter import LENGTH, WIDTH, Enough, Quality, Speed, peer_parser, silence, watch_for
from pytorch_lightning import Callback, Trainer, seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import HSTUModel, SASRecModel
from rectools.models.nn.transformers.lightning import TransformerLightningModule

VARIANTS = {
    "rectools-sasrec": (SASRecModel, False),
    "rectools-sasrec-repaired": (SASRecModel, True),
    "rectools-hstu": (HSTUModel, False),
    "rectools-hstu-repaired": (HSTUModel, True),
}


class LossAtTargets(TransformerLightningModule):
    """Logits are computed at real targets, not at padding too; the loss has the stock module's value."""

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Return the loss of one batch."""
        real = batch["y"] != 0
        items = self.torch_model.item_model.get_all_embeddings()
        hidden = self.torch_model.encode_sessions(batch, items)[real]
        logits = self.torch_model.similarity_module(hidden, items) / self.logits_t
        losses = torch.nn.functional.cross_entropy(logits, batch["y"][real], reduction="none") * batch["yw"][real]
        loss = losses.mean()
        self.log(self.train_loss_name, loss, on_step=False, on_epoch=True, prog_bar=self.verbose > 0)
        return loss


class Watcher(Callback):
    """Report batches and epochs to the watch."""

    def __init__(self, watch: Speed | Quality) -> None:
        self.watch = watch
        self.model: Any = None
        self.data: Any = None

    def __deepcopy__(self, memo: Any) -> Watcher:
        return self  # the model trains with a copy of its trainer

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Lightning's hook: data and model exist."""
        lengths = self.model.data_preparator.train_dataset.interactions.df.groupby(Columns.User).size()
        events = int((lengths - 1).sum())
        self.watch.begin(events=events, batches=trainer.num_training_batches, answers=self.answers)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Lightning's hook."""
        self.watch.batch(int((batch["y"] != 0).sum()))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Lightning's hook."""
        self.watch.epoch()

    def answers(self) -> dict[str, Any]:
        """Return vectors of all users and items, in the log's numbering; the model is left in training mode."""
        preparator, module = self.model.data_preparator, self.model.lightning_model
        users = self.data.user_id_map.external_ids
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            requests = preparator.transform_dataset_u2i(copy.deepcopy(self.data), users)
        loader = preparator.get_dataloader_recommend(requests, 512)
        user_vectors, item_vectors = module._get_user_item_embeddings(loader, "cpu")
        module.train()
        return {
            "users": np.asarray(requests.user_id_map.external_ids, np.int64),
            "user_vectors": user_vectors.detach().numpy(),
            "items": np.asarray(preparator.get_known_item_ids(), np.int64),
            "item_vectors": item_vectors.detach().numpy()[preparator.n_item_extra_tokens :],
        }


def main() -> None:
    parser = peer_parser(__doc__.splitlines()[0], what=list(VARIANTS))
    arguments = parser.parse_args()
    silence()
    torch.set_num_threads(arguments.threads)
    seed_everything(arguments.seed)
    log = pd.read_csv(arguments.csv)
    has_times = "timestamp" in log
    if has_times and arguments.minutes is not None and "hstu" in arguments.what:
        parser.error("HSTU with time attention needs the times of the requests, which are not in the log")
    log[Columns.Datetime] = pd.to_datetime(log["timestamp"] if has_times else 1000 * log["position"], unit="ms")
    log[Columns.Weight] = 1.0
    data = Dataset.construct(log[[Columns.User, Columns.Item, Columns.Weight, Columns.Datetime]])
    kind, is_repaired = VARIANTS[arguments.what]
    watch = watch_for(arguments)
    watcher = Watcher(watch)
    settings: dict[str, Any] = {"lightning_module_type": LossAtTargets} if is_repaired else {}
    if kind is HSTUModel:
        settings |= {"relative_time_attention": has_times, "lightning_module_kwargs": {"logits_t": 0.05}}
    model = kind(
        n_blocks=1,
        n_heads=1,
        n_factors=WIDTH,
        session_max_len=LENGTH,
        dropout_rate=arguments.dropout,
        loss="softmax",
        lr=arguments.learning_rate,
        batch_size=arguments.batch,
        # The trainer that the model would make for itself, with our callback.
        get_trainer_func=lambda: Trainer(
            max_epochs=1000,
            min_epochs=1000,
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=False,
            enable_checkpointing=False,
            devices=1,
            callbacks=[watcher],
        ),
        **settings,
    )
    watcher.model, watcher.data = model, data
    try:
        model.fit(data)
    except Enough:
        watch.report(version=f"rectools {rectools.__version__}", torch=torch.__version__)


if __name__ == "__main__":
    main()
