"""Names of settings, read from the source, are those of the classes."""

from __future__ import annotations

import pytest

from nextitem.core.registry import MODELS, RERANKERS, TOKENIZERS
from nextitem.core.setting_names import setting_names

ENTRIES = {**MODELS, **TOKENIZERS, **RERANKERS}


@pytest.mark.parametrize("name", ENTRIES)
def test_the_names_in_the_source_are_the_fields_of_the_config(name: str) -> None:
    entry = ENTRIES[name]
    assert setting_names(entry.path) == list(entry.load().Config.model_fields)


def test_the_settings_of_a_class_of_another_package_are_unknown() -> None:
    assert setting_names("my_package.my_module:MyModel") is None
