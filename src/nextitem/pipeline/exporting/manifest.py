"""Files that every export has: manifest.json, README.md, and items.parquet with the ids of the items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl

from nextitem.core.catalog import Catalog
from nextitem.pipeline.bundle import save_encodings, write_json
from nextitem.pipeline.exporting.onnx_files import Input
from nextitem.pipeline.runs import Run

SESSION = """import numpy as np
import onnxruntime
import pyarrow.parquet as pq

ids = pq.read_table("items.parquet")["item_id"].to_pylist()  # item number n is ids[n - 1]
numbers = {item: number for number, item in enumerate(ids, start=1)}
history = [HISTORY]  # oldest first
seen = [numbers[item] for item in history]
feeds = {FEEDS}
"""


def write_items(folder: Path, catalog: Catalog, *columns: pl.Series) -> None:
    """Write items.parquet: number, item_id and title of each item, in order of the number, and further columns."""
    numbers = pl.Series("number", range(1, catalog.num_items + 1), dtype=pl.Int64)
    frame = pl.DataFrame([numbers, catalog.ids.external.alias("item_id"), catalog.titles().alias("title"), *columns])
    frame.write_parquet(folder / "items.parquet")


def write_manifest(folder: Path, run: Run, form: str, entries: Mapping[str, Any]) -> None:
    """Write manifest.json: format and version, model, number of items, and the entries of the format."""
    head = {"format": form, "nextitem": version("nextitem"), "model": run.name, "num_items": run.model.num_items}
    write_json(folder / "manifest.json", {**head, **entries})


def write_encodings(folder: Path, catalog: Catalog, inputs: Sequence[Input]) -> None:
    """Write requests.json and events.json, how values become codes, if an input needs them."""
    if any(each.name not in ("items", "timestamps", "request_times", "users") for each in inputs):
        save_encodings(folder, catalog)


def write_readme(
    folder: Path, *, title: str, what: str, code: str, inputs: Sequence[Input] = (), notes: str = ""
) -> None:
    """Write README.md: what the files are, their inputs, and code that uses them without this package."""
    rows = [f"| `{each.name}` | {each.dtype} | {_shape(each)} | {each.meaning} |" for each in inputs]
    table = ["", "| input | type | shape | meaning |", "| --- | --- | --- | --- |", *rows] if rows else []
    lines = [f"# {title}", "", what, *table, "", "```python", code.strip(), "```", *(["", notes] if notes else [])]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def session_code(catalog: Catalog, inputs: Sequence[Input]) -> str:
    """Return Python code that turns a history of two items into inputs of an ONNX file; other inputs are missing."""
    examples = ", ".join(repr(item) for item in catalog.ids.external.head(2).to_list())
    feeds = ['"items": np.array([seen])', *(f'"{each.name}": {_missing(each)}' for each in inputs[1:])]
    joined = ", ".join(feeds) if len(feeds) == 1 else "\n    " + ",\n    ".join(feeds) + ",\n"
    return SESSION.replace("HISTORY", examples).replace("{FEEDS}", "{" + joined + "}")


def _missing(each: Input) -> str:
    """Return the expression of a missing value of an input, for one request."""
    if each.dtype != "int64":
        return f"np.full({'(1, len(seen))' if 'length' in each.shape else '1'}, np.nan, np.{each.dtype})"
    if len(each.shape) == 2 and "length" not in each.shape:
        return "np.full((1, 1), -1)"
    return f"np.zeros({'(1, len(seen))' if 'length' in each.shape else '1'}, np.int64)"


def _shape(each: Input) -> str:
    return "[" + ", ".join(str(size) for size in each.shape) + "]"
