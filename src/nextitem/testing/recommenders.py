"""Checks of the contract that every model must satisfy.

Each check takes a trained Run. If the run breaks the contract, the check raises AssertionError with a sentence on what
is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from nextitem.core.batch import SequenceBatch
from nextitem.core.config import Config
from nextitem.core.jagged import Jagged
from nextitem.core.recommendations import Recommendations
from nextitem.core.recommender import Recommender
from nextitem.data.protocols import make_split
from nextitem.pipeline.recommend import history_requests, user_requests
from nextitem.pipeline.runs import Run, aligned, load_run
from nextitem.pipeline.train import train
from nextitem.testing.known_answers import DATASETS, share_right
from nextitem.testing.rich_log import longer_log, rich_log

NOW_MS = 1_800_000_000_000  # a time after both logs
MIN_SHARE_RIGHT = 0.9


def check_recommender(
    model: str | type[Recommender],
    *,
    settings: Mapping[str, Any] | Config | None = None,
    known_answers: Sequence[str] = (),
    recipe: str | Path | None = None,
) -> None:
    """Train a model on tiny data sets and check that it satisfies the contract of `Recommender`.

    Takes seconds for a small model. Run it in a test of your own.

    Args:
        model: a name, an import path "my_package.my_module:MyModel", or a class.
        settings: settings of the run, as for `nextitem.train`; make the model small.
        known_answers: data sets whose right answers the model must find: cycle (item i is followed by i + 1),
            checkerboard (a user's items have one parity), planted-clusters (users stay within a cluster of titles).
        recipe: a recipe file, instead of the model's default.

    Raises:
        AssertionError: a check fails; the message contains the check and what is wrong.
        UserError: the model cannot be imported, lacks the contract, or a setting is wrong.

    """
    with TemporaryDirectory() as folder:

        def train_on(name: str) -> Run:
            data = rich_log() if name.startswith("rich") else DATASETS[name]()
            return train(
                model,
                data,
                out=Path(folder) / name,
                settings=settings,
                recipe=recipe,
                protocol="leave-one-out",
                device="cpu",
                progress=False,
            )

        run = train_on("rich")
        for check in CHECKS:
            _run_check(check, run)
        repeated_run = train_on("rich-again")
        check_same_weights(run, repeated_run)
        for name in known_answers:
            check_known_answers(train_on(name), name)


def _run_check(check: Callable[[Run], None], run: Run) -> None:
    """Run a check; put its name in front of the message if it fails."""
    try:
        check(run)
    except AssertionError as error:
        raise AssertionError(f"{check.__name__}: {error}") from None


def requests(histories: Sequence[Sequence[int]], **columns: Any) -> SequenceBatch:
    """Return one request for each history of item numbers, of unknown users."""
    return SequenceBatch(Jagged.from_rows(histories), **columns)


def allow_list(model: Recommender, *items: int) -> torch.Tensor:
    """Return an allow-list of these items for all requests, bool [1, N + 1]."""
    return torch.isin(torch.arange(model.num_items + 1), torch.tensor(items))[None, :]


def check_an_allowed_item_is_found(run: Run) -> None:
    """Check that an allow-list of one item returns a list of that item."""
    for item in (1, run.model.num_items):
        lists = run.model.recommend(requests([[2], [3, 4]], allowed=allow_list(run.model, item)), 5).item_ids.tolist()
        assert lists == [[item, 0, 0, 0, 0]] * 2, f"if only item {item} is allowed, the lists are {lists}"


def check_a_batch_equals_single_requests(run: Run) -> None:
    """Check that the list of a request does not depend on the other requests of its batch."""
    users = user_requests(aligned(rich_log(), run.model), ["u01", "u02", "u03"])
    visitor, _ = history_requests([run.model.catalog.ids.external[0]], run.model.catalog)
    batch = SequenceBatch.concat([users, visitor], fill=True)
    _check_single(run.model, batch)
    _check_single(run.model, requests([[1], [4, 5, 6, 7, 8, 9], [2, 3], [], [12, 1, 2]]))


def _check_single(model: Recommender, batch: SequenceBatch) -> None:
    """Check that each request of a batch gets the same list and scores alone as in the batch."""
    batch_answer = model.recommend(batch, 4)
    for row in range(batch.num_requests):
        answer = model.recommend(batch.select(torch.tensor([row])), 4)
        lists = answer.item_ids[0].tolist(), batch_answer.item_ids[row].tolist()
        assert lists[0] == lists[1], f"request {row} alone gets {lists[0]}, in a batch {lists[1]}"
        torch.testing.assert_close(answer.scores[0], batch_answer.scores[row], rtol=1e-4, atol=1e-4)


def check_exclusions_are_kept(run: Run) -> None:
    """Check that excluded items are never listed.

    A list that is longer than the catalogue must contain every other item once.
    """
    model = run.model
    excluded = Jagged.from_rows([[3, 4, 1], []])
    answer = model.recommend(requests([[1, 2], [5]], excluded=excluded), model.num_items + 3)
    lists = [[item for item in row if item] for row in answer.item_ids.tolist()]
    all_items = set(range(1, model.num_items + 1))
    assert sorted(lists[0]) == sorted(all_items - {3, 4, 1}), (
        f"if items 3, 4 and 1 are excluded, the list is {lists[0]}"
    )
    assert sorted(lists[1]) == sorted(all_items), f"of {model.num_items} items the list contains {lists[1]}"


def check_nothing_allowed_gives_an_empty_list(run: Run) -> None:
    """Check that a request without allowed items gets an empty list, and the next request of the batch its own."""
    batch = requests([[1], [2]], allowed=allow_list(run.model, 3), excluded=Jagged.from_rows([[3], []]))
    lists = run.model.recommend(batch, 2).item_ids.tolist()
    assert lists == [[0, 0], [3, 0]], f"the lists are {lists} instead of [[0, 0], [3, 0]]"


def check_an_empty_history_is_answered(run: Run) -> None:
    """Check that an empty history is answered by popularity, and that the answer is marked as a fallback."""
    model = run.model
    answer = model.recommend(requests([[]]), 3)
    assert answer.fallback is not None
    assert answer.fallback.tolist() == [True], "the answer is not marked as a fallback"
    best = model.popularity.argsort(descending=True, stable=True)[:3].tolist()
    assert answer.item_ids[0].tolist() == best, (
        f"the list is {answer.item_ids[0].tolist()}, the most popular items are {best}"
    )


def check_a_bundle_answers_as_the_model_did(run: Run) -> None:
    """Check that a saved and loaded model returns the same lists and scores, to the last digit."""
    batch = at_one_time(user_requests(aligned(rich_log(), run.model), None))
    _check_equal(run.model.recommend(batch, 5), load_run(run.folder).model.recommend(batch, 5), "after loading")


def check_a_longer_log_changes_no_answer(run: Run) -> None:
    """Check that new users, items, actions and values of context do not change the answer to an old history."""
    opened = load_run(run.folder)
    users = [f"u{number:02d}" for number in range(60)]
    before = at_one_time(user_requests(aligned(rich_log(), run.model), users))
    after = at_one_time(user_requests(aligned(longer_log(), opened.model), users))
    _check_equal(run.model.recommend(before, 5), opened.model.recommend(after, 5), "when the log is longer")


def at_one_time(batch: SequenceBatch, time_ms: int = NOW_MS) -> SequenceBatch:
    """Return the same requests, all at the time `time_ms`, without targets and exclusions."""
    times = torch.full((batch.num_requests,), time_ms)
    return replace(batch, targets=None, excluded=None, request_times=times)


def _check_equal(first: Recommendations, second: Recommendations, when: str) -> None:
    """Check that two answers have the same lists and scores; `when` begins the message."""
    different_rows = (first.item_ids != second.item_ids).any(1).nonzero()[:, 0].tolist()
    assert not different_rows, (
        f"{when} {len(different_rows)} of {len(first.item_ids)} lists differ, the first at request {different_rows[0]}"
    )
    assert torch.equal(first.scores, second.scores), f"{when} scores differ"


def check_same_weights(run: Run, repeated_run: Run) -> None:
    """Check that two trainings with one seed end with the same weights."""
    first, second = run.model.state_dict(), repeated_run.model.state_dict()
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), f"check_same_weights: {key} differs between two runs of one seed"


def check_known_answers(run: Run, name: str) -> None:
    """Check that at least 90% of the answers to a data set with known answers are right."""
    dataset = DATASETS[name]()
    test = make_split(dataset, "leave-one-out").test
    test = replace(test, excluded=None if name == "cycle" else test.items)
    last_items = test.items.values[test.items.offsets[1:] - 1].numpy()
    share = share_right(name, dataset, run.model.recommend(test, 3), last_items)
    assert share >= MIN_SHARE_RIGHT, f"check_known_answers: {name}: {share:.0%} of the answers are right"


CHECKS: tuple[Callable[[Run], None], ...] = (
    check_an_allowed_item_is_found,
    check_a_batch_equals_single_requests,
    check_exclusions_are_kept,
    check_nothing_allowed_gives_an_empty_list,
    check_an_empty_history_is_answered,
    check_a_bundle_answers_as_the_model_did,
    check_a_longer_log_changes_no_answer,
)
