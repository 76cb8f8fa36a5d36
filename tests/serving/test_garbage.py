"""Garbage collection of a server: what lives on is left out, and a former model is freed all the same."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from nextitem.serving.garbage import settle, settle_again


class Node:
    """Object that refers to itself, so that only the collector frees it."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def unfrozen() -> Iterator[None]:
    gc.unfreeze()
    yield
    gc.unfreeze()


def test_later_collections_look_at_new_objects_only() -> None:
    gc.collect()  # what other tests have left
    num_objects = len(gc.get_objects())
    settle()
    assert gc.get_freeze_count() > 0.9 * num_objects
    assert len(gc.get_objects()) < 0.1 * num_objects
    garbage = weakref.ref(Node())
    gc.collect()
    assert garbage() is None


def test_what_was_in_use_is_freed_at_the_next_time() -> None:
    node = Node()
    former = weakref.ref(node)
    settle()
    del node
    gc.collect()
    assert former() is not None
    settle_again()
    assert former() is None


def test_other_processes_are_left_alone() -> None:
    settle_again()
    assert gc.get_freeze_count() == 0
