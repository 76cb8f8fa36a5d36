"""Fake generators with known probabilities, for tests of code that all models share."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.identifiers import IdentifierTable
from nextitem.core.jagged import Jagged
from nextitem.core.roles import GeneratorState


class FakeGenerator:
    """A Generator that reads its logits from tables: `tables[s] [U, prefixes of length s, C]`.

    A prefix is numbered by reading its codes as digits, the first code most significant. User u reads row
    u - 1 of each table. Steps beyond the trie's levels (lists of several items) have further tables.
    It checks its arguments: codes are in range, and `shared` is never copied per beam.
    """

    def __init__(self, tables: list[Tensor]) -> None:
        self.tables = tables
        self.calls = 0

    @classmethod
    def random(
        cls, codebook_sizes: tuple[int, ...], *, users: int, seed: int, items_per_list: int = 1
    ) -> FakeGenerator:
        """Return a generator with normal logits for every prefix of up to `items_per_list` items."""
        generator = torch.Generator().manual_seed(seed)
        sizes = codebook_sizes * items_per_list
        return cls(
            [torch.randn((users, prod(sizes[:step]), size), generator=generator) * 2 for step, size in enumerate(sizes)]
        )

    def start(self, batch: SequenceBatch) -> GeneratorState:
        assert batch.user_ids is not None
        path = batch.user_ids.new_empty((batch.num_requests, 1, 0))
        return GeneratorState({"user": batch.user_ids - 1}, {"path": path})

    def step(self, state: GeneratorState, codes: Tensor | None) -> tuple[Tensor, GeneratorState]:
        self.calls += 1
        user, path = state.shared["user"], state.beams["path"]
        assert user.dim() == 1
        assert len(user) == len(path)
        if codes is not None:
            assert codes.shape == path.shape[:2]
            size = self.tables[path.shape[2]].shape[2]
            assert bool(((codes >= 0) & (codes < size)).all())
            path = torch.cat([path, codes[..., None]], dim=2)
        prefix = path.new_zeros(path.shape[:2])
        for position in range(path.shape[2]):
            prefix = prefix * self.tables[position].shape[2] + path[..., position]
        logits = self.tables[path.shape[2]][user[:, None], prefix]
        return logits, GeneratorState(state.shared, {"path": path})

    def log_prob(self, user: int, codes: list[int]) -> float:
        """Return the log-probability of one code sequence, computed one code at a time: the oracle."""
        total, prefix = 0.0, 0
        for position, code in enumerate(codes):
            table = self.tables[position]
            total += float(table[user - 1, prefix].double().log_softmax(0)[code])
            prefix = prefix * table.shape[2] + code
        return total

    def last_logit(self, user: int, codes: list[int]) -> float:
        """Return the logit of the last code of a sequence."""
        prefix = 0
        for position, code in enumerate(codes[:-1]):
            prefix = prefix * self.tables[position].shape[2] + code
        return float(self.tables[len(codes) - 1][user - 1, prefix, codes[-1]])


class FakeParallelGenerator(FakeGenerator):
    """A FakeGenerator that also accepts several codes at once."""

    def steps(self, state: GeneratorState, codes: Tensor) -> tuple[list[Tensor], GeneratorState]:
        logits = []
        for position in range(codes.shape[2]):
            step_logits, state = self.step(state, codes[:, :, position])
            logits.append(step_logits)
        self.calls -= codes.shape[2] - 1
        return logits, state


def identifier_table(rows: list[list[int]], codebook_sizes: tuple[int, ...]) -> IdentifierTable:
    """Return the table of items 1..N with these code sequences."""
    codes = torch.tensor(rows, dtype=torch.int32).reshape(len(rows), len(codebook_sizes))
    return IdentifierTable.from_item_codes(codes, codebook_sizes=codebook_sizes, catalog_fingerprint="fake")


def requests(users: int, *, excluded: list[list[int]] | None = None, allowed: Tensor | None = None) -> SequenceBatch:
    """Return one request of each user 1..users, with a history of one item."""
    return SequenceBatch(
        items=Jagged.from_rows([[1]] * users),
        user_ids=torch.arange(1, users + 1),
        excluded=None if excluded is None else Jagged.from_rows(excluded),
        allowed=allowed,
    )
