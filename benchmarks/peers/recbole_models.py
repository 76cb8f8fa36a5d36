"""RecBole's SASRec and GRU4Rec with cross-entropy over all items.

The other side of benchmarks/training_speed.py and benchmarks/time_to_quality.py; it runs in an environment with
recbole==1.2.1 and imports nothing of nextitem. The log has columns user_id, item_id, position. RecBole makes one
example of every prefix of a history, so a batch has as many targets as examples: `batch` counts them.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import recbole
import torch
from meter import LENGTH, WIDTH, Enough, WatchedLoader, peer_parser, silence, watch_for
from recbole.config import Config
from recbole.data import create_dataset
from recbole.data.utils import get_dataloader
from recbole.utils import get_model, get_trainer, init_seed

VARIANTS = {"recbole-sasrec": "SASRec", "recbole-gru4rec": "GRU4Rec"}


def settings_of(arguments: Any, folder: str) -> dict[str, Any]:
    """Return RecBole's settings: one block or layer, an inner width four times the width."""
    return {
        "data_path": folder,
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "USER_ID_FIELD": "user_id",
        "ITEM_ID_FIELD": "item_id",
        "TIME_FIELD": "timestamp",
        "MAX_ITEM_LIST_LENGTH": LENGTH,
        "loss_type": "CE",
        "train_neg_sample_args": None,
        "train_batch_size": arguments.batch,
        "learning_rate": arguments.learning_rate,
        "epochs": 1000,
        "seed": arguments.seed,
        "use_gpu": False,
        "state": "ERROR",
        "show_progress": False,
        "n_layers": 1,
        "n_heads": 1,
        "hidden_size": WIDTH if arguments.what == "recbole-sasrec" else 2 * WIDTH,
        "inner_size": 4 * WIDTH,
        "hidden_dropout_prob": arguments.dropout,
        "attn_dropout_prob": arguments.dropout,
        "embedding_size": WIDTH,
        "num_layers": 1,
        "dropout_prob": arguments.dropout,
    }


def answers(model: Any, dataset: Any, log: pd.DataFrame) -> dict[str, Any]:
    """Return vectors of all users and items, in the log's numbering; the model is left in training mode."""
    sequences = log.sort_values(["user_id", "position"]).groupby("user_id")["item_id"].agg(list)
    numbers = dataset.field2token_id["item_id"]
    rows = np.zeros((len(sequences), LENGTH), np.int64)
    lengths = np.array([min(len(items), LENGTH) for items in sequences])
    for row, items in enumerate(sequences):
        rows[row, : lengths[row]] = [numbers[str(item)] for item in items[-LENGTH:]]
    model.eval()
    with torch.no_grad():
        parts = [
            model.forward(torch.from_numpy(rows[start : start + 512]), torch.from_numpy(lengths[start : start + 512]))
            for start in range(0, len(rows), 512)
        ]
    model.train()
    return {
        "users": sequences.index.to_numpy(np.int64),
        "user_vectors": torch.cat(parts).numpy(),
        "items": np.array([int(token) for token in dataset.field2id_token["item_id"][1:]]),
        "item_vectors": model.item_embedding.weight.detach().numpy()[1:],
    }


def main() -> None:
    parser = peer_parser(__doc__.splitlines()[0], what=list(VARIANTS))
    arguments = parser.parse_args()
    silence()
    torch.set_num_threads(arguments.threads)
    log = pd.read_csv(arguments.csv)
    sys.argv = sys.argv[:1]  # RecBole reads settings there
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # it writes logs and checkpoints into the current folder
        (Path(folder) / "log").mkdir()
        header = ["user_id:token", "item_id:token", "timestamp:float"]
        frame = log[["user_id", "item_id", "position"]]
        frame.to_csv(Path(folder) / "log" / "log.inter", sep="\t", header=header, index=False)
        name = VARIANTS[arguments.what]
        config = Config(model=name, dataset="log", config_dict=settings_of(arguments, folder))
        init_seed(arguments.seed, config["reproducibility"])
        dataset = create_dataset(config)
        dataset._change_feat_format()  # makes the examples; `build` would also split
        loader = get_dataloader(config, "train")(config, dataset, None, shuffle=True)
        model = get_model(name)(config, dataset)
        trainer = get_trainer(config["MODEL_TYPE"], name)(config, model)
        watch = watch_for(arguments)
        watch.begin(events=len(dataset), batches=len(loader), answers=lambda: answers(model, dataset, log))
        try:
            trainer.fit(WatchedLoader(loader, watch), saved=False, verbose=False)
        except Enough:
            watch.report(version=f"recbole {recbole.__version__}", torch=torch.__version__, batch=arguments.batch)
        os.chdir("/")


if __name__ == "__main__":
    main()
