"""The PyTorch code of GRU4Rec's authors, on the CPU, with cross-entropy over shared sampled items.

The other side of benchmarks/training_speed.py and benchmarks/time_to_quality.py. Their code is licensed for research
only and is no part of this repository: --checkout names a folder with hidasib/GRU4Rec_PyTorch_Official. It runs in
any environment with torch and pandas. The log has columns user_id, item_id, position. One layer of 128 units whose
item table serves input and output (their constrained embedding), 2,048 sampled items a batch, corrected for popularity
(logq 1), their Adagrad; `batch` lanes, in each of which users follow one another.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from meter import Enough, peer_parser, silence, watch_for

HIDDEN, SAMPLES = 128, 2048


def answers(network: Any, data: pd.DataFrame, items: Any) -> dict[str, Any]:
    """Return vectors of all users and items; an item's bias is one more column."""
    sequences = data.groupby("SessionId")["ItemId"].agg(list)
    with torch.no_grad():
        states = []
        for start in range(0, len(sequences), 512):
            part = list(sequences.iloc[start : start + 512])
            state = torch.zeros(len(part), HIDDEN)
            for step in range(max(map(len, part))):
                rows = [row for row, read in enumerate(part) if len(read) > step]
                ids = torch.tensor([part[row][step] for row in rows])
                state[rows] = network.G[0](network.Wy(ids), state[rows])
            states.append(state)
        user_vectors = torch.cat(states)
        biased = torch.cat([network.Wy.weight, network.By.weight], 1)
    return {
        "users": sequences.index.to_numpy(np.int64),
        "user_vectors": torch.nn.functional.pad(user_vectors, (0, 1), value=1.0).numpy(),
        "items": np.asarray(items, np.int64),
        "item_vectors": biased.numpy(),
    }


def main() -> None:
    parser = peer_parser(__doc__.splitlines()[0], what=["gru4rec-authors"], learning_rate=0.05)
    parser.add_argument("--checkout", type=Path, required=True)
    arguments = parser.parse_args()
    silence()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    sys.path.insert(0, str(arguments.checkout))
    import gru4rec_pytorch

    log = pd.read_csv(arguments.csv)
    log = log[log.groupby("user_id")["item_id"].transform("size") > 1]
    # Items numbered in order of appearance: their code reads popularity counts by label, though it means position.
    numbers, items = pd.factorize(log["item_id"])
    data = pd.DataFrame({"SessionId": log["user_id"], "ItemId": numbers, "Time": log["position"]})
    events = len(log) - log["user_id"].nunique()
    watch = watch_for(arguments)
    iterate = gru4rec_pytorch.SessionDataIterator.__call__

    def watched(self: Any, *positional: Any, **keywords: Any) -> Iterator[Any]:
        if not watch.events:  # the first epoch: data and network exist
            watch.begin(events=events, batches=None, answers=lambda: answers(model.model, data, items))
        for inputs, targets in iterate(self, *positional, **keywords):
            yield inputs, targets
            watch.batch(len(inputs))
        watch.epoch()

    gru4rec_pytorch.SessionDataIterator.__call__ = watched
    model = gru4rec_pytorch.GRU4Rec(
        layers=[HIDDEN],
        loss="cross-entropy",
        batch_size=arguments.batch,
        n_sample=SAMPLES,
        dropout_p_hidden=arguments.dropout,
        logq=1.0,
        learning_rate=arguments.learning_rate,
        n_epochs=1000,
        device=torch.device("cpu"),
    )
    try:
        # Their cache of samples lasts one epoch, so that each epoch pays for the samples that it uses.
        model.fit(data, sample_cache_max_size=SAMPLES * -(-events // arguments.batch))
    except Enough:
        watch.report(version="GRU4Rec_PyTorch_Official", torch=torch.__version__)


if __name__ == "__main__":
    main()
