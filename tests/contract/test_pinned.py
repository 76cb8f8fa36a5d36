"""Pinned behaviour: three training losses of all components trained by gradient, lists and codes of all others.

A change that only moves or renames code does not change any number here. A change that is meant to alter the training
of a model writes new numbers with `NEXTITEM_PIN=1 pytest tests/contract/test_pinned.py -k NAME`, and its commit message
says so.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from support.trained_models import requests, trained
from support.training_steps import model_losses, three_losses

from nextitem.core.components import build_component
from nextitem.core.registry import MODELS, TOKENIZERS
from nextitem.core.roles import ClosedForm
from nextitem.data.text import ContentConfig, content_vectors
from nextitem.testing.known_answers import DATASETS
from nextitem.tokenizers.collisions import build_table
from nextitem.tokenizers.tokenizer import Tokenizer

FILE = Path(__file__).parent / "pinned.json"
PINNED: dict[str, dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}
HISTORIES = [[1], [4, 5, 6, 7, 8, 9], [2, 3], [], [12, 1, 2], [30, 29, 25]]


def model_lists(name: str) -> list[list[int]]:
    """Return the lists of a model's debug recipe on planted clusters."""
    return trained(name, "planted-clusters").model.recommend(requests(HISTORIES), 5).item_ids.tolist()


def tokenizer_behaviour(name: str) -> Any:
    """Return losses of a tokenizer trained by gradient, or codes of another, on the text of planted clusters."""
    dataset = DATASETS["planted-clusters"]()
    catalog = dataset.catalog.with_content(content_vectors(dataset.catalog, ContentConfig(dim=8)))
    dataset = dataset.with_catalog(catalog)
    torch.manual_seed(0)
    special_settings: dict[str, Any] = {"random": {}, "tree": {}, "fsq": {}}
    settings = special_settings.get(name, {"codebook_size": 8} if "codebook_size" in _fields(name) else {})
    tokenizer: Tokenizer = build_component("tokenizer", {"name": name, **settings}, catalog)
    if not isinstance(tokenizer, ClosedForm):
        return three_losses(tokenizer, dataset)
    tokenizer.fit(dataset)
    return build_table(tokenizer.eval(), catalog).codes[1:].tolist()


def _fields(name: str) -> Any:
    return TOKENIZERS[name].load().Config.model_fields


def measure(kind: str, name: str) -> Any:
    """Return the pinned numbers of one model or tokenizer."""
    if kind == "tokenizer":
        return tokenizer_behaviour(name)
    model = MODELS[name].load()
    learns_by_gradient = hasattr(model, "training_loss") and not hasattr(model, "fit")
    return model_losses(name) if learns_by_gradient else model_lists(name)


ENTRIES = [("model", name) for name in MODELS] + [("tokenizer", name) for name in TOKENIZERS]


@pytest.mark.parametrize(("kind", "name"), ENTRIES)
def test_behaviour_is_as_pinned(kind: str, name: str) -> None:
    actual = measure(kind, name)
    if os.environ.get("NEXTITEM_PIN"):
        PINNED.setdefault(kind, {})[name] = actual
        FILE.write_text(json.dumps(PINNED, sort_keys=True).replace('], "', '],\n"') + "\n", encoding="utf-8")
    assert name in PINNED.get(kind, {}), f"NEXTITEM_PIN=1 pytest tests/contract/test_pinned.py -k {name}"
    expected = PINNED[kind][name]
    if isinstance(actual[0], float):
        assert actual == pytest.approx(expected, rel=1e-5)
    else:
        assert actual == expected
