"""GBDT: LightGBM called as it is, its text kept, leaves weighed by what they have not seen."""

from __future__ import annotations

from collections.abc import Iterator

import lightgbm
import numpy as np
import pytest
import torch
from support.unknown_labels import drop_unlabelled, hide_labels

from nextitem.core.batch import SequenceBatch
from nextitem.core.dataset import Split
from nextitem.core.errors import UserError
from nextitem.evaluation.evaluate_ranking import score_all
from nextitem.evaluation.metrics.ranking import auc
from nextitem.models.rankers.gbdt import GBDT, GBDTConfig


def fitted(shown: Split, **settings: object) -> GBDT:
    model = GBDT(GBDTConfig(**{"trees": 20, "leaf_examples": 20, **settings}), shown.train.catalog)
    model.fit(shown.train)
    return model.eval()


class Fixed:
    """Examples that are one batch."""

    def __init__(self, batch: SequenceBatch) -> None:
        self.batch = batch

    def num_batches(self, batch_size: int) -> int:
        return 1

    def batches(self, batch_size: int, *, epoch: int, seed: int, start: int = 0) -> Iterator[SequenceBatch]:
        yield self.batch


def learnt_from(model: GBDT, shown: Split) -> SequenceBatch:
    return next(iter(model.examples(shown.train).batches(10_000, epoch=0, seed=0)))


@pytest.mark.parametrize("objective", ["pointwise", "listwise"])
def test_it_is_lightgbm_on_the_codes(objective: str, shown: Split, requests: SequenceBatch) -> None:
    model = fitted(shown, objective=objective)
    batch = learnt_from(model, shown)
    assert batch.candidates is not None
    data = lightgbm.Dataset(
        model.fields(batch).matrix().numpy()[:, model.read],
        batch.candidate_labels["click"].values.numpy(),
        group=batch.candidates.lengths.numpy() if objective == "listwise" else None,
        categorical_feature=model.categories,
    )
    settings = {
        "objective": "lambdarank" if objective == "listwise" else "binary",
        "learning_rate": 0.05,
        "num_leaves": 15,
        "min_data_in_leaf": 20,
        "min_data_per_group": 20,
        "lambda_l2": 10.0,
        "deterministic": True,
        "force_row_wise": True,
        "verbosity": -1,
    }
    theirs = lightgbm.train(settings, data, num_boost_round=20)
    codes = model.fields(requests)
    expected = theirs.predict(codes.matrix().numpy()[:, model.read], raw_score=True)
    np.testing.assert_allclose(model.logits(requests, codes)[:, 0].numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"objective": "listwise"}, {"leaf_regression": True}])
def test_candidates_without_a_known_label_are_no_examples(shown: Split, settings: dict[str, object]) -> None:
    model = fitted(shown, **settings)
    hidden = hide_labels(learnt_from(model, shown))
    # All at once, so that both have the same requests in the same order.
    hidden = hidden.select(hidden.items.lengths.argsort(stable=True))
    trees = []
    for requests in (hidden, drop_unlabelled(hidden)):
        model.fit_to(Fixed(requests))
        trees.append(bytes(model.trees.numpy().tobytes()))
    assert trees[0] == trees[1]
    assert b"tree_sizes" in trees[0]


def test_it_orders_what_it_learnt_from_and_its_probabilities_have_the_right_mean(shown: Split) -> None:
    model = fitted(shown, trees=60, tasks=("click", "purchase"))
    batch = learnt_from(model, shown)
    scores = score_all(model, batch)
    assert set(scores) == {"click", "purchase"}
    clicks = batch.candidate_labels["click"].values
    assert auc(scores["click"].values, clicks > 0) > 0.65
    assert float(scores["click"].values.mean()) == pytest.approx(float(clicks.mean()), rel=0.3)


def test_the_regression_has_not_seen_what_grew_the_trees(shown: Split, requests: SequenceBatch) -> None:
    model = fitted(shown, leaf_regression=True)
    plain = fitted(shown)
    assert not torch.equal(model.trees, plain.trees)  # half of the requests grew them
    assert model.leaf_weights.shape == (1, 20, 15)
    codes = model.fields(requests)
    leaves = model._boosters()[0].predict(model._matrix(codes), pred_leaf=True)
    expected = [
        sum(float(model.leaf_weights[0, tree, leaf]) for tree, leaf in enumerate(row)) + float(model.leaf_biases[0])
        for row in leaves
    ]
    torch.testing.assert_close(model.logits(requests, codes)[:, 0], torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_leaves_cannot_be_weighed_by_one_label(shown: Split, requests: SequenceBatch) -> None:
    model = fitted(shown, leaf_regression=True)
    matrix = model._matrix(model.fields(requests))
    for value in (False, True):
        labels = np.full((len(matrix), 1), value)
        with pytest.raises(UserError, match=r"model\.leaf_regression: .* differ in the label of 'target'"):
            model._weigh_leaves(matrix, labels, np.ones(labels.shape, np.float32), np.ones(labels.shape, np.bool_))


def test_the_trees_are_kept_as_text(shown: Split, requests: SequenceBatch) -> None:
    model = fitted(shown)
    assert model.trees.dtype == torch.uint8
    again = GBDT(GBDTConfig(trees=20, leaf_examples=20), shown.train.catalog).eval()
    for name, value in model.state_dict().items():
        owner, _, leaf = name.rpartition(".")
        again.get_submodule(owner)._buffers[leaf] = value
    assert torch.equal(again.score(requests)["target"], model.score(requests)["target"])


def test_other_trees_of_the_same_length_answer_at_once(shown: Split, requests: SequenceBatch) -> None:
    model, other = fitted(shown), fitted(shown, learning_rate=0.2)
    size = max(len(model.trees), len(other.trees))
    for each in (model, other):  # JSON may end in spaces
        each.trees = torch.nn.functional.pad(each.trees, (0, size - len(each.trees)), value=ord(" "))
    before, expected = (each.score(requests)["target"] for each in (model, other))
    assert not torch.equal(before, expected)
    model.load_state_dict(other.state_dict())
    assert torch.equal(model.score(requests)["target"], expected)


def test_before_it_is_fitted_it_says_nothing(shown: Split, requests: SequenceBatch) -> None:
    scores = GBDT(GBDTConfig(), shown.train.catalog).eval().score(requests)["target"]
    assert scores[scores > -torch.inf].unique().tolist() == [0.5]
