"""What a lazy decoder saves in training, compared with an encoder-decoder of equal width and depth.

    python benchmarks/lazy_decoder.py --steps 120 --seeds 0 1 2
    python benchmarks/lazy_decoder.py --steps 0 --timed 20 --layers 4
    python benchmarks/lazy_decoder.py --steps 0 --timed 0 --widths 64 512 1792

Both models are onerec-v2 with the same tokens, targets, heads and loss. "lazy" has --layers decoder layers. The other,
"encoder-decoder", reads the context by half of them as an encoder (self-attention over all tokens, in both directions),
and its other half has keys and values of its own for each layer. The context is --context events of a planted log: the
next item follows the last one with probability 0.6, is of the group that the user takes most often with 0.3, and is any
other with 0.1. Each target is trained once.

Prints one JSON line for each seed: the mean loss of the codes over the last fifth of the steps, and of held-out targets
after them. Then the medians of the timed steps, which take turns: examples per second by processor time, and their
ratio. Then the operations of one example after the context has passed the first projection, by width and length:
torch's counter, forward, in millions, and of the encoder beside it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from typing import Any, cast

import numpy as np
import polars as pl
import torch
from measure import Results, interleaved, median_ratio, parser
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.dataset import Dataset, Users
from nextitem.core.identifiers import IdentifierTable
from nextitem.core.ids import IdMap
from nextitem.core.interactions import Interactions
from nextitem.models.onerec_v2 import OneRecV2, OneRecV2Config
from nextitem.nn.attention.lazy_decoder import LazyDecoder, LazyDecoderConfig
from nextitem.nn.attention.t5 import EncoderLayer

GROUPS = 16
GROUP_SIZE = 16
FOLLOWS, OF_GROUP = 0.6, 0.3
LENGTHS = (64, 128, 256, 512, 1024, 3000)


class EncoderDecoder(LazyDecoder):
    """Decoder with an encoder before its context processor, which projects keys and values for each layer."""

    def __init__(self, config: LazyDecoderConfig, *, encoder_layers: int) -> None:
        super().__init__(config)
        width, heads = config.width, config.heads
        self.encoder = nn.ModuleList(
            EncoderLayer(
                width,
                heads=heads,
                head_width=width // heads,
                inner=config.ff_width,
                hidden_layers=1,
                dropout=config.dropout,
            )
            for _ in range(encoder_layers)
        )

    def encode(self, tokens_BLD: Tensor) -> Tensor:
        """Return the encoded tokens, [B, L, D]; none of them is padding."""
        for layer in self.encoder:
            tokens_BLD = layer(tokens_BLD, cast(Tensor, None))
        return tokens_BLD

    def read(self, tokens_BLD: Tensor) -> Tensor:
        """Return keys and values of the encoded tokens."""
        return super().read(self.encode(tokens_BLD))


def planted_log(*, num_users: int, context: int, targets: int, seed: int) -> Dataset:
    """Return users with `context` events and `targets` further ones, which alone may be targets."""
    rng, length, num_items = np.random.default_rng(seed), context + targets, GROUPS * GROUP_SIZE
    successors = rng.permutation(GROUP_SIZE)
    favourites = rng.integers(GROUPS, size=num_users)
    items = np.empty((num_users, length), np.int64)
    items[:, 0] = rng.integers(num_items, size=num_users)
    for place in range(1, length):
        last, kind = items[:, place - 1], rng.random(num_users)
        follower = last // GROUP_SIZE * GROUP_SIZE + successors[last % GROUP_SIZE]
        of_group = favourites * GROUP_SIZE + rng.integers(GROUP_SIZE, size=num_users)
        other = np.where(kind < FOLLOWS + OF_GROUP, of_group, rng.integers(num_items, size=num_users))
        items[:, place] = np.where(kind < FOLLOWS, follower, other)
    log = Interactions(
        np.repeat(np.arange(1, num_users + 1), length).astype(np.int32),
        (items + 1).ravel().astype(np.int32),
        num_users,
        num_items,
        positive=np.tile(np.arange(length) >= context, num_users),
    )
    ids = pl.Series("item_id", range(num_items))
    catalog = Catalog(IdMap(ids), pl.DataFrame({"item_id": ids}))
    codes = torch.stack([torch.arange(num_items) // GROUP_SIZE, torch.arange(num_items) % GROUP_SIZE], dim=1).int()
    table = IdentifierTable.from_item_codes(
        codes, codebook_sizes=(GROUPS, GROUP_SIZE), catalog_fingerprint=catalog.fingerprint
    )
    users = Users(IdMap(pl.Series("user_id", range(num_users))))
    return Dataset("planted", log, catalog.with_identifiers(table), users)


def models_of(data: Dataset, *, width: int, layers: int, context: int, seed: int) -> dict[str, OneRecV2]:
    """Return both models, untrained."""
    settings: dict[str, Any] = {"width": width, "heads": max(1, width // 32), "ff_width": 4 * width, "dropout": 0.0}
    settings |= {"max_history_length": context, "head": "linear"}
    models: dict[str, OneRecV2] = {}
    for name in ("lazy", "encoder-decoder"):
        torch.manual_seed(seed)
        if name == "lazy":
            model = OneRecV2(OneRecV2Config.model_validate({**settings, "layers": layers}), data.catalog)
        else:
            sizes = {"layers": layers - layers // 2, "kv_layers": layers - layers // 2, "separate_values": True}
            config = OneRecV2Config.model_validate({**settings, **sizes})
            model = OneRecV2(config, data.catalog)
            model.decoder = EncoderDecoder(config, encoder_layers=layers // 2)
            for parameter in model.decoder.parameters():
                if parameter.dim() > 1:
                    nn.init.trunc_normal_(parameter, std=0.02)
            model.decoder.start_as_mean()
        model.set_popularity_from(data)
        models[name] = model
    return models


def train_step(model: OneRecV2, optimizer: torch.optim.Optimizer, batch: SequenceBatch) -> float:
    loss = model.training_loss(batch).total
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def learn(
    model: OneRecV2, batches: Iterator[SequenceBatch], held_out: list[SequenceBatch], *, rate: float
) -> dict[str, float]:
    """Train by one pass over the batches, and return the losses."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    model.train()
    losses = [train_step(model, optimizer, batch) for batch in batches]
    model.eval()
    with torch.no_grad():
        after = [float(model.training_loss(batch).total) for batch in held_out]
    last = losses[-max(1, len(losses) // 5) :]
    return {"loss": round(statistics.mean(last), 4), "held_out_loss": round(statistics.mean(after), 4)}


def stepper(model: OneRecV2, batches: list[SequenceBatch], *, rate: float) -> Callable[[], float]:
    """Return a function that trains the model by the next batch."""
    optimizer, stream = torch.optim.AdamW(model.train().parameters(), lr=rate), cycle(batches)
    return lambda: train_step(model, optimizer, next(stream))


def operations(width: int, length: int, *, layers: int) -> dict[str, float]:
    """Return forward operations of one example in millions: of the lazy layers, of the projection, of an encoder."""
    config = LazyDecoderConfig(width=width, heads=max(1, width // 32), layers=layers, ff_width=4 * width, dropout=0.0)
    with torch.device("meta"), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        decoder = EncoderDecoder(config, encoder_layers=layers // 2).eval()
        tokens, inputs = torch.empty(1, length, width), torch.empty(1, 1, 3, width)
        context = LazyDecoder.read(decoder, tokens)
        works: dict[str, Callable[[], object]] = {
            "layers": lambda: decoder(inputs, context),
            "context_processor": lambda: LazyDecoder.read(decoder, tokens),
            "encoder": lambda: decoder.encode(tokens),
        }
        counts = {}
        for name, work in works.items():
            with FlopCounterMode(display=False) as counter:
                work()
            counts[name] = round(counter.get_total_flops() / 1e6, 3)
    return counts


def main() -> None:
    options = parser(__doc__, steps=120, timed=10, batch_size=16, context=512, width=64, layers=2, threads=1)
    options.add_argument("--learning-rate", type=float, default=3e-3)
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--widths", type=int, nargs="+", default=[64, 512, 1792], help="of the counted operations")
    arguments = options.parse_args()
    results = Results(arguments)
    torch.set_num_threads(arguments.threads)
    size, context, per_user = arguments.batch_size, arguments.context, 16
    num_users = -(-max(arguments.steps, arguments.timed + 2) * size // per_user) + -(-256 // per_user)

    def data_of(seed: int) -> tuple[Dataset, list[SequenceBatch], list[SequenceBatch]]:
        """Return the log, the batches of a pass over its targets, and 256 held-out targets of the same users."""
        data = planted_log(num_users=num_users, context=context, targets=per_user, seed=seed)
        model = models_of(data, width=8, layers=2, context=context, seed=seed)["lazy"]
        batches = [
            batch for batch in model.examples(data).batches(size, epoch=0, seed=seed) if batch.num_requests == size
        ]
        return data, batches[: len(batches) - 256 // size], batches[len(batches) - 256 // size :]

    sizes = {"width": arguments.width, "layers": arguments.layers, "context": context}
    for seed in arguments.seeds if arguments.steps else []:
        data, batches, held_out = data_of(seed)
        for name, model in models_of(data, **sizes, seed=seed).items():
            steps = islice(batches, arguments.steps)
            row = learn(model, steps, held_out, rate=arguments.learning_rate)
            about = {"model": name, "seed": seed, "steps": arguments.steps, "batch_size": size, **sizes}
            parameters = sum(parameter.numel() for parameter in model.parameters())
            results.add_printed(f"{name}, seed {seed}", {**about, **row, "parameters": parameters})
    if arguments.timed:
        data, batches, _ = data_of(0)
        both = models_of(data, **sizes, seed=0)
        works = {name: stepper(model, batches, rate=arguments.learning_rate) for name, model in both.items()}
        seconds = interleaved(works, repeats=arguments.timed, warmup=2, clock=time.process_time)
        rates = {name: round(size / statistics.median(times), 1) for name, times in seconds.items()}
        ratio = median_ratio(seconds["encoder-decoder"], seconds["lazy"])
        about = {**sizes, "batch_size": size, "threads": arguments.threads}
        results.add_printed("speed", {**about, "examples_per_second": rates, "ratio": ratio})
    for width in arguments.widths:
        counts: dict[int, dict[str, float]] = {
            length: operations(width, length, layers=arguments.layers) for length in LENGTHS
        }
        growth = round(counts[512]["layers"] / counts[64]["layers"], 3)
        line: dict[str, object] = {
            "width": width,
            "layers": arguments.layers,
            "million_operations": counts,
            "layers_512_over_64": growth,
        }
        results.add_printed(f"operations, width {width}", line)


if __name__ == "__main__":
    main()
