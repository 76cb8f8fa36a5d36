"""GrowingTable: a row for each of an endless stream of ids, within a fixed bound of memory.

An id gets a row after `admit_after` occurrences. Until then it reads one of the shared rows, by its hash; its own row
starts as a copy of it, so that nothing that was learned is lost. If all rows are taken, the ids with the lowest value
lose theirs. The value is the number of occurrences, each of which counts half after `half_life` steps (LRFU: Lee et
al., IEEE Trans. Computers 2001). So a short half-life evicts by age, and a long one by count.

Notable
- Rows change only in `after_step`, which follows the optimizer step: no gradient ever meets a row that has another id
  by then. An id that occurs for the n-th time is thus admitted from the next step on.
- Log2 of the count plus the time of the last use over the half-life orders ids as their decayed counts do, at any later
  time. So the values of unused rows never have to be updated.
- Newcomers are admitted in the order of their ids and take the first free rows, and ties go to the smaller id. So the
  table is a function of which ids occurred in which step, not of their order within it.
- If many ids are evicted one step after the other, most of the work would be the search for the lowest values. So each
  search evicts at least 1/64 of `max_rows`.
- A returning id is admitted at once if the sketch still counts it.
- The hash index is rebuilt from the ids of the rows, and never saved.

Shapes: R rows (padding, shared rows, rows of ids), n ids, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextitem.distributed import processes
from nextitem.nn.tables.count_sketch import CountSketch
from nextitem.nn.tables.divided_rows import DividedRows, RowGathering, owners_of
from nextitem.nn.tables.id_hash import NUM_SLICES, cells_of, hash_normal
from nextitem.nn.tables.id_index import IdIndex
from nextitem.nn.tables.kinds import GrowingRows
from nextitem.nn.tables.row_table import RowTable

EVICTION_SHARE = 64  # a search for the lowest values evicts at least one of so many rows
_SHARED_SEED = 20


class GrowingTable(RowTable):
    """Vectors of ids that are admitted, used and evicted.

    Args:
        config: settings of the table.
        width: width of the vectors (D).
        keys: ids of the codes that are looked up [C], int64; None: what is looked up are ids.
        std: standard deviation of the initial vectors.

    """

    ids: Tensor
    counts: Tensor
    last_use: Tensor
    step: Tensor

    def __init__(self, config: GrowingRows, width: int, *, keys: Tensor | None = None, std: float = 1.0) -> None:
        super().__init__(1 + config.shared_rows, width, keys=keys)
        self.config, self.std = config, std
        nn.init.normal_(self.weight, std=std)
        nn.init.zeros_(self.weight[0])
        rows = len(self.weight)
        self.register_buffer("ids", torch.zeros(rows, dtype=torch.int64))  # 0: the row is free, shared or padding
        self.register_buffer("counts", torch.zeros(rows))  # occurrences as of the last use, decayed
        self.register_buffer("last_use", torch.zeros(rows, dtype=torch.int64))  # step
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))  # number of optimizer steps so far
        self.sketch = CountSketch(config.sketch_cells) if config.admit_after > 1 else None
        self._index = IdIndex()
        self._observed: list[Tensor] = []  # ids since the last step
        self._division: DividedRows | None = None  # if this process stores only its own rows

    @property
    def num_ids(self) -> int:
        """Number of ids that have a row in this process."""
        return len(self._index)

    @property
    def first_row(self) -> int:
        """First row of an id; shared rows and padding are before it."""
        return 1 + self.config.shared_rows

    def rows_of(self, ids: Tensor) -> Tensor:
        """Return the row of each id: its own, or a shared one; row 0 for id 0."""
        flat = ids.flatten()
        rows = self._index.lookup(flat)
        return torch.where(rows >= 0, rows, self._shared_rows(flat)).view(ids.shape)

    def observe(self, codes: Tensor) -> None:
        """Count the occurrences of codes in a training batch, until `after_step`; in evaluation nothing is counted."""
        if self.training:
            self.observe_ids(self.ids_of(codes).detach().flatten())

    def observe_ids(self, ids: Tensor) -> None:
        """Count the occurrences of ids [n], until `after_step`."""
        self._observed.append(ids)

    def take_observed(self) -> Tensor:
        """Return the occurrences since the last step, and forget them."""
        observed, self._observed = torch.cat([self.ids[:0], *self._observed]), []
        return observed

    @torch.no_grad()
    def after_step(self) -> Tensor:
        """Admit and evict ids by what was observed since the last step; all processes call it after an optimizer step.

        Returns:
            The rows whose vectors were replaced; the table may have more rows than before.

        """
        ids, counts = self._collect_observed()
        self.step += 1
        rows = self._index.lookup(ids)
        is_member = rows >= 0
        self._use(rows[is_member], counts[is_member])
        ids, counts = ids[~is_member], counts[~is_member]
        if self.sketch is not None:
            counts = self.sketch.add(ids, counts)
            is_frequent = counts >= self.config.admit_after
            ids, counts = ids[is_frequent], counts[is_frequent]
        return self._admit(ids, counts)

    @property
    def is_divided(self) -> bool:
        """Whether this process stores only its own rows now."""
        return self._division is not None

    def take_over(self, former: GrowingTable) -> None:
        """Take over all rows of the table of a former catalogue (roles.TakesOver); its ids mean the same."""
        self.load_state_dict(former.state_dict())

    def divide_rows(self) -> Callable[[Tensor], Tensor]:
        """Keep only the rows of this process; return the function that does the same to any tensor with these rows."""
        is_own = (self.ids != 0) & (owners_of(self.ids) == processes.rank())
        rows = torch.cat([torch.arange(self.first_row, device=is_own.device), is_own.nonzero()[:, 0]])
        self._set_rows({name: tensor[rows] for name, tensor in self._row_tensors().items()})
        if self.sketch is not None:
            slices = torch.arange(self.config.sketch_cells, device=rows.device) % NUM_SLICES
            self.sketch.cells = self.sketch.cells * (slices % processes.world_size() == processes.rank())
        self._division = DividedRows()
        return lambda tensor: tensor[rows]

    def gather_rows(self) -> Callable[[Tensor], Tensor]:
        """Store the rows of all processes in each; all call it. Return the function that does so to other tensors."""
        gathering = RowGathering(self.ids, num_shared=self.first_row)
        self._set_rows({name: gathering.gather(tensor) for name, tensor in self._row_tensors().items()})
        if self.sketch is not None:
            cells = torch.stack(processes.gather(self.sketch.cells.cpu())).sum(0, dtype=torch.int32)
            self.sketch.cells = cells.to(self.ids.device)
        self._division = None
        return gathering.gather

    def collect_gradient(self) -> None:
        """Set the gradient of the rows of this process; all processes call it after the backward pass."""
        if self._division is not None:
            self.weight.grad = self._division.collect_gradient(self.weight)

    def _collect_observed(self) -> tuple[Tensor, Tensor]:
        """Return the distinct ids that all processes have observed, ascending, and their numbers of occurrences.

        If the rows are divided, only those of this process are returned.
        """
        observed = self.take_observed()
        ids, counts = torch.unique(observed[observed != 0], return_counts=True)
        if processes.world_size() > 1:
            all_ids, all_counts = (torch.cat(processes.gather(part.cpu())) for part in (ids, counts))
            ids, places = torch.unique(all_ids.to(ids.device), return_inverse=True)
            counts = torch.zeros_like(ids).index_add_(0, places, all_counts.to(ids.device))
        if self._division is not None:
            is_own = owners_of(ids) == processes.rank()
            ids, counts = ids[is_own], counts[is_own]
        return ids, counts

    def _use(self, rows: Tensor, counts: Tensor) -> None:
        """Count occurrences of rows at this step."""
        ages = (self.step - self.last_use[rows]).double()
        self.counts[rows] = (self.counts[rows] * torch.exp2(-ages / self.config.half_life) + counts).float()
        self.last_use[rows] = self.step

    def _admit(self, ids: Tensor, counts: Tensor) -> Tensor:
        """Give rows to distinct new ids, ascending, and return the rows; evict others if there are too many."""
        all_ids, num_ids = self._of_all(ids), int(self._of_all(torch.tensor([self.num_ids])).sum())
        if len(all_ids) > self.config.max_rows:
            is_within = ids <= all_ids.sort().values[self.config.max_rows - 1]
            ids, counts = ids[is_within], counts[is_within]
        num_excess = num_ids + min(len(all_ids), self.config.max_rows) - self.config.max_rows
        if num_excess > 0:
            self._evict(min(num_ids, max(num_excess, self.config.max_rows // EVICTION_SHARE)))
        if not len(ids):
            return ids
        rows = self._free_rows(len(ids))
        shared = self._shared_rows(ids)
        self.weight[rows] = self.weight[shared] if self.config.shared_rows else self._initial_vectors(ids)
        self.ids[rows], self.counts[rows], self.last_use[rows] = ids, counts.float(), self.step
        self._index.insert(ids, rows)
        return rows

    def _evict(self, count: int) -> None:
        """Free the rows of the `count` ids with the lowest values, among all processes if rows are divided."""
        rows = (self.ids != 0).nonzero()[:, 0]
        values = self.counts[rows].double().log2() + self.last_use[rows] / self.config.half_life
        limit = min(count, len(rows))
        if limit < len(rows):  # only candidates are sorted
            is_candidate = values <= values.kthvalue(limit).values
            rows, values = rows[is_candidate], values[is_candidate]
        ids = self.ids[rows]
        lowest = _lowest(self._of_all(values), self._of_all(ids), count)
        rows = rows[torch.isin(ids, lowest.to(ids.device))]
        self._index.remove(self.ids[rows])
        self.ids[rows], self.counts[rows], self.last_use[rows] = 0, 0.0, 0

    def _free_rows(self, count: int) -> Tensor:
        """Return the first `count` rows of no id; the table grows by blocks if there are fewer."""
        num_missing = count - (len(self.ids) - self.first_row - self.num_ids)
        if num_missing > 0:
            blocks = -(-num_missing // self.config.block_rows)
            num_rows = min(len(self.ids) + blocks * self.config.block_rows, self.first_row + self.config.max_rows)
            self._resize(num_rows)
        return self.first_row + (self.ids[self.first_row :] == 0).nonzero()[:count, 0]

    def _initial_vectors(self, ids: Tensor) -> Tensor:
        """Return the initial vectors of ids [n, D], which depend on nothing but the id."""
        return self.std * hash_normal(ids, self.embedding_dim).to(self.weight)

    def _shared_rows(self, ids: Tensor) -> Tensor:
        """Return the rows that ids have before they are admitted; 0 without shared rows, and for id 0."""
        count = self.config.shared_rows
        if not count:
            return torch.zeros_like(ids)
        return (1 + cells_of(ids, count=count, seed=_SHARED_SEED)) * (ids != 0)

    def _of_all(self, part: Tensor) -> Tensor:
        """Return the parts of all processes in one tensor if rows are divided; else `part`, which is the whole."""
        return part if self._division is None else torch.cat(processes.gather(part.cpu()))

    def _row_tensors(self) -> dict[str, Tensor]:
        """Return the tensors that have an entry for each row."""
        return {"weight": self.weight.data, "ids": self.ids, "counts": self.counts, "last_use": self.last_use}

    def _set_rows(self, tensors: dict[str, Tensor]) -> None:
        """Replace the tensors that have an entry for each row."""
        self._replace_rows(tensors)
        self._rebuild_index()

    def _replace_rows(self, tensors: dict[str, Tensor]) -> None:
        self.weight.data, self.weight.grad = tensors["weight"], None
        self.num_embeddings = len(self.weight)
        self.ids, self.counts, self.last_use = tensors["ids"], tensors["counts"], tensors["last_use"]

    def _resize(self, num_rows: int) -> None:
        """Change the number of rows at the end; new ones are free and 0."""
        tensors = self._row_tensors().items()
        self._replace_rows(
            {name: F.pad(tensor, (0, 0) * (tensor.dim() - 1) + (0, num_rows - len(tensor))) for name, tensor in tensors}
        )

    def _rebuild_index(self) -> None:
        rows = (self.ids != 0).nonzero()[:, 0]
        self._index = IdIndex(self.ids.device)
        self._index.insert(self.ids[rows], rows)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the module as any other, and its index with it."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self._index.device != self.ids.device:
            self._rebuild_index()
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take over rows of any number, and rebuild the index."""
        saved = state_dict.get(f"{prefix}ids")
        if saved is not None:
            self._resize(len(saved))
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._rebuild_index()

    def _read(self, ids: Tensor) -> Tensor:
        if self._division is None or not self.training:
            return super()._read(ids)
        return self._division.read(ids, self.weight, self.rows_of)


def _lowest(values: Tensor, ids: Tensor, count: int) -> Tensor:
    """Return the ids of the `count` lowest values; of equal ones, the smaller ids."""
    order = ids.argsort()
    order = order[values[order].argsort(stable=True)]
    return ids[order[:count]]
