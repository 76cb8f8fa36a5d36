"""What diagnose says of logs whose nature is known."""

from __future__ import annotations

import json

import pytest

from nextitem.core.errors import UserError
from nextitem.evaluation.diagnose import diagnose
from nextitem.testing.known_answers import build, checkerboard, cycle, planted_clusters


def test_a_cycle_has_one_successor_and_no_long_memory() -> None:
    found = diagnose(cycle())
    assert found.effective_successors == pytest.approx(1.0)
    assert found.held_out_steps_seen == 1.0
    assert found.hits_by_memory[1] == 1.0
    assert (found.cold_targets, found.ties) == (0.0, 0.0)
    assert "item-graph" in found.verdicts[0]


def test_clusters_are_smooth_and_random_walks_within_them_are_not_local() -> None:
    found = diagnose(planted_clusters())
    assert found.similarity_of_neighbours is not None
    assert found.similarity_at_random is not None
    assert found.similarity_of_neighbours > 2 * found.similarity_at_random
    assert found.effective_successors is not None
    assert 3 < found.effective_successors <= 5
    assert any("resemble" in verdict for verdict in found.verdicts)


def test_repeats_and_cold_items_are_counted() -> None:
    sequences = [[1, 1, 1, 2], [1, 2, 1, 3], [2, 2, 1, 4]]
    found = diagnose(build(sequences, ["a", "b", "c", "d"], name="tiny"))
    assert found.repeats == pytest.approx(4 / 12)
    assert found.cold_targets == pytest.approx(2 / 3)


def test_it_is_json_and_text() -> None:
    found = diagnose(checkerboard())
    assert json.loads(json.dumps(found.to_json()))["users"] == 80
    assert "80 users, 20 items, 560 events" in found.text()


def test_a_log_where_nothing_follows_anything_is_an_error() -> None:
    with pytest.raises(UserError, match="no user has two events"):
        diagnose(build([[1], [2]], ["a", "b"], name="tiny"))
