"""Lists for many users as a folder of Parquet parts, computed by Ray Data on the cores of a machine or a cluster.

A part contains the lists of consecutive users. It is written in one step, so a command that was killed continues with
the parts that are missing. Its lists are those of `Run.recommend_many`: a part is a whole number of that method's
batches. Each process loads the run and the data set once. Between processes only the numbers of parts travel.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from nextitem.core.errors import UserError
from nextitem.distributed.ray_cluster import check_ray, raised_mistake, ray_cluster
from nextitem.pipeline.options import Log, silent
from nextitem.pipeline.recommend import BATCH_USERS, Filters, allowed_items, user_numbers
from nextitem.pipeline.runs import Run, load_run

PART_USERS = 40 * BATCH_USERS  # number of users in a part
PLAN, USERS, SUCCESS = "_plan.json", "_users.parquet", "_SUCCESS"  # readers of Parquet folders skip names with "_"


@dataclass(frozen=True)
class PartsPlan:
    """Everything that decides the contents of the parts; it is written beside them.

    Attributes:
        run: folder of the run.
        data: folder of the data set with the histories; None: that of the run.
        weights: fingerprint of the model.
        fingerprint: fingerprint of the data set.
        users: hash of the user ids in USERS; None: all users of the data set.
        num_users: number of users.
        part_users: number of users in a part.
        k: maximum number of items for each user.
        exclude_seen: whether to exclude the items of the history; None: unless `repeats` of the data set is true.
        only: conditions "column=value" on the items table.
        exclude_items: ids of items that must not be recommended.
        device: where each process computes: auto, cpu or cuda.

    """

    run: str
    data: str | None
    weights: str
    fingerprint: str
    users: str | None
    num_users: int
    part_users: int
    k: int
    exclude_seen: bool | None
    only: tuple[str, ...]
    exclude_items: tuple[str, ...]
    device: str

    @property
    def num_parts(self) -> int:
        """Number of parts."""
        return -(-self.num_users // self.part_users)

    def users_of(self, part: int) -> slice:
        """Return the places of the users of a part among all users."""
        return slice(part * self.part_users, min((part + 1) * self.part_users, self.num_users))


class PartWriter:
    """Writer of parts, which loads the run and its data set once."""

    def __init__(self, plan: PartsPlan, folder: str) -> None:
        """Load the run. Raises UserError if the run or the data set has changed since the plan."""
        self.plan, self.folder = plan, Path(folder)
        self.run = load_run(plan.run, device=plan.device)
        if plan.data is not None:
            self.run.use_data(plan.data)
        if (self.run.model.weights_fingerprint(), self.run.dataset.fingerprint) != (plan.weights, plan.fingerprint):
            raise UserError(f"{plan.run} or its data set has changed since {folder} was begun; start again elsewhere")

    @cached_property
    def users(self) -> pl.Series:
        """The ids of all users, in the order of the lists."""
        if self.plan.users is None:
            return self.run.dataset.users.ids.external
        return pl.read_parquet(self.folder / USERS)["user_id"]

    def write(self, part: int) -> int:
        """Write the lists of a part, and return the number of rows."""
        plan = self.plan
        table = self.run.recommend_many(
            self.users[plan.users_of(part)].to_list(),
            k=plan.k,
            exclude_seen=plan.exclude_seen,
            only=plan.only,
            exclude_items=plan.exclude_items,
        )
        temporary = self.folder / f".{part_name(part)}.{os.getpid()}"
        with temporary.open("wb") as file:
            table.select("user_id", "item_id", "rank", "score").write_parquet(file)  # the public format
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.folder / part_name(part))
        return table.height

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Write the parts of a batch of Ray Data, and return their numbers and sizes."""
        return {"part": batch["part"], "rows": [self.write(int(part)) for part in batch["part"]]}


def part_name(part: int) -> str:
    """Return the file name of a part; names sort in the order of the users."""
    return f"part-{part:06d}.parquet"


def missing_parts(plan: PartsPlan, folder: Path) -> list[int]:
    """Return the numbers of the parts that are not written yet."""
    return [part for part in range(plan.num_parts) if not (folder / part_name(part)).is_file()]


def recommend_parts(
    run: Run,
    out: str | Path,
    users: Sequence[Any] | None = None,
    *,
    k: int = 10,
    exclude_seen: bool | None = None,
    only: Sequence[str] = (),
    exclude_items: Sequence[Any] = (),
    workers: int | None = None,
    part_users: int = PART_USERS,
    data: str | None = None,
    device: str = "cpu",
    resume: bool = False,
    overwrite: bool = False,
    log: Log = silent,
) -> PartsPlan:
    """Write the lists of many users as a folder of Parquet parts, by Ray Data.

    Args:
        run: the run; its folder and `data` must be readable under the same paths on every machine of the cluster.
        out: folder of the parts, writable on every machine.
        users: ids of users; None: all users of the data set.
        k: maximum number of items for each user.
        exclude_seen: whether to exclude the items of the history; None: unless `repeats` of the data set is true.
        only: conditions "column=value" on the items table.
        exclude_items: ids of items that must not be recommended.
        workers: number of processes; None: one for each core.
        part_users: number of users in a part, a multiple of the batch size of `recommend_many`.
        data: folder of the data set with the histories; None: that of the run.
        device: where each process computes.
        resume: continue with the parts that are missing.
        overwrite: replace the parts in `out`.
        log: is called with a line of progress.

    Returns:
        The plan, of which all parts are written.

    Raises:
        UserError: Ray is not installed, an unknown user, a condition that no item satisfies, or `out` contains
            something else or, with `resume`, parts of another plan.

    """
    check_ray()
    if part_users < 1 or part_users % BATCH_USERS:
        raise ValueError(f"part_users must be a positive multiple of {BATCH_USERS}, got {part_users}")
    if data is not None:
        run.use_data(data)
    dataset = run.dataset
    allowed_items(run.model.catalog, Filters(tuple(only), tuple(exclude_items)))
    num_users = len(user_numbers(dataset, users))
    ids = None if users is None else pl.DataFrame({"user_id": [str(user).strip() for user in users]})
    plan = PartsPlan(
        run=str(run.folder.resolve()),
        data=_path(data),
        weights=run.model.weights_fingerprint(),
        fingerprint=dataset.fingerprint,
        users=None if ids is None else hashlib.sha256("\n".join(ids["user_id"]).encode()).hexdigest(),
        num_users=num_users,
        part_users=part_users,
        k=k,
        exclude_seen=exclude_seen,
        only=tuple(only),
        exclude_items=tuple(str(item) for item in exclude_items),
        device=device,
    )
    folder = _begin(plan, ids, Path(out), resume=resume, overwrite=overwrite)
    missing = missing_parts(plan, folder)
    if missing:
        _write_parts(plan, folder, missing, workers, log)
    (folder / SUCCESS).touch()
    return plan


def _path(data: str | None) -> str | None:
    """Return the absolute path of a data folder; "shop" names no folder."""
    return str(Path(data).resolve()) if data is not None and Path(data).is_dir() else data


def _begin(plan: PartsPlan, users: pl.DataFrame | None, folder: Path, *, resume: bool, overwrite: bool) -> Path:
    """Create or check the folder of the parts, write the plan, and remove what a killed process left half written."""
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder with --out")
    has_content = folder.is_dir() and any(folder.iterdir())
    if has_content and not (folder / PLAN).is_file():
        raise UserError(f"{folder} contains something else than parts of recommendations; choose another --out")
    if has_content and not (resume or overwrite):
        raise UserError(f"{folder} is not empty; choose another --out, or add --resume or --overwrite")
    if has_content and resume:
        _check_same(plan, folder)
    elif has_content:
        shutil.rmtree(folder)
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for rest in folder.glob(".part-*"):
        rest.unlink()
    if users is not None:
        users.write_parquet(folder / USERS)
    temporary = folder / f".{PLAN}"
    temporary.write_text(json.dumps(asdict(plan), indent=1), encoding="utf-8")
    temporary.replace(folder / PLAN)
    return folder


def _check_same(plan: PartsPlan, folder: Path) -> None:
    """Raise UserError if the parts in the folder are of another plan; the device may differ."""
    try:
        former = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"{folder / PLAN} is damaged; choose another --out, or add --overwrite") from None
    present = json.loads(json.dumps(asdict(plan)))
    changed = [name for name in present if name != "device" and former.get(name) != present[name]]
    if changed:
        raise UserError(
            f"{folder} was begun with another {', '.join(changed)}; repeat the same command, or add --overwrite"
        )


def _write_parts(plan: PartsPlan, folder: Path, missing: Sequence[int], workers: int | None, log: Log) -> None:
    """Let processes of Ray write the missing parts, and log the progress."""
    with ray_cluster(num_cpus=workers) as ray:
        num_workers = min(workers or int(ray.cluster_resources().get("CPU", 1)), len(missing))
        log(f"{len(missing):,} of {plan.num_parts:,} parts are missing; {num_workers} processes load the run ...")
        start, num_done, first = time.monotonic(), 0, None
        try:
            for row in _rows(plan, folder, missing, num_workers):
                now, num_done = time.monotonic(), num_done + 1
                first = first or now  # the time until the first part includes loading
                users = plan.users_of(int(row["part"]))
                rate = (num_done - num_workers) / (now - first) if num_done > num_workers else num_done / (now - start)
                left = round((len(missing) - num_done) / rate)
                log(
                    f"part {num_done:,}/{len(missing):,}: users {users.start + 1:,} to {users.stop:,}, "
                    f"{rate * plan.part_users:,.0f} users/s, {left // 60}:{left % 60:02} left"
                )
        except ray.exceptions.RayError as error:
            raise raised_mistake(error) or error from None


def _rows(plan: PartsPlan, folder: Path, missing: Sequence[int], num_workers: int) -> Iterator[dict[str, Any]]:
    """Yield number and size of each part as soon as it is written."""
    import ray.data as ray_data

    for name in ("ray.data", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = ray_data.DataContext.get_current()
    context.enable_progress_bars = False
    parts = ray_data.from_items([{"part": part} for part in missing], override_num_blocks=len(missing))
    yield from parts.map_batches(
        PartWriter,
        batch_size=1,
        num_cpus=1,
        compute=ray_data.ActorPoolStrategy(size=num_workers, max_tasks_in_flight_per_actor=2),
        fn_constructor_args=(plan, str(folder)),
    ).iter_rows()
