"""GBDT: boosted trees over field codes, by LightGBM, alone or with a logistic regression over their leaves.

Friedman 2001; Ke et al., LightGBM, NeurIPS 2017; LambdaRank: Burges 2010; leaves as features: He et al., ADKDD 2014. A
tree splits on ordered codes (quantiles, counts, times) and on sets of categories, so crosses need not be named.

Notable
- Objective "listwise" is LambdaRank. Its scores order a list; they are no log-odds unless they are calibrated.
- Bags (the items of a history) and hashed pairs of codes are not read; trees read counts and recency instead.
- With `leaf_regression` half of the requests grows the trees, and the other half fits the weights of their leaves. The
  leaves of a tree's own training examples would reveal the label.
- The trees are stored as LightGBM's text, in a buffer of bytes; nothing is pickled.

Shapes: P candidates, F columns, S tasks, E trees, V leaves of a tree.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, ClassVar, Self

import lightgbm
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from nextitem.core import config as configs
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.dataset import Dataset
from nextitem.core.errors import UserError
from nextitem.core.roles import Examples
from nextitem.models.rankers.config import RankingConfig
from nextitem.models.rankers.ranking_model import RankingModel
from nextitem.nn.fields.fields import FieldCodes
from nextitem.nn.fields.kinds import CrossedWithLast, ItemCategory, ItemId, RequestCategory
from nextitem.ops.tensor_version import version_of

READ_BATCH = 4096  # requests in a batch of examples when training data is read


class GBDTConfig(RankingConfig):
    """Settings of GBDT."""

    trees: int = Field(200, ge=1)
    """Number of trees for each task (E)."""
    leaves: int = Field(15, ge=2)
    """Largest number of leaves of a tree (V)."""
    learning_rate: float = Field(0.05, gt=0)
    """Factor by which the output of each tree is multiplied (shrinkage)."""
    leaf_examples: int = Field(50, ge=1)
    """Smallest number of training candidates in a leaf."""
    weight_l2: float = Field(10.0, ge=0)
    """L2 penalty of leaf weights: lambda in the weight of a leaf, -G / (H + lambda)."""
    column_share: float = Field(1.0, gt=0, le=1)
    """Share of the fields that each tree may read, sampled for each tree; 1: all of them."""
    leaf_regression: bool = False
    """Whether a logistic regression over the leaves replaces the sum of the trees' outputs."""
    leaf_l2: float = Field(10.0, gt=0)
    """L2 penalty of the logistic regression over the leaves."""

    def idle_fields(self) -> dict[str, str]:
        """Return the fields that are unused with the current values of the other fields: name -> reason."""
        return {
            **super().idle_fields(),
            **configs.idle_unless(self.leaf_regression, "leaf_regression is false", "leaf_l2"),
            **dict.fromkeys(("l2", "table"), "trees have no field vectors"),
        }


class GBDT(RankingModel):
    """Ranker with boosted trees over field codes."""

    Config = GBDTConfig
    config: GBDTConfig
    known_answers: ClassVar[tuple[str, ...]] = ("cycle",)  # a checkerboard has no single split that lowers the loss
    trees: Tensor
    leaf_weights: Tensor
    leaf_biases: Tensor

    def __init__(self, config: GBDTConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        parts = [part for part in self.fields.parts if not part.is_bag]  # the columns of `FieldCodes.matrix`
        self.columns = [
            index for index, part in enumerate(parts) if not (isinstance(part, CrossedWithLast) and not part.is_exact)
        ]
        kinds = (ItemId, ItemCategory, RequestCategory, CrossedWithLast)
        self.categorical = [number for number, index in enumerate(self.columns) if isinstance(parts[index], kinds)]
        self.register_buffer("trees", torch.zeros(0, dtype=torch.uint8))  # JSON: LightGBM's text for each task
        self.register_buffer("leaf_weights", torch.zeros(0))  # [S, E, V] by task, tree and leaf
        self.register_buffer("leaf_biases", torch.zeros(0))  # [S] one bias for each task
        self._booster_cache: tuple[Tensor, int, list[lightgbm.Booster]] | None = None  # text, its version, trees

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or convert the module; the trees are parsed again from the converted text."""
        self._booster_cache = None
        super()._apply(fn, recurse)
        return self

    def fit(self, train: Dataset) -> None:
        """Fit the trees of every task to the training data."""
        self.fit_to(self.examples(train))

    def fit_to(self, examples: Examples[SequenceBatch]) -> None:
        """Fit the trees of every task to one epoch of the examples, such as those of `examples_of`."""
        parts = []
        for batch in examples.batches(READ_BATCH, epoch=0, seed=0):
            assert batch.candidates is not None
            values = torch.stack([batch.candidate_labels[label].values for label in self._labels(batch)], 1)
            labels = values > 0
            weights = torch.where(labels, torch.as_tensor(self._weights(batch))[..., None], 1.0)
            has_label = ~values.isnan()
            matrix = self._matrix(self.fields(batch))
            lengths = batch.candidates.lengths.numpy()
            parts.append((matrix, labels.numpy(), weights.numpy(), has_label.numpy(), lengths))
        matrix, labels_PS, weights_PS, has_label_PS, sizes = (np.concatenate(part) for part in zip(*parts, strict=True))
        is_for_trees = np.ones(len(matrix), np.bool_)
        if self.config.leaf_regression:
            is_for_trees = np.repeat(np.random.default_rng(0).random(len(sizes)) < 0.5, sizes)
        texts = []
        for column in range(len(self.tasks)):
            rows = is_for_trees & has_label_PS[:, column]  # candidates without a label are no examples
            data = lightgbm.Dataset(
                matrix[rows],
                labels_PS[rows, column],
                weight=weights_PS[rows, column],
                group=_group_sizes(sizes, rows) if self.config.objective == "listwise" else None,
                categorical_feature=self.categorical,
            )
            texts.append(lightgbm.train(self._settings(), data, num_boost_round=self.config.trees).model_to_string())
        self.trees = torch.frombuffer(bytearray(json.dumps(texts).encode()), dtype=torch.uint8)
        if self.config.leaf_regression:
            rest = ~is_for_trees
            self._fit_leaf_weights(matrix[rest], labels_PS[rest], weights_PS[rest], has_label_PS[rest])

    def logits(self, batch: SequenceBatch, codes: FieldCodes) -> Tensor:
        """Return the logits [P, S]: the sums of the trees' outputs, or of the weights of their leaves.

        Before the trees are fitted all logits are 0.
        """
        boosters, matrix = self._boosters(), self._matrix(codes)
        if not boosters:
            return self.popularity.new_zeros(len(matrix), len(self.tasks))
        if not self.config.leaf_regression:
            outputs = [torch.from_numpy(booster.predict(matrix, raw_score=True)) for booster in boosters]
            return torch.stack(outputs, 1).to(self.popularity)
        logits = [
            weights[torch.arange(len(weights)), torch.from_numpy(_leaves(booster, matrix))].sum(1)
            for booster, weights in zip(boosters, self.leaf_weights, strict=True)
        ]
        return torch.stack(logits, 1) + self.leaf_biases

    def _matrix(self, codes: FieldCodes) -> NDArray[np.int32]:
        """Return the codes that the trees read, [P, F]."""
        matrix: NDArray[np.int32] = codes.matrix()[:, self.columns].int().cpu().numpy()
        return matrix

    def _settings(self) -> dict[str, Any]:
        """Return the parameters of LightGBM."""
        settings = self.config
        return {
            "objective": "lambdarank" if self.config.objective == "listwise" else "binary",
            "learning_rate": settings.learning_rate,
            "num_leaves": settings.leaves,
            "min_data_in_leaf": settings.leaf_examples,
            "min_data_per_group": settings.leaf_examples,
            "lambda_l2": settings.weight_l2,
            "feature_fraction": settings.column_share,
            "deterministic": True,
            "force_row_wise": True,
            "verbosity": -1,
        }

    def _boosters(self) -> list[lightgbm.Booster]:
        """Return the trees of each task, parsed from their text once, and again if other weights are loaded."""
        version = version_of(self.trees)
        if self._booster_cache is None or self._booster_cache[0] is not self.trees or self._booster_cache[1] != version:
            texts = json.loads(self.trees.cpu().numpy().tobytes()) if len(self.trees) else []
            self._booster_cache = (self.trees, version, [lightgbm.Booster(model_str=text) for text in texts])
        return self._booster_cache[2]

    def _fit_leaf_weights(
        self,
        matrix: NDArray[np.int32],
        labels_PS: NDArray[np.bool_],
        weights_PS: NDArray[np.float32],
        has_label_PS: NDArray[np.bool_],
    ) -> None:
        """Fit a logistic regression of the labels on the leaves, from candidates that have not grown the trees.

        Raises UserError if a task has one label only.
        """
        weights, biases = [], []
        for column, booster in enumerate(self._boosters()):
            rows = has_label_PS[:, column]
            if len(np.unique(labels_PS[rows, column])) < 2:
                raise UserError(
                    "model.leaf_regression: in the half of the requests that fits the leaves' weights, no two "
                    f"candidates differ in the label of {self.tasks[column]!r}; remove leaf_regression"
                )
            leaves_PE = _leaves(booster, matrix[rows])
            shape = (leaves_PE.shape[1], self.config.leaves)
            columns_PE = leaves_PE + np.arange(shape[0]) * shape[1]
            is_leaf = csr_matrix(
                (np.ones(columns_PE.size), columns_PE.ravel(), np.arange(len(columns_PE) + 1) * shape[0]),
                (len(columns_PE), shape[0] * shape[1]),
            )
            regression = LogisticRegression(C=1 / self.config.leaf_l2, max_iter=1000).fit(
                is_leaf, labels_PS[rows, column], sample_weight=weights_PS[rows, column]
            )
            weights.append(torch.from_numpy(regression.coef_[0].reshape(shape)).float())
            biases.append(float(regression.intercept_[0]))
        self.leaf_weights, self.leaf_biases = torch.stack(weights), torch.tensor(biases)


def _leaves(booster: lightgbm.Booster, matrix: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return the leaf of each candidate in each tree, [P, E]."""
    leaves = np.asarray(booster.predict(matrix, pred_leaf=True), np.int64)
    return leaves.reshape(len(matrix), -1)


def _group_sizes(sizes: NDArray[np.int64], mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the number of candidates in `mask [P]` of each request that has any; `sizes` are those of all requests."""
    counts = np.bincount(np.repeat(np.arange(len(sizes)), sizes)[mask], minlength=len(sizes))
    nonzero: NDArray[np.int64] = counts[counts > 0]
    return nonzero
