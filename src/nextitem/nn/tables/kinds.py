"""Settings of the kinds of tables."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nextitem.core import config as configs
from nextitem.nn.tables.id_hash import NUM_SLICES


class DenseRows(configs.Choice):
    """One row for each item or value that the catalogue has when training begins."""

    kind: Literal["dense"] = "dense"
    """A row for each item or value of the catalogue."""


class GrowingRows(configs.Choice):
    """A row for each id that training meets often enough, up to a bound; ids may come without end."""

    kind: Literal["growing"] = "growing"
    """A row for each id that training meets, up to a bound."""
    max_rows: int = Field(1_000_000, ge=1)
    """Largest number of ids that have a row; beyond it, ids that are rarely or no longer used lose theirs."""
    block_rows: int = Field(4096, ge=1)
    """Number of rows by which the table grows."""
    admit_after: int = Field(1, ge=1)
    """Number of occurrences in training after which an id gets a row."""
    shared_rows: int = Field(NUM_SLICES, ge=0, multiple_of=NUM_SLICES)
    """Number of rows that ids without a row share, by their hash (a multiple of 64); 0: such ids have the vector 0."""
    half_life: float = Field(10_000.0, gt=0)
    """Number of optimizer steps after which an occurrence counts half, when it is decided which ids lose their rows."""
    sketch_cells: int = Field(2**18, ge=NUM_SLICES, multiple_of=NUM_SLICES)
    """Number of cells of each hash function that count the occurrences of ids without a row (a multiple of 64)."""
    is_divided: bool = False
    """Whether each of several training processes stores only its own rows; otherwise each stores all."""

    def idle_fields(self) -> dict[str, str]:
        """Return the fields that have no effect under the other settings, each with the reason."""
        return configs.idle_unless(self.admit_after > 1, "admit_after is 1, so nothing is counted", "sketch_cells")


class HashedRows(configs.Choice):
    """A fixed number of rows; the vector of an id is the sum of several rows, which its hashes select."""

    kind: Literal["hashed"] = "hashed"
    """A fixed number of rows that all ids share."""
    rows: int = Field(100_000, ge=1)
    """Number of rows."""
    hashes: int = Field(2, ge=1)
    """Number of hash functions: each id is the sum of as many rows."""


TableConfig = DenseRows | GrowingRows | HashedRows
