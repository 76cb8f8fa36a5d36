"""Tests of roles.Generator as a policy: every registered generator has probabilities of lists, with gradients."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import permutations
from typing import Any

import pytest
import torch
from support.small_models import identified, small_model
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.jagged import Jagged
from nextitem.core.recommender import Recommender
from nextitem.core.registry import MODELS
from nextitem.core.roles import Generator
from nextitem.decoding.beam_search import beam_search
from nextitem.decoding.list_log_probs import list_log_probs
from nextitem.decoding.rollouts import search_lists
from nextitem.decoding.trie import PrefixTrie
from nextitem.recipes import read_recipe
from nextitem.testing.rich_log import rich_log

GENERATORS = [name for name, entry in MODELS.items() if issubclass(entry.load(), Generator)]
SMALL: dict[str, dict[str, Any]] = {"cobra": {"dense": False}}


@cache
def model_of(name: str) -> Any:
    """Return the model of the debug recipe with random weights, in evaluation mode."""
    dataset = identified(rich_log())
    if "content" in MODELS[name].load().needs:
        numbers = torch.arange(dataset.catalog.num_items + 1.0)
        content = torch.stack([numbers.sin(), numbers.cos(), (numbers / 3).sin()], 1)
        content[0] = 0
        dataset = dataset.with_catalog(dataset.catalog.with_content(content))
    settings = {key: value for key, value in read_recipe(f"debug/{name}")[1]["model"].items() if key != "name"}
    return small_model(name, dataset, **{**settings, "relearn_after": ()} if "relearn_after" in settings else settings)


def trie_of(model: Any) -> PrefixTrie:
    trie: PrefixTrie = model.network.trie if hasattr(model, "network") else model.trie
    return trie


def batch_of(model: Recommender) -> SequenceBatch:
    return SequenceBatch(Jagged.from_rows([[1, 2], [5, 6, 7], [3]]), excluded=Jagged.from_rows([[1], [], [9, 10, 11]]))


def codes_of(model: Any, lists: list[tuple[int, ...]]) -> Tensor:
    table = model.identifiers if not getattr(model.config, "dense", False) else model.identifiers.without_extra_level()
    codes: Tensor = table.codes.long()[torch.tensor(lists)]
    return codes


def test_there_are_generators() -> None:
    assert {"tiger", "depth-decoder", "cobra", "tdm", "jtm"} <= set(GENERATORS)


@pytest.mark.parametrize("name", GENERATORS)
def test_the_probabilities_of_all_lists_sum_to_one(name: str) -> None:
    model, batch = model_of(name), batch_of(model_of(name))
    for length in (1, 2):
        lists = list(permutations(range(1, model.num_items + 1), length))
        codes = codes_of(model, lists).expand(3, -1, -1, -1)
        log_probs = list_log_probs(model, batch, codes, trie_of(model)).detach()
        totals = log_probs.double().sum((2, 3)).exp().sum(1)
        torch.testing.assert_close(totals, torch.ones(3, dtype=torch.float64), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", GENERATORS)
def test_rollouts_are_the_lists_of_a_beam_search(name: str) -> None:
    model, batch = model_of(name), batch_of(model_of(name))
    trie = trie_of(model)
    options: dict[str, Any] = {"beam_width": 12, "renormalise": True}
    with torch.no_grad():
        best = beam_search(model, batch, trie, k=12, **options)
        lists = beam_search(model, batch, trie, k=3, items_per_list=3, **options)
    rollouts = search_lists(model, batch, trie, num_lists=12)
    assert rollouts.version == model.weights_fingerprint()
    assert rollouts.item_ids[..., 0].tolist() == best.item_ids.tolist()
    scores = rollouts.log_probs.sum((2, 3)).where(rollouts.is_legal, -torch.inf)
    torch.testing.assert_close(scores, best.scores, rtol=1e-4, atol=1e-4)
    several = search_lists(model, batch, trie, num_lists=12, items_per_list=3)
    assert several.item_ids[:, 0].tolist() == lists.item_ids.tolist()
    torch.testing.assert_close(several.log_probs[:, 0].sum(2), lists.scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", GENERATORS)
def test_gradients_equal_finite_differences(name: str) -> None:
    """Along a random direction of all weights, in float64."""
    model = model_of(name)
    batch, codes = batch_of(model), codes_of(model, [(2, 4), (6, 8), (7, 3)])[None].expand(3, -1, -1, -1)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    saved = [parameter.detach().clone() for parameter in parameters]
    generator = torch.Generator().manual_seed(0)
    try:
        model.double()
        directions = [torch.randn(value.shape, generator=generator).double() for value in saved]

        def total(step: float) -> Tensor:
            with torch.no_grad():
                for parameter, value, direction in zip(parameters, saved, directions, strict=True):
                    parameter.copy_(value.double() + step * direction)
            return list_log_probs(model, replace(batch), codes, trie_of(model)).sum()

        gradients = torch.autograd.grad(total(0.0), parameters, allow_unused=True)
        slope = sum(
            float((gradient * direction).sum())
            for gradient, direction in zip(gradients, directions, strict=True)
            if gradient is not None
        )
        difference = float(total(1e-6).detach() - total(-1e-6).detach()) / 2e-6
        assert abs(slope) > 1e-3
        assert abs(slope - difference) < 1e-4 * abs(slope) + 1e-5
    finally:
        model.float()
        with torch.no_grad():
            for parameter, value in zip(parameters, saved, strict=True):
                parameter.copy_(value)
