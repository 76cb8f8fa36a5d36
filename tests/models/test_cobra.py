"""Tests of COBRA: cached generation equals one pass, losses by hand, BeamFusion against plain computation."""

from __future__ import annotations

import polars as pl
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.identifiers import IdentifierTable
from nextitem.core.ids import IdMap
from nextitem.core.jagged import Jagged
from nextitem.core.roles import GeneratorState
from nextitem.data.examples.next_item import NextItemBatch
from nextitem.decoding.bucket_search import bucket_search
from nextitem.decoding.trie import PrefixTrie
from nextitem.models.cobra import Cobra, CobraConfig

ITEMS, SIZES = 30, (4, 3)


def catalog_of(seed: int = 0) -> Catalog:
    generator = torch.Generator().manual_seed(seed)
    ids = pl.Series("item_id", range(ITEMS))
    catalog = Catalog(IdMap(ids), pl.DataFrame({"item_id": ids}))
    codes = torch.stack([torch.randint(size, (ITEMS,), generator=generator) for size in SIZES], dim=1)
    table = IdentifierTable.from_item_codes(codes, codebook_sizes=SIZES, catalog_fingerprint=catalog.fingerprint)
    content = torch.cat([torch.zeros(1, 6), torch.randn(ITEMS, 6, generator=generator)])
    return catalog.with_identifiers(table).with_content(content)


def cobra(**settings: object) -> Cobra:
    torch.manual_seed(5)
    model = Cobra(
        CobraConfig.model_validate({"width": 16, "content_hidden": 8, "dropout": 0.0} | settings), catalog_of()
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def requests(*histories: list[int], **fields: object) -> SequenceBatch:
    return SequenceBatch(Jagged.from_rows(histories), **fields)  # type: ignore[arg-type]


def one_pass(model: Cobra, history: list[int], target: int) -> Tensor:
    """Return the hidden states [M + 1, D] that predict each target code and then its vector, without caches."""
    hidden = model._hidden(torch.tensor([[*history, target]]))[0]
    start = len(history) * model.per_item - 1
    return hidden[start : start + model.per_item]


@pytest.mark.parametrize("dense", [True, False])
def test_generating_with_cached_keys_equals_one_pass(dense: bool) -> None:
    model = cobra(dense=dense)
    histories, targets = [[1, 2, 3, 4], [7], [9, 30, 2]], [5, 1, 12]
    state = model.start(requests(*histories))
    for level in range(len(SIZES)):
        logits, state = model.step(state, model.codes[targets, level - 1][:, None] if level else None)
        for row, (history, target) in enumerate(zip(histories, targets, strict=True)):
            expected = model._level_logits(one_pass(model, history, target)[level], level)
            torch.testing.assert_close(logits[row, 0], expected, atol=1e-5, rtol=1e-4)
    if not dense:
        return
    vectors = model.vectors_of(state, model.codes[targets, -1][:, None])
    for row, (history, target) in enumerate(zip(histories, targets, strict=True)):
        expected = F.normalize(model.dense(one_pass(model, history, target)[-1]), dim=0)
        torch.testing.assert_close(vectors[row, 0], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("log_q", ["loss", "ranking", None])
def test_the_losses_by_hand(log_q: str | None) -> None:
    model = cobra(temperature=0.5, dense_weight=2.0, log_q=log_q)
    model.set_popularity(torch.arange(ITEMS + 1).float())
    rows = [[3, 8, 1, 9], [2, 9]]
    batch = NextItemBatch(
        Jagged.from_rows([row[:-1] for row in rows]), Jagged.from_rows([[0, 1, 9], [9]]), seed=0
    )  # the first event of the first row is no target
    terms = model.training_loss(batch)
    cases = [([3, 8], 1), ([3, 8, 1], 9), ([2], 9)]
    vectors = model.item_vectors()
    sparse, dense = [torch.zeros(())] * 2, torch.zeros(())
    for history, target in cases:
        hidden = one_pass(model, history, target)
        for level in range(2):
            logits = model._level_logits(hidden[level], level)
            sparse[level] = sparse[level] - logits.log_softmax(0)[model.codes[target, level]] / 3
        pointed = F.normalize(model.dense(hidden[-1]), dim=0)
        cosines = vectors[[1, 9]] @ pointed / 0.5  # the batch's distinct targets
        if log_q == "loss":  # probability that at least one of three samples is the item
            events = ITEMS * (ITEMS + 1) / 2
            cosines = cosines - torch.tensor([1 - (1 - item / events) ** 3 for item in (1, 9)]).log()
        dense = dense - cosines.log_softmax(0)[[1, 9].index(target)] / 3
    torch.testing.assert_close(terms.named["level_1"], sparse[0].detach())
    torch.testing.assert_close(terms.named["level_2"], sparse[1].detach())
    torch.testing.assert_close(terms.named["dense"], dense.detach())
    torch.testing.assert_close(terms.total, sparse[0] + sparse[1] + 2 * dense)


@torch.no_grad()
def test_without_vectors_it_is_a_decoder_of_codes() -> None:
    model = cobra(dense=False, beam_width=ITEMS)
    assert not any(name.startswith(("encoder", "dense")) for name, _ in model.named_parameters())
    batch = NextItemBatch(Jagged.from_rows([[3, 8]]), Jagged.from_rows([[8, 9]]), seed=0)
    terms = model.training_loss(batch)
    torch.testing.assert_close(terms.total, sum(terms.named.values()))
    answer = model.recommend(requests([4, 6]), ITEMS)
    scores = []
    for item in range(1, ITEMS + 1):
        hidden = one_pass(model, [4, 6], item)
        parts = [model._level_logits(hidden[level], level).log_softmax(0) for level in range(len(SIZES))]
        scores.append(sum(float(part[code]) for part, code in zip(parts, model.codes[item], strict=True)))
    expected = sorted(range(1, ITEMS + 1), key=lambda item: (-round(scores[item - 1], 4), item))
    assert answer.item_ids[0].tolist() == expected
    model.content.fill_(7.0)
    assert torch.equal(model.recommend(requests([4, 6]), ITEMS).item_ids, answer.item_ids)


def test_the_predicted_vector_does_not_depend_on_the_item_s_own() -> None:
    model = cobra()
    before = one_pass(model, [4, 6], 11)
    model.content[11] += 100.0
    torch.testing.assert_close(one_pass(model, [4, 6], 11), before)
    model.content[6] += 100.0
    assert not torch.allclose(one_pass(model, [4, 6], 11), before)


def test_gradients_reach_every_parameter() -> None:
    model = cobra(temperature=0.2).train()
    batch = NextItemBatch(Jagged.from_rows([[1, 2, 3], [4, 5]]), Jagged.from_rows([[2, 3, 9], [5, 8]]), seed=0)
    model.training_loss(batch).total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().sum()) > 0, name


def test_cached_item_vectors_follow_the_weights() -> None:
    model = cobra()
    before = model.item_vectors()
    assert model.item_vectors() is before
    model.train()
    with torch.no_grad():
        model.get_parameter("encoder.0.weight").add_(1.0)
    model.eval()
    assert not torch.equal(model.item_vectors(), before)


class Pointer:
    """A generator with fixed logits of codes and one predicted vector for each request."""

    def __init__(self, logits: list[Tensor], pointed: Tensor, items: Tensor) -> None:
        self.logits, self.pointed, self.items = logits, pointed, items

    def start(self, batch: SequenceBatch) -> GeneratorState:
        return GeneratorState({}, {"level": torch.zeros(batch.num_requests, 1, dtype=torch.int64)})

    def step(self, state: GeneratorState, codes: Tensor | None) -> tuple[Tensor, GeneratorState]:
        level = state.beams["level"]
        depth = int(level.max()) if level.numel() else 0
        logits = self.logits[depth].expand(*level.shape, -1)
        return logits, GeneratorState({}, {"level": level + 1})

    def vectors_of(self, state: GeneratorState, codes: Tensor) -> Tensor:
        return self.pointed[:, None].expand(-1, codes.shape[1], -1)

    def item_vectors(self) -> Tensor:
        return self.items


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("sparse", [0.0, 0.9])
def test_beam_fusion_over_all_buckets(sparse: float, pooled: bool) -> None:
    """Pooled and without the codes' part it is dense retrieval; otherwise every item's two softmaxes by hand."""
    generator = torch.Generator().manual_seed(0)
    table = catalog_of().identifiers
    assert table is not None
    trie = PrefixTrie.from_table(table)
    logits = [torch.randn(size, generator=generator) for size in SIZES]
    items = F.normalize(torch.randn(ITEMS + 1, 5, generator=generator), dim=1)
    pointed = F.normalize(torch.randn(2, 5, generator=generator), dim=1)
    excluded = [3, 4, 20]
    batch = requests([1], [2], excluded=Jagged.from_rows([excluded, []]))
    answer = bucket_search(
        Pointer(logits, pointed, items),
        batch,
        trie,
        k=ITEMS,
        beam_width=12,
        sparse_sharpness=sparse,
        dense_sharpness=16.0,
        pooled=pooled,
    )
    for row in range(2):
        candidates = [item for item in range(1, ITEMS + 1) if row or item not in excluded]
        codes = table.codes.long()
        paths = sorted({tuple(codes[item].tolist()) for item in candidates})
        phi = torch.tensor([float(sum(logits[m].log_softmax(0)[c] for m, c in enumerate(path))) for path in paths])
        first = dict(zip(paths, (sparse * phi).log_softmax(0).tolist(), strict=True))
        cosines = 16.0 * (items[candidates] @ pointed[row])
        second = cosines.log_softmax(0)
        for path in [] if pooled else paths:
            is_in_bucket = torch.tensor([tuple(codes[item].tolist()) == path for item in candidates])
            second[is_in_bucket] = cosines[is_in_bucket].log_softmax(0)
        expected = {
            item: first[tuple(codes[item].tolist())] + float(second[column]) for column, item in enumerate(candidates)
        }
        best = sorted(expected, key=lambda item: (-expected[item], item))
        assert [item for item in answer.item_ids[row].tolist() if item] == best
        torch.testing.assert_close(answer.scores[row, : len(best)], torch.tensor([expected[item] for item in best]))
        if sparse == 0 and pooled:
            assert best == sorted(candidates, key=lambda item: -float(items[item] @ pointed[row]))


@torch.inference_mode()
def test_popularity_is_added_back_in_the_ranking() -> None:
    """Within each bucket the order is that of cosine / temperature + log popularity."""
    model = cobra(log_q="ranking", temperature=0.25, dense_sharpness=16.0, sparse_sharpness=0.0, beam_width=12)
    counts = torch.arange(ITEMS + 1).float() ** 2
    model.set_popularity(counts)
    batch = requests([4, 6])
    item_ids = model.recommend(batch, ITEMS).item_ids[0].tolist()
    assert sorted(item_ids) == list(range(1, ITEMS + 1))
    state = model.start(batch)
    for bucket in {tuple(row) for row in model.codes[1:].tolist()}:
        bucket_items = [item for item in item_ids if tuple(model.codes[item].tolist()) == bucket]
        _, state = model.step(model.start(batch), None)
        _, state = model.step(state, torch.tensor([[bucket[0]]]))
        pointed = model.vectors_of(state, torch.tensor([[bucket[1]]]))[0, 0]
        scores = {
            item: float(model.item_vectors()[item] @ pointed / 0.25 + (counts[item] + 1).log()) for item in bucket_items
        }
        assert bucket_items == sorted(bucket_items, key=lambda item: -scores[item])


def test_levels_that_only_make_equal_codes_unique_are_dropped() -> None:
    codes = torch.tensor([[0, 1, 0], [0, 1, 1]])
    table = IdentifierTable.from_item_codes(
        codes, codebook_sizes=(2, 2, 2), catalog_fingerprint="", report={"levels": [{}, {}]}
    )
    assert table.without_extra_level().codebook_sizes == (2, 2)
    plain = IdentifierTable.from_item_codes(codes, codebook_sizes=(2, 2, 2), catalog_fingerprint="")
    assert plain.without_extra_level().codebook_sizes == (2, 2, 2)


def test_a_catalogue_without_codes_and_content_raises() -> None:
    ids = pl.Series("item_id", range(3))
    with pytest.raises(ValueError, match="content vectors and identifiers"):
        Cobra(CobraConfig(), Catalog(IdMap(ids), pl.DataFrame({"item_id": ids})))
