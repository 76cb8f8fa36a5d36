"""Read and write semantic IDs in the files of other projects: LETTER, LC-Rec, MiniOneRec (JSON) and GRID (a tensor).

In the JSON files the codes of item 7 are "7": ["<a_183>", "<b_70>", "<c_232>"]: a letter for the level, a number for
the code. GRID saves a tensor [levels, items]. All of them number items from 0. LC-Rec writes the number of each item
into another file: NAME.item2id, lines of item id, tab, number.
"""

from __future__ import annotations

import json
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor

from nextitem.core.catalog import Catalog
from nextitem.core.errors import UserError
from nextitem.core.identifiers import IdentifierTable

FORMATS = ("letter", "minionerec", "grid")
GRID_FILE = "merged_predictions_tensor.pt"
MAX_CODE = 1 << 24  # maximal number of codes of one level; larger numbers are not accepted as codes

_TOKEN = re.compile(r"<([a-z])_(\d{1,9})>")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, eq=False)
class ForeignCodes:
    """Codes read from a file of another project.

    Attributes:
        keys: n distinct keys: item ids, or numbers of items.
        codes: [n, M] int64.
        notes: what reading had to assume or fill in, in words.

    """

    keys: list[str]
    codes: Tensor
    notes: tuple[str, ...] = ()

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Return the largest code of each level, plus 1: the files do not contain the sizes of the codebooks."""
        return tuple(int(size) + 1 for size in self.codes.max(dim=0).values)


def read_codes(file: Path, *, form: str, num_items: int) -> ForeignCodes:
    """Read the codes of a file, or of the only file of that format in a folder.

    Args:
        file: the file or folder.
        form: one of FORMATS.
        num_items: number of items (N); with it, a transposed tensor of GRID is recognised.

    Raises:
        UserError: the file is of another format, or damaged.

    """
    pattern = GRID_FILE if form == "grid" else "*.index*.json"
    if file.is_dir():
        matches = sorted(file.rglob(pattern))
        if len(matches) != 1:
            raise UserError(f"{file}: contains {len(matches)} files {pattern}; give one file")
        file = matches[0]
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    return _read_tensor(file, num_items) if form == "grid" else _read_index(file)


def read_item_numbers(file: Path) -> dict[str, str]:
    """Return number -> item id from lines of item id, tab, number; raise UserError that names the first other line."""
    numbers: dict[str, str] = {}
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; --item-ids needs lines of item id, tab, number") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({error})") from None
    for line_number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        item, _, number = line.rpartition("\t")
        if not item or not number.strip().isdigit():
            raise UserError(f"{file}: line {line_number} is not item id, tab, number: {line[:60]!r}")
        key = str(int(number))
        if key in numbers:
            raise UserError(f"{file}: line {line_number}: number {key} is already that of {numbers[key]!r}")
        numbers[key] = item
    return numbers


def codes_of_catalog(
    foreign: ForeignCodes, catalog: Catalog, numbers: Mapping[str, str] | None, *, where: str
) -> tuple[Tensor, int]:
    """Return codes [N, M] int64 in the order of the catalogue, and the number of keys that are not its items.

    Args:
        foreign: codes of a file.
        catalog: the items.
        numbers: key -> item id; None: keys are item ids.
        where: the name of the file in messages.

    Raises:
        UserError: an item has no codes.

    """
    ids = foreign.keys if numbers is None else [numbers.get(key, "") for key in foreign.keys]
    places = torch.from_numpy(catalog.ids.encode(pl.Series("id", ids, dtype=pl.String)).copy()).long()
    rows = torch.full((catalog.num_items + 1,), -1)
    is_known = places > 0
    rows[places[is_known]] = torch.nonzero(is_known).flatten()
    missing_rows = torch.nonzero(rows[1:] < 0).flatten()
    if len(missing_rows):
        example = catalog.ids.external[int(missing_rows[0])]
        first_keys = ", ".join(foreign.keys[:3])
        raise UserError(
            f"{where}: {len(missing_rows):,} of {catalog.num_items:,} items of the data have no codes, for example "
            f"{example!r}; its keys are {first_keys}, ...: if these are numbers of items, add --item-ids with "
            "their item ids"
        )
    return foreign.codes[rows[1:]], int((~is_known).sum())


def write_codes(table: IdentifierTable, catalog: Catalog, folder: Path, *, form: str) -> None:
    """Write semantic IDs into a folder in the format of another project.

    The files are NAME.index.json (and NAME.item.json for MiniOneRec) or GRID's tensor, and NAME.item2id. NAME is the
    name of the folder. Items are numbered from 0 in the order of the catalogue.
    """
    codes = table.codes[1:]
    name = folder.name
    if form == "grid":
        torch.save(codes.long().T.contiguous(), folder / GRID_FILE)
    else:
        if table.num_levels > len(_LETTERS):
            raise UserError(f"--format {form} has letters for {len(_LETTERS)} levels, and there are {table.num_levels}")
        index = {
            str(number): [f"<{letter}_{code}>" for letter, code in zip(_LETTERS, row, strict=False)]
            for number, row in enumerate(codes.tolist())
        }
        _write_json(folder / f"{name}.index.json", index)
    if form == "minionerec":
        _write_json(folder / f"{name}.item.json", _descriptions(catalog))
    ids = catalog.ids.external.cast(pl.String)
    lines = "".join(f"{item}\t{number}\n" for number, item in enumerate(ids))
    (folder / f"{name}.item2id").write_text(lines, encoding="utf-8")


def _read_index(file: Path) -> ForeignCodes:
    """Read the codes of a NAME.index.json, and fill in the missing ones of items that have fewer levels."""
    try:
        index = json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=_distinct)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: is no JSON of semantic IDs, or is truncated ({error})") from None
    if not isinstance(index, dict) or not index:
        raise UserError(f'{file}: is no table of semantic IDs: it should begin with {{"0": ["<a_1>", "<b_2>", ...]')
    keys, rows = list(index), []
    for key, tokens in index.items():
        rows.append(_codes_of(tokens, key, file))
    depth = max(len(row) for row in rows)
    num_short = sum(len(row) < depth for row in rows)
    notes: tuple[str, ...] = ()
    if num_short:
        # MiniOneRec adds a level to items that share their codes, and only to these.
        unused_codes = _unused_codes(rows, depth)
        rows = [row + unused_codes[len(row) :] for row in rows]
        notes = (f"{num_short:,} items have fewer than {depth} codes: the missing ones are filled with an unused code",)
    return ForeignCodes(keys, torch.tensor(rows, dtype=torch.int64), notes)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return pairs of a JSON object as a dictionary; raise ValueError if a key occurs twice."""
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} occurs twice")
    return table


def _codes_of(tokens: object, key: str, file: Path) -> list[int]:
    """Return the codes of an item from its tokens, such as ['<a_1>', '<b_2>']; raise UserError if they are others."""
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise UserError(f"{file}: item {key!r}: {str(tokens)[:60]!r} is no list of codes such as ['<a_1>', '<b_2>']")
    codes = []
    for level, token in enumerate(tokens):
        match = _TOKEN.fullmatch(token)
        if match is None or level >= len(_LETTERS) or match[1] != _LETTERS[level] or int(match[2]) >= MAX_CODE:
            letter = _LETTERS[min(level, len(_LETTERS) - 1)]
            raise UserError(f"{file}: item {key!r}: {token!r} is no code of level {level + 1}, such as <{letter}_12>")
        codes.append(int(match[2]))
    return codes


def _unused_codes(rows: list[list[int]], depth: int) -> list[int]:
    """Return a code that no item has, for every level: 0 if it is unused, otherwise one more than the largest."""
    unused_codes = []
    for level in range(depth):
        used = {row[level] for row in rows if len(row) > level}
        unused_codes.append(0 if 0 not in used else max(used) + 1)
    return unused_codes


def _read_tensor(file: Path, num_items: int) -> ForeignCodes:
    """Read the codes of a tensor [levels, items], or [items, levels] if only that fits the number of items."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings on the version of pickle, for files that are then refused
            tensor = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{file}: contains more than a tensor, and reading it could run code, so it is not read; save the tensor "
            "alone: torch.save(tensor, FILE)"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{file}: is no tensor of torch, or is truncated ({reason})") from None
    if not isinstance(tensor, Tensor) or tensor.dim() != 2 or not tensor.numel():
        what = f"a tensor {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
        raise UserError(f"{file}: contains {what}; semantic IDs of GRID are a tensor [levels, items]")
    codes = tensor.to(torch.int64)
    if tensor.is_complex() or bool((codes != tensor).any()):
        raise UserError(
            f"{file}: contains real numbers: these are GRID's embeddings; its codes are in the file of the same name "
            "that the inference of semantic IDs writes into pickle/"
        )
    notes: tuple[str, ...] = ()
    levels, items = codes.shape
    if items != num_items and (levels == num_items or levels > items):
        codes, notes = codes.T, (f"the tensor is {levels:,} x {items:,}: it was read as [items, levels]",)
    if bool((codes < 0).any()) or bool((codes >= MAX_CODE).any()):
        raise UserError(f"{file}: contains codes below 0 or above {MAX_CODE:,}")
    return ForeignCodes([str(number) for number in range(codes.shape[1])], codes.T.contiguous(), notes)


def _descriptions(catalog: Catalog) -> dict[str, dict[str, str]]:
    """Return the contents of MiniOneRec's NAME.item.json: texts of each item, "" for unknown ones.

    These are the title and the description, and brand and categories if the catalogue has them.
    """
    columns = [name for name in ("description", "brand", "categories") if name in catalog.table.columns]
    texts = pl.DataFrame({"title": catalog.titles()})
    for name in columns:
        column = catalog.table[name]
        is_list = isinstance(column.dtype, pl.List)
        text = column.cast(pl.List(pl.String)).list.join(",") if is_list else column.cast(pl.String)
        texts = texts.with_columns(text.fill_null("").alias(name))
    if "description" not in columns:
        texts = texts.with_columns(description=pl.lit("") if catalog.text is None else catalog.text)
    return {str(number): row for number, row in enumerate(texts.iter_rows(named=True))}


def _write_json(file: Path, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")
