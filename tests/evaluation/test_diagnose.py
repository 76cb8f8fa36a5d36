"""Tests of diagnose on logs with known properties."""

from __future__ import annotations

import json

import pytest

from nextitem.core.errors import UserError
from nextitem.evaluation.diagnose import diagnose
from nextitem.testing.known_answers import build, checkerboard, cycle, planted_clusters


def test_a_cycle_has_one_successor_and_no_use_of_older_items() -> None:
    diagnosis = diagnose(cycle())
    assert diagnosis.effective_successors == pytest.approx(1.0)
    assert diagnosis.held_out_steps_seen == 1.0
    assert diagnosis.hits_by_memory[1] == 1.0
    assert (diagnosis.cold_targets, diagnosis.ties) == (0.0, 0.0)
    assert "item-graph" in diagnosis.verdicts[0]


def test_items_of_clusters_resemble_each_other_and_have_many_successors() -> None:
    diagnosis = diagnose(planted_clusters())
    assert diagnosis.similarity_of_neighbours is not None
    assert diagnosis.similarity_at_random is not None
    assert diagnosis.similarity_of_neighbours > 2 * diagnosis.similarity_at_random
    assert diagnosis.effective_successors is not None
    assert 3 < diagnosis.effective_successors <= 5
    assert any("resemble" in verdict for verdict in diagnosis.verdicts)


def test_repeats_and_cold_targets_are_counted() -> None:
    sequences = [[1, 1, 1, 2], [1, 2, 1, 3], [2, 2, 1, 4]]
    diagnosis = diagnose(build(sequences, ["a", "b", "c", "d"], name="tiny"))
    assert diagnosis.repeats == pytest.approx(4 / 12)
    assert diagnosis.cold_targets == pytest.approx(2 / 3)


def test_a_diagnosis_is_available_as_json_and_text() -> None:
    diagnosis = diagnose(checkerboard())
    assert json.loads(json.dumps(diagnosis.to_json()))["users"] == 80
    assert "80 users, 20 items, 560 events" in diagnosis.text()


def test_a_log_without_a_user_of_two_events_is_refused() -> None:
    with pytest.raises(UserError, match="no user has two events"):
        diagnose(build([[1], [2]], ["a", "b"], name="tiny"))
