"""A spy that records the calls of a function, which still does its work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pytest

NoteT = TypeVar("NoteT")


def spy(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, note: Callable[..., NoteT]) -> list[NoteT]:
    """Return a list that grows by `note(*arguments)` with every call of `owner.name`."""
    notes: list[NoteT] = []
    real = getattr(owner, name)

    def call(*arguments: Any, **keywords: Any) -> Any:
        notes.append(note(*arguments, **keywords))
        return real(*arguments, **keywords)

    monkeypatch.setattr(owner, name, call)
    return notes
