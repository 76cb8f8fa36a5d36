"""Does an updated model beat the frozen one if tastes drift and items are new, and is a poisoned update refused?

    OMP_NUM_THREADS=1 python benchmarks/live_update.py --models item-graph,sasrec [--seeds 3] [--users 400]

The log has two periods with 12 events of each user. In the second, 40% of the items have other successors, and there
are 15 new items among 95 (tests/support/drifting_log.py). A model is trained on the first period by its debug recipe,
and updated from the second, first with the items of its events shuffled, then as they are. Figures are NDCG@10 on the
newest fifth of the second period. --replay varies the number of former events that are learned again for each new one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from measure import Results, Stopwatch, parser

import nextitem as ni

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.drifting_log import drifting_log, shuffled

EPOCHS = {"sasrec": 15, "gru4rec": 10, "tiger": 8}  # of the first training, where the debug recipe has more


def rows_of(name: str, seed: int, root: Path, *, num_users: int, replays: list[float]) -> list[dict[str, object]]:
    """Return the figures of updates from poisoned and real events, each from the same first version."""
    log = drifting_log(seed, num_users=num_users, num_items=80, num_new=15)
    data, events = log.write(root)
    poison, run = root / "poison", root / "run"
    poison.mkdir()
    shuffled(log.later, seed).write_parquet(poison / "interactions.parquet")
    log.new_items.write_parquet(poison / "items.parquet")
    settings = {"training.max_epochs": EPOCHS[name]} if name in EPOCHS else {}
    with Stopwatch() as training:
        ni.train(name, data, out=run, recipe=f"debug/{name}", settings=settings, seed=seed, progress=False)
    rows = []
    for kind, folder, replay in [("poisoned", poison, replays[0]), *(("real", events, replay) for replay in replays)]:
        (run / "current").unlink(missing_ok=True)
        card = ni.update(run, events=folder, settings=ni.UpdateConfig(replay=replay), progress=False).card
        low, high = card["interval"]
        rows.append(
            {
                "model": name,
                "seed": seed,
                "events": kind,
                "replay": replay,
                "frozen": round(card["former"], 4),
                "updated": round(card["new"], 4),
                "difference": round(card["difference"], 4),
                "interval": [round(low, 4), round(high, 4)],
                "decision": card["decision"],
                "train_seconds": round(training.seconds, 1),
                "update_seconds": card["seconds"],
            }
        )
    return rows


def main() -> None:
    options = parser(__doc__, seeds=3, users=400)
    options.add_argument("--models", default="item-graph,sasrec", help="names, separated by commas")
    options.add_argument("--replay", default="1", help="numbers, separated by commas")
    arguments = options.parse_args()
    replays = [float(number) for number in arguments.replay.split(",")]
    results = Results(arguments)
    for name in arguments.models.split(","):
        for seed in range(arguments.seeds):
            with TemporaryDirectory() as folder:
                for row in rows_of(name, seed, Path(folder), num_users=arguments.users, replays=replays):
                    results.add_printed(f"{name} {row['events']}", row)


if __name__ == "__main__":
    main()
