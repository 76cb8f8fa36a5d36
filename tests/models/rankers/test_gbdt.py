"""GBDT: equal to LightGBM, trees stored as text, leaf weights fitted to requests that have not grown the trees."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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


def fitted(impressions: Split, **settings: object) -> GBDT:
    """Return a small model with these settings, fitted to the impressions of the shop."""
    model = GBDT(GBDTConfig(**{"trees": 20, "leaf_examples": 20, **settings}), impressions.train.catalog)
    model.fit(impressions.train)
    return model.eval()


class OneBatch:
    """Training examples that consist of one batch."""

    def __init__(self, batch: SequenceBatch) -> None:
        self.batch = batch

    def num_batches(self, batch_size: int) -> int:
        return 1

    def batches(self, batch_size: int, *, epoch: int, seed: int, start: int = 0) -> Iterator[SequenceBatch]:
        yield self.batch


def training_batch(model: GBDT, impressions: Split) -> SequenceBatch:
    """Return all training examples of the model as one batch."""
    return next(iter(model.examples(impressions.train).batches(10_000, epoch=0, seed=0)))


@pytest.mark.parametrize("objective", ["pointwise", "listwise"])
def test_logits_equal_those_of_lightgbm_on_the_field_codes(
    objective: str, impressions: Split, requests: SequenceBatch
) -> None:
    model = fitted(impressions, objective=objective)
    batch = training_batch(model, impressions)
    assert batch.candidates is not None
    data = lightgbm.Dataset(
        model.fields(batch).matrix().numpy()[:, model.columns],
        batch.candidate_labels["click"].values.numpy(),
        group=batch.candidates.lengths.numpy() if objective == "listwise" else None,
        categorical_feature=model.categorical,
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
    booster = lightgbm.train(settings, data, num_boost_round=20)
    codes = model.fields(requests)
    expected = booster.predict(codes.matrix().numpy()[:, model.columns], raw_score=True)
    np.testing.assert_allclose(model.logits(requests, codes)[:, 0].numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"objective": "listwise"}, {"leaf_regression": True}])
def test_candidates_without_a_label_are_no_examples(impressions: Split, settings: dict[str, object]) -> None:
    model = fitted(impressions, **settings)
    hidden = hide_labels(training_batch(model, impressions))
    # Sorted and in one batch, so that both have the same requests in the same order.
    hidden = hidden.select(hidden.items.lengths.argsort(stable=True))
    trees = []
    for requests in (hidden, drop_unlabelled(hidden)):
        model.fit_to(OneBatch(requests))
        trees.append(bytes(model.trees.numpy().tobytes()))
    assert trees[0] == trees[1]
    assert b"tree_sizes" in trees[0]


def test_training_examples_are_ordered_well_and_the_mean_probability_is_right(impressions: Split) -> None:
    model = fitted(impressions, trees=60, tasks=("click", "purchase"))
    batch = training_batch(model, impressions)
    scores = score_all(model, batch)
    assert set(scores) == {"click", "purchase"}
    clicks = batch.candidate_labels["click"].values
    assert auc(scores["click"].values, clicks > 0) > 0.65
    assert float(scores["click"].values.mean()) == pytest.approx(float(clicks.mean()), rel=0.3)


def test_half_of_the_requests_grows_the_trees_and_logits_are_sums_of_leaf_weights(
    impressions: Split, requests: SequenceBatch
) -> None:
    model = fitted(impressions, leaf_regression=True)
    plain = fitted(impressions)
    assert not torch.equal(model.trees, plain.trees)  # half of the requests grew the trees
    assert model.leaf_weights.shape == (1, 20, 15)
    codes = model.fields(requests)
    leaves = model._boosters()[0].predict(model._matrix(codes), pred_leaf=True)
    expected = [
        sum(float(model.leaf_weights[0, tree, leaf]) for tree, leaf in enumerate(row)) + float(model.leaf_biases[0])
        for row in leaves
    ]
    torch.testing.assert_close(model.logits(requests, codes)[:, 0], torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_fitting_leaf_weights_to_one_label_is_refused(impressions: Split, requests: SequenceBatch) -> None:
    model = fitted(impressions, leaf_regression=True)
    matrix = model._matrix(model.fields(requests))
    for value in (False, True):
        labels = np.full((len(matrix), 1), value)
        with pytest.raises(UserError, match=r"model\.leaf_regression: .* differ in the label of 'target'"):
            model._fit_leaf_weights(matrix, labels, np.ones(labels.shape, np.float32), np.ones(labels.shape, np.bool_))


def test_trees_are_stored_as_text_and_restored_from_it(impressions: Split, requests: SequenceBatch) -> None:
    model = fitted(impressions)
    assert model.trees.dtype == torch.uint8
    restored = GBDT(GBDTConfig(trees=20, leaf_examples=20), impressions.train.catalog).eval()
    for name, value in model.state_dict().items():
        owner, _, leaf = name.rpartition(".")
        restored.get_submodule(owner)._buffers[leaf] = value
    assert torch.equal(restored.score(requests)["target"], model.score(requests)["target"])


def test_loaded_trees_of_the_same_length_replace_the_parsed_ones(impressions: Split, requests: SequenceBatch) -> None:
    model, other = fitted(impressions), fitted(impressions, learning_rate=0.2)
    size = max(len(model.trees), len(other.trees))
    for ranker in (model, other):  # JSON may end in spaces
        ranker.trees = torch.nn.functional.pad(ranker.trees, (0, size - len(ranker.trees)), value=ord(" "))
    before, expected = (ranker.score(requests)["target"] for ranker in (model, other))
    assert not torch.equal(before, expected)
    model.load_state_dict(other.state_dict())
    assert torch.equal(model.score(requests)["target"], expected)


def test_every_probability_is_a_half_before_the_trees_are_fitted(impressions: Split, requests: SequenceBatch) -> None:
    scores = GBDT(GBDTConfig(), impressions.train.catalog).eval().score(requests)["target"]
    assert scores[scores > -torch.inf].unique().tolist() == [0.5]


def test_trees_read_a_sampled_share_of_the_fields(impressions: Split) -> None:
    settings: dict[str, object] = {"fields": ("item.department", "item.brand", "item.price", "item.popularity")}
    model = fitted(impressions, **settings, column_share=0.25)
    assert torch.equal(model.trees, fitted(impressions, **settings, column_share=0.25).trees)
    (booster,) = model._boosters()
    fields_by_tree = [_fields_of(tree["tree_structure"]) for tree in booster.dump_model()["tree_info"]]
    assert {len(fields) for fields in fields_by_tree if fields} == {1}
    assert len(set().union(*fields_by_tree)) > 1


def _fields_of(node: dict[str, Any]) -> set[int]:
    """Return the indices of the fields that a node of a dumped tree and the nodes below it split on."""
    if "split_feature" not in node:
        return set()
    return {node["split_feature"]} | _fields_of(node["left_child"]) | _fields_of(node["right_child"])
