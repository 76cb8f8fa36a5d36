"""Semantic IDs of other projects as a folder for `train --ids`, and ours as files for other projects."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from nextitem.core.catalog import Catalog
from nextitem.core.dataset import Dataset
from nextitem.core.errors import UserError
from nextitem.core.identifiers import IdentifierTable
from nextitem.data.semantic_id_files import FORMATS, codes_of_catalog, read_codes, read_item_numbers, write_codes
from nextitem.data.text import ContentConfig, content_vectors
from nextitem.decoding.trie import PrefixTrie
from nextitem.pipeline.bundle import load_catalog, save_catalog
from nextitem.pipeline.folders import prepare_out, replace_files
from nextitem.pipeline.options import Log, silent
from nextitem.tokenizers.quality import codes_report


def import_identifiers(
    file: str | Path,
    dataset: Dataset,
    out: str | Path,
    *,
    form: str,
    item_ids: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    log: Log = silent,
) -> IdentifierTable:
    """Write the codes of a file for the items of a data set into `out`, a folder for `train --ids`; return them.

    `form` is letter, minionerec or grid. `item_ids` is a file of lines item id, tab, number; if it is not given and
    NAME.item2id lies beside NAME.index.json, that is used. Without either the keys of the file are item ids. UserError
    if an item of the data has no codes.
    """
    catalog = dataset.catalog
    foreign = read_codes(Path(file), form=form, num_items=catalog.num_items)
    numbers_beside = Path(file).with_name(Path(file).name.split(".index")[0] + ".item2id")
    if item_ids is None and numbers_beside.is_file():
        item_ids = numbers_beside
        log(f"numbers of items are those of {numbers_beside}")
    numbers = None if item_ids is None else read_item_numbers(Path(item_ids))
    codes, num_unknown = codes_of_catalog(foreign, catalog, numbers, where=str(file))
    for note in foreign.notes:
        log(note)
    if num_unknown:
        log(f"left out {num_unknown:,} items of {file} that the data set does not have")
    sizes = foreign.codebook_sizes
    table = IdentifierTable.from_item_codes(
        codes,
        codebook_sizes=sizes,
        catalog_fingerprint=catalog.fingerprint,
        tokenizer=form,
        report=codes_report(codes, sizes, content=_content(catalog)),
    )
    folder = prepare_out(out, resume=resume, overwrite=overwrite)

    def write(fresh: Path) -> None:
        save_catalog(fresh, catalog.with_identifiers(table))
        PrefixTrie.from_table(table).save(fresh / "trie.safetensors")

    replace_files(folder, write)
    return table


def export_identifiers(source: str | Path, *, form: str, out: str | Path, overwrite: bool = False) -> Path:
    """Write the semantic IDs in a folder (of `tokenize`, `import` or a run) in the form of another project.

    `form` is letter, minionerec or grid. Returns the folder `out`; docs/formats.md says what is in it.
    """
    if form not in FORMATS:
        raise UserError(f"--format {form!r}: choose one of {', '.join(FORMATS)}")
    folder = Path(source)
    if not (folder / "identifiers.json").is_file():
        raise UserError(f"{folder} holds no semantic IDs; make them with: nextitem tokenize")
    catalog = load_catalog(folder)
    assert catalog.identifiers is not None, "identifiers.json is there"
    target = prepare_out(out, overwrite=overwrite)
    write_codes(catalog.identifiers, catalog, target, form=form)
    return target


def _content(catalog: Catalog) -> Tensor | None:
    """Content vectors [N, D] of the default encoder, to compare the codes with; None if the data have no content."""
    try:
        return content_vectors(catalog, ContentConfig())[1:]
    except UserError:
        return None
