"""Export: transformers loads it, and its constrained beam search returns the same items as the package's own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nextitem as ni
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.errors import UserError
from nextitem.core.identifiers import IdentifierTable
from nextitem.core.ids import IdMap
from nextitem.core.jagged import Jagged
from nextitem.core.recommendations import Recommendations
from nextitem.decoding.transformers_generate import CatalogueLogitsProcessor, prompts
from nextitem.decoding.trie import PrefixTrie
from nextitem.models.cobra import Cobra, CobraConfig
from nextitem.pipeline.bundle import load_catalog
from nextitem.pipeline.export import export
from nextitem.pipeline.exporting.transformers_export import as_gpt2
from nextitem.testing.known_answers import planted_clusters

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

transformers = pytest.importorskip("transformers")

ITEMS, SIZES, LONGEST = 60, (5, 40, 6), 4


def decoder(seed: int = 0, items: int = ITEMS, sizes: tuple[int, ...] = SIZES) -> Cobra:
    """Return a decoder with random codes, some shared by items, and weights large enough to separate codes."""
    generator = torch.Generator().manual_seed(seed)
    ids = pl.Series("item_id", range(items))
    catalog = Catalog(IdMap(ids), pl.DataFrame({"item_id": ids}))
    codes = torch.stack([torch.randint(size, (items,), generator=generator) for size in sizes], dim=1)
    codes[: items // 6] = codes[-(items // 6) :]
    table = IdentifierTable.from_item_codes(codes, codebook_sizes=sizes, catalog_fingerprint=catalog.fingerprint)
    config = CobraConfig(dense=False, width=16, max_history_length=LONGEST, beam_width=8)
    model = Cobra(config, catalog.with_identifiers(table).with_content(torch.zeros(items + 1, 1)))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4, generator=generator)
    return model.eval()


def generate_with_transformers(
    exported: GPT2LMHeadModel, model: Cobra, batch: SequenceBatch, *, beams: int, k: int
) -> tuple[Recommendations, torch.Tensor, torch.Tensor]:
    """Return recommendations of transformers' beam search, and its code sequences and scores."""
    table = model.catalog.identifiers
    assert table is not None
    tokens, mask = prompts(table, batch, max_history_length=LONGEST)
    processor = CatalogueLogitsProcessor(model.trie, batch, prompt_length=tokens.shape[1])
    output = exported.generate(
        tokens,
        attention_mask=mask,
        logits_processor=transformers.LogitsProcessorList([processor]),
        num_beams=beams,
        num_return_sequences=beams,
        max_new_tokens=model.trie.num_levels,
        length_penalty=0.0,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    items = processor.items(output.sequences, output.sequences_scores, k=k)
    codes = output.sequences[:, tokens.shape[1] :]
    return items, codes.unflatten(0, (batch.num_requests, beams)), output.sequences_scores


HISTORIES = [[1, 2, 3, 4, 5, 6], [7], [9, 30, 2]]


def test_prompts_are_padded_on_the_left() -> None:
    table = IdentifierTable.from_item_codes(
        torch.tensor([[0, 1], [1, 0]]), codebook_sizes=(2, 3), catalog_fingerprint=""
    )
    tokens, mask = prompts(table, SequenceBatch(Jagged.from_rows([[2], [1, 2, 1]])), max_history_length=2)
    assert tokens.tolist() == [[5, 5, 1, 2], [1, 2, 0, 3]]
    assert mask.tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]


def test_generate_from_a_saved_folder_returns_the_same_items_as_the_model(tmp_path: Path) -> None:
    model = decoder()
    as_gpt2(model).save_pretrained(tmp_path)
    exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(exported).__name__ == "GPT2LMHeadModel"
    allowed = torch.rand((3, ITEMS + 1), generator=torch.Generator().manual_seed(1)) < 0.6
    allowed[1] = False
    allowed[1, 17] = True  # one item alone
    for batch in (
        SequenceBatch(Jagged.from_rows(HISTORIES)),
        SequenceBatch(Jagged.from_rows(HISTORIES), excluded=Jagged.from_rows([list(range(1, 40)), [3], []])),
        SequenceBatch(Jagged.from_rows(HISTORIES), allowed=allowed, excluded=Jagged.from_rows([[5, 6, 8], [], [2]])),
    ):
        ours = model.recommend(batch, 8)
        theirs, _, _ = generate_with_transformers(exported, model, batch, beams=8, k=8)
        assert torch.equal(theirs.item_ids, ours.item_ids)
        torch.testing.assert_close(theirs.scores, ours.scores, atol=1e-4, rtol=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_no_sequence_is_illegal(data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 5))
    model = decoder(seed, items=12, sizes=(3, 4))
    exported = as_gpt2(model)
    item = st.integers(1, 12)
    history = st.lists(item, min_size=1, max_size=6)
    histories = data.draw(st.lists(history, min_size=1, max_size=3))
    excluded = [data.draw(st.lists(item, max_size=12, unique=True)) for _ in histories]
    allowed = torch.tensor([[False, *data.draw(st.lists(st.booleans(), min_size=12, max_size=12))] for _ in histories])
    batch = SequenceBatch(Jagged.from_rows(histories), excluded=Jagged.from_rows(excluded), allowed=allowed)
    beams = data.draw(st.integers(2, 14))
    answer, all_codes, scores = generate_with_transformers(exported, model, batch, beams=beams, k=beams)
    ours = model.recommend(batch, beams)
    if beams >= 8:
        assert torch.equal(answer.item_ids, ours.item_ids)
    legal = batch.legal(12)
    assert legal is not None
    for row, sequences in enumerate(all_codes.tolist()):
        legal_codes = {
            tuple((model.codes[n] + model.code_offsets).tolist()) for n in legal[row].nonzero()[:, 0].tolist()
        }
        # Scores of -1e9 and less mark padding, if fewer than W sequences are legal.
        is_legal = scores.view(len(all_codes), -1)[row] > -1e8
        assert all(
            tuple(codes) in legal_codes for codes, is_real in zip(sequences, is_legal.tolist(), strict=True) if is_real
        )
        assert set(answer.item_ids[row].tolist()) - {0} <= set(legal[row].nonzero()[:, 0].tolist())
        assert (int((answer.item_ids[row] > 0).sum())) >= min(beams, int(legal[row].sum()))


def test_a_run_is_exported(tmp_path: Path) -> None:
    overrides = ["model.dense=false", "training.max_epochs=2"]
    dataset = planted_clusters()
    run = ni.train("cobra", dataset, out=tmp_path / "run", recipe="debug/cobra", overrides=overrides, progress=False)
    folder = export(run, out=tmp_path / "gpt2")
    exported = transformers.GPT2LMHeadModel.from_pretrained(folder)
    assert isinstance(run.model, Cobra)
    assert exported.config.pad_token_id == sum(run.model.sizes)
    catalog, trie = load_catalog(folder), PrefixTrie.open(folder / "trie.safetensors")
    assert catalog.identifiers is not None
    batch = SequenceBatch(Jagged.from_rows([[1, 2, 3], [8]]))
    tokens, mask = prompts(catalog.identifiers, batch, max_history_length=3)
    processor = CatalogueLogitsProcessor(trie, batch, prompt_length=tokens.shape[1])
    output = exported.generate(
        tokens,
        attention_mask=mask,
        logits_processor=[processor],
        num_beams=20,
        num_return_sequences=20,
        max_new_tokens=trie.num_levels,
        length_penalty=0.0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    items = processor.items(output.sequences, output.sequences_scores, k=5).item_ids
    assert torch.equal(items, run.model.recommend(batch, 5).item_ids)
    with pytest.raises(UserError, match="--overwrite"):
        export(run, out=folder)
    assert export(run, out=folder, overwrite=True) == folder


def test_a_run_that_cannot_be_exported_raises_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = ni.train("popularity", planted_clusters(), out=tmp_path / "run", progress=False)
    with pytest.raises(UserError, match=r"model\.dense=false"):
        export(run, out=tmp_path / "out")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"nextitem\[text\]"):
        as_gpt2(decoder())
