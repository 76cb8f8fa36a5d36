"""Methods of alignment on the simulated shop: does the true reward of the lists rise, or only the model's opinion?

    python benchmarks/alignment.py RUN [--methods ecpo dpo ...] [--reward clicks] [--seeds 0 1 2] [--steps 120]
        [--out FOLDER] [--set alignment.sft_weight=0.5]

RUN is a folder of `nextitem train MODEL --data shop`; every method aligns it with equally many steps. `control` has the
same steps of the policy's own loss, without any reward: what a method gains is its change minus that. The reward models
are trained by the first alignment of each seed, and the others use them. Prints one JSON line for each method and
seed, on the same test requests: the true expected clicks (or purchases) of the first six items before and after, with
the effects of items on each other (`true`) and without (`true_alone`), and the change with its paired 95% interval; the
same of the modelled reward and of a held-out model with another seed; recall@10 and its relative change; legality with
and without the constraint; the best epoch and seconds. The goal: the interval of the true change is above 0, recall@10
falls by at most 5%, legality is 1.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from measure import Results, parser

import nextitem as ni
from nextitem.alignment.config import METHODS
from nextitem.pipeline.aligning.figures import changes

CONTROL = "control"
RECALL_LIMIT = -0.05


def main() -> None:
    options = parser(__doc__)
    options.add_argument("run", help="folder of a run of a generator that was trained on the shop")
    options.add_argument("--methods", nargs="+", default=[CONTROL, *METHODS], help="dpo, or dpo,weight=10,beta=0.2")
    options.add_argument("--reward", default="clicks")
    options.add_argument("--seeds", type=int, nargs="+", default=[0])
    options.add_argument("--steps", type=int, default=120)
    options.add_argument("--out", default=None, help="folder of the aligned runs; default: a temporary one")
    options.add_argument("--set", dest="overrides", nargs="+", default=[], help="settings of alignment")
    arguments = options.parse_args()
    results = Results(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.out or temporary)
        source = ni.load_run(arguments.run)
        for seed in arguments.seeds:
            reward: str | Path = arguments.reward
            for method in arguments.methods:
                start_time = time.perf_counter()
                kind, overrides = _settings(method)
                outcome = ni.align(
                    source,
                    out=folder / f"{method}-{seed}",
                    method=kind,
                    reward=reward,
                    steps=arguments.steps,
                    seed=seed,
                    overrides=[*arguments.overrides, *overrides],
                    overwrite=True,
                    progress=False,
                )
                if reward == arguments.reward and not Path(arguments.reward).is_dir():
                    reward = outcome.run.folder
                seconds = round(time.perf_counter() - start_time, 1)
                row = {"method": method, "seed": seed, **_row(outcome), "seconds": seconds}
                results.add_printed(f"{method}, seed {seed}", row)


def _settings(method: str) -> tuple[str, list[str]]:
    """Return the method and its settings, from a text such as "dpo,weight=10", or "control"."""
    if method == CONTROL:
        return "rsft", ["alignment.method.weight=1e-12"]
    kind, *settings = method.split(",")
    return kind, [f"alignment.method.{setting}" for setting in settings]


def _row(outcome: ni.Alignment) -> dict[str, object]:
    """Return the figures of one alignment."""
    before, after, differences = outcome.before.metrics, outcome.after.metrics, changes(outcome.before, outcome.after)
    row: dict[str, object] = {}
    for name in ("true", "true_alone", "modelled", "held_out"):
        if name in differences:
            part = differences[name]
            row[name] = [round(before[name], 4), round(after[name], 4)]
            row[f"{name}_change"] = [round(value, 4) for value in (part.mean, part.low, part.high)]
    relative = after["recall@10"] / before["recall@10"] - 1
    row["recall@10"] = [round(before["recall@10"], 4), round(after["recall@10"], 4)]
    row["recall_change"] = round(relative, 4)
    row |= {name: round(after[name], 4) for name in ("legality", "free_legality", "diversity@10", "coverage@10")}
    is_reached = "true" in differences and differences["true"].low > 0 and relative >= RECALL_LIMIT
    return row | {"is_reached": is_reached and after["legality"] == 1, "best_epoch": outcome.best_epoch}


if __name__ == "__main__":
    main()
