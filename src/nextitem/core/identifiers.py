"""IdentifierTable: the semantic ID (code sequence) of each item; a versioned table to which items are only appended."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from nextitem.core.errors import UserError
from nextitem.core.tensor_files import save_tensors


@dataclass(frozen=True, eq=False)
class IdentifierTable:
    """Semantic IDs of items 1..N.

    Items may share a code sequence (a collision): the sequence then leads to several items, all of them reachable.

    Attributes:
        codes: [N + 1, M] int32; row i is the code sequence of item i, row 0 is all -1.
        codebook_sizes: number of codes of each of the M levels; level m has the codes 0..codebook_sizes[m] - 1.
        catalog_fingerprint: fingerprint of the catalogue that the table belongs to.
        tokenizer: registry name of the tokenizer that generated the table.
        version: 1, plus the number of appends.
        report: quality figures of the tokenizer, JSON values, or None.

    """

    codes: Tensor
    codebook_sizes: tuple[int, ...]
    catalog_fingerprint: str
    tokenizer: str = ""
    version: int = 1
    report: dict[str, Any] | None = None

    def __repr__(self) -> str:
        """Return one line: how many items, codes and levels, and the tokenizer."""
        sizes = " x ".join(map(str, self.codebook_sizes))
        tokenizer = self.tokenizer or "unknown"
        return f"IdentifierTable({self.num_items:,} items, codebooks {sizes}, tokenizer {tokenizer!r})"

    def __post_init__(self) -> None:
        if self.codes.dim() != 2 or self.codes.dtype != torch.int32:
            raise ValueError(f"codes must be int32 [N + 1, M], got {self.codes.dtype} {tuple(self.codes.shape)}")
        if len(self.codebook_sizes) != self.codes.shape[1]:
            raise ValueError(f"{self.codes.shape[1]} levels but {len(self.codebook_sizes)} codebook sizes")
        real = self.codes[1:]
        sizes = torch.tensor(self.codebook_sizes, dtype=torch.int32)
        if bool((real < 0).any()) or bool((real >= sizes).any()):
            raise ValueError(f"codes must lie below the codebook sizes {self.codebook_sizes} and not be negative")
        if bool((self.codes[0] != -1).any()):
            raise ValueError("row 0 is padding and must be -1")

    @classmethod
    def from_item_codes(cls, codes: Tensor, *, codebook_sizes: tuple[int, ...], **fields: Any) -> IdentifierTable:
        """Return a table with the codes `codes [N, M]` of items 1..N, after a padding row."""
        padding = torch.full((1, codes.shape[1]), -1, dtype=torch.int32)
        return cls(torch.cat([padding, codes.to(torch.int32)]), codebook_sizes, **fields)

    def without_extra_level(self) -> IdentifierTable:
        """Return the table without the level that only makes equal codes unique: the levels of the tokenizer alone."""
        levels = len((self.report or {}).get("levels", self.codebook_sizes))
        codes = self.codes[:, :levels].contiguous()
        return IdentifierTable(codes, self.codebook_sizes[:levels], self.catalog_fingerprint, self.tokenizer)

    @property
    def num_items(self) -> int:
        """Number of items (N)."""
        return self.codes.shape[0] - 1

    @property
    def num_levels(self) -> int:
        """Number of levels, the length of a code sequence (M)."""
        return self.codes.shape[1]

    @cached_property
    def is_unique(self) -> bool:
        """Whether no two items share a code sequence."""
        return int(torch.unique(self.codes[1:], dim=0).shape[0]) == self.num_items

    def continues(self, former: IdentifierTable) -> bool:
        """Return whether the table is `former` or a later version of it: same codebooks, same codes of its items."""
        former_items = self.codes[: former.num_items + 1]
        return self.codebook_sizes == former.codebook_sizes and torch.equal(former_items, former.codes)

    def append(self, codes: Tensor, *, catalog_fingerprint: str) -> IdentifierTable:
        """Return the next version of the table, with `codes [new, M]` of new items after the unchanged old rows.

        `catalog_fingerprint` is the fingerprint of the catalogue with the new items.
        """
        return replace(
            self,
            codes=torch.cat([self.codes, codes.to(torch.int32)]),
            catalog_fingerprint=catalog_fingerprint,
            version=self.version + 1,
        )

    def save(self, folder: Path) -> None:
        """Write identifiers.safetensors and identifiers.json into `folder`, which is created if it does not exist."""
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors({"codes": self.codes.contiguous()}, folder / "identifiers.safetensors")
        meta = {
            "codebook_sizes": list(self.codebook_sizes),
            "catalog_fingerprint": self.catalog_fingerprint,
            "tokenizer": self.tokenizer,
            "version": self.version,
            "report": self.report,
        }
        (folder / "identifiers.json").write_text(json.dumps(meta, indent=2, sort_keys=True) + "\n")

    @classmethod
    def load(cls, folder: Path) -> IdentifierTable:
        """Return the table that `save` wrote into `folder`; UserError if it is missing or damaged."""
        try:
            meta = json.loads((folder / "identifiers.json").read_text())
            codes = load_file(folder / "identifiers.safetensors")["codes"]
            return cls(
                codes,
                tuple(meta["codebook_sizes"]),
                meta["catalog_fingerprint"],
                tokenizer=meta["tokenizer"],
                version=meta["version"],
                report=meta["report"],
            )
        except FileNotFoundError as error:
            raise UserError(
                f"{folder} contains no identifiers ({error.filename}); generate them with: nextitem tokenize"
            ) from None
        except (KeyError, TypeError, ValueError, SafetensorError) as error:
            raise UserError(
                f"{folder}: the identifier table is damaged ({error}); generate it again with: nextitem tokenize"
            ) from None
