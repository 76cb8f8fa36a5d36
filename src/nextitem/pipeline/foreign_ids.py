"""Import of semantic IDs of other projects into a folder for `train --ids`, and export to their file formats."""

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
    """Import semantic IDs of another project for the items of a data set.

    Args:
        file: the file of codes, or the folder that contains it.
        dataset: the data set whose items have these codes.
        out: the folder to write, for `train(ids=...)` and `train --ids`; refused if it is not empty.
        form: format of the file: letter, minionerec or grid.
        item_ids: a file with lines of item id, tab, number; None: NAME.item2id if it is beside NAME.index.json,
            otherwise the keys of the file are item ids.
        resume: continue an import that was interrupted.
        overwrite: replace semantic IDs or a run in `out`.
        log: function that is called with each note.

    Returns:
        The table of codes.

    Raises:
        UserError: the file is damaged or of another format, or an item of the data has no codes.

    """
    catalog = dataset.catalog
    foreign = read_codes(Path(file), form=form, num_items=catalog.num_items)
    numbers_beside = Path(file).with_name(Path(file).name.split(".index")[0] + ".item2id")
    if item_ids is None and numbers_beside.is_file():
        item_ids = numbers_beside
        log(f"item numbers are read from {numbers_beside}")
    numbers = None if item_ids is None else read_item_numbers(Path(item_ids))
    codes, num_unknown = codes_of_catalog(foreign, catalog, numbers, where=str(file))
    for note in foreign.notes:
        log(note)
    if num_unknown:
        log(f"left out {num_unknown:,} items of {file} that are not in the data set")
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
    """Export semantic IDs to the file format of another project.

    Args:
        source: a folder with semantic IDs: of `tokenize`, of `import`, or a run.
        form: the format: letter, minionerec or grid.
        out: the folder to write; refused if it is not empty. docs/formats.md describes its files.
        overwrite: replace an export or a run in `out`.

    Returns:
        The folder `out`.

    Raises:
        UserError: an unknown format, a folder without semantic IDs, or codes that the format cannot express.

    """
    if form not in FORMATS:
        models = "onnx, vectors, generator or transformers for a model"
        raise UserError(f"--format {form!r}: choose one of {', '.join(FORMATS)} for semantic IDs, {models}")
    folder = Path(source)
    if not (folder / "identifiers.json").is_file():
        raise UserError(f"{folder} contains no semantic IDs; create them with: nextitem tokenize")
    catalog = load_catalog(folder)
    assert catalog.identifiers is not None, "identifiers.json exists"
    target = prepare_out(out, overwrite=overwrite)
    write_codes(catalog.identifiers, catalog, target, form=form)
    return target


def _content(catalog: Catalog) -> Tensor | None:
    """Return content vectors [N, D] of the default encoder, to compare codes with; None if items have no content."""
    try:
        return content_vectors(catalog, ContentConfig())[1:]
    except UserError:
        return None
