"""check_recommender: what every model must do, whatever it is.

Each check takes a trained Run and raises AssertionError with a sentence that says what is wrong.
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
    """Train a model on tiny data sets and check that it keeps the contract of `Recommender`.

    Takes seconds for a small model. Run it in a test of your own.

    Args:
        model: a name, an import path "my_package.my_module:MyModel", or a class.
        settings: settings of the run, as for `nextitem.train`; make the model small.
        known_answers: data sets whose right answers the model must find: cycle (item i is followed by i + 1),
            checkerboard (even users take even items), planted-clusters (users stay within a cluster of titles).
        recipe: a recipe file, instead of the model's default.

    Raises:
        AssertionError: a check fails; the message names the check and what is wrong.
        UserError: the model cannot be imported, lacks the contract, or a setting is wrong.

    """
    with TemporaryDirectory() as folder:

        def trained(name: str) -> Run:
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

        run = trained("rich")
        for check in CHECKS:
            _named(check, run)
        again = trained("rich-again")
        check_same_weights(run, again)
        for name in known_answers:
            check_known_answers(trained(name), name)


def _named(check: Callable[[Run], None], run: Run) -> None:
    try:
        check(run)
    except AssertionError as error:
        raise AssertionError(f"{check.__name__}: {error}") from None


def requests(histories: Sequence[Sequence[int]], **columns: Any) -> SequenceBatch:
    """Requests of visitors with these histories of item numbers."""
    return SequenceBatch(Jagged.from_rows(histories), **columns)


def only(model: Recommender, *items: int) -> torch.Tensor:
    """An allow-list of these items for all requests, bool [1, N + 1]."""
    return torch.isin(torch.arange(model.num_items + 1), torch.tensor(items))[None, :]


def check_an_allowed_item_is_found(run: Run) -> None:
    """An allow-list of one item gives a list of that item."""
    for item in (1, run.model.num_items):
        lists = run.model.recommend(requests([[2], [3, 4]], allowed=only(run.model, item)), 5).item_ids.tolist()
        assert lists == [[item, 0, 0, 0, 0]] * 2, f"with item {item} alone allowed it lists {lists}"


def check_a_batch_equals_single_requests(run: Run) -> None:
    """A request gets the same list, whatever other requests are in its batch."""
    users = user_requests(aligned(rich_log(), run.model), ["u01", "u02", "u03"])
    visitor, _ = history_requests([run.model.catalog.ids.external[0]], run.model.catalog)
    batch = SequenceBatch.concat([users, visitor], fill=True)
    _check_single(run.model, batch)
    _check_single(run.model, requests([[1], [4, 5, 6, 7, 8, 9], [2, 3], [], [12, 1, 2]]))


def _check_single(model: Recommender, batch: SequenceBatch) -> None:
    together = model.recommend(batch, 4)
    for row in range(batch.num_requests):
        alone = model.recommend(batch.select(torch.tensor([row])), 4)
        lists = alone.item_ids[0].tolist(), together.item_ids[row].tolist()
        assert lists[0] == lists[1], f"request {row} alone gets {lists[0]}, among others {lists[1]}"
        torch.testing.assert_close(alone.scores[0], together.scores[row], rtol=1e-4, atol=1e-4)


def check_exclusions_are_kept(run: Run) -> None:
    """Excluded items never come; a list that is longer than the catalogue holds every other item once."""
    model = run.model
    excluded = Jagged.from_rows([[3, 4, 1], []])
    answer = model.recommend(requests([[1, 2], [5]], excluded=excluded), model.num_items + 3)
    lists = [[item for item in row if item] for row in answer.item_ids.tolist()]
    everything = set(range(1, model.num_items + 1))
    assert sorted(lists[0]) == sorted(everything - {3, 4, 1}), f"without items 3, 4 and 1 it lists {lists[0]}"
    assert sorted(lists[1]) == sorted(everything), f"of {model.num_items} items it lists {lists[1]}"


def check_nothing_allowed_gives_an_empty_list(run: Run) -> None:
    """A request that allows nothing gets nothing; its neighbour gets its own."""
    batch = requests([[1], [2]], allowed=only(run.model, 3), excluded=Jagged.from_rows([[3], []]))
    lists = run.model.recommend(batch, 2).item_ids.tolist()
    assert lists == [[0, 0], [3, 0]], f"it lists {lists}"


def check_an_empty_history_is_answered(run: Run) -> None:
    """An empty history is answered by popularity, and marked."""
    model = run.model
    answer = model.recommend(requests([[]]), 3)
    assert answer.fallback is not None
    assert answer.fallback.tolist() == [True], "the answer is not marked as a fallback"
    best = model.popularity.argsort(descending=True, stable=True)[:3].tolist()
    assert answer.item_ids[0].tolist() == best, f"it lists {answer.item_ids[0].tolist()}, the most popular are {best}"


def check_a_bundle_answers_as_the_model_did(run: Run) -> None:
    """What is saved and loaded gives the same lists and scores, to the last digit."""
    batch = asked_at(user_requests(aligned(rich_log(), run.model), None))
    _check_equal(run.model.recommend(batch, 5), load_run(run.folder).model.recommend(batch, 5), "after loading")


def check_a_longer_log_changes_no_answer(run: Run) -> None:
    """New users, items, actions and values of context change no answer to an old history."""
    opened = load_run(run.folder)
    users = [f"u{number:02d}" for number in range(60)]
    before = asked_at(user_requests(aligned(rich_log(), run.model), users))
    after = asked_at(user_requests(aligned(longer_log(), opened.model), users))
    _check_equal(run.model.recommend(before, 5), opened.model.recommend(after, 5), "when the log is longer")


def asked_at(batch: SequenceBatch, time_ms: int = NOW_MS) -> SequenceBatch:
    """The same requests at one time, without targets and exclusions."""
    times = torch.full((batch.num_requests,), time_ms)
    return replace(batch, targets=None, excluded=None, request_times=times)


def _check_equal(first: Recommendations, second: Recommendations, when: str) -> None:
    differs = (first.item_ids != second.item_ids).any(1).nonzero()[:, 0].tolist()
    assert not differs, (
        f"{when} {len(differs)} of {len(first.item_ids)} lists differ, the first at request {differs[0]}"
    )
    assert torch.equal(first.scores, second.scores), f"{when} scores differ"


def check_same_weights(run: Run, again: Run) -> None:
    """Two trainings with one seed end with the same weights."""
    first, second = run.model.state_dict(), again.model.state_dict()
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), f"check_same_weights: {key} differs between two runs of one seed"


def check_known_answers(run: Run, name: str) -> None:
    """The model finds the right answers of a data set for nine requests in ten."""
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
