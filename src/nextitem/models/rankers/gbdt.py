"""GBDT: boosted trees over field codes, by LightGBM; alone, or with a logistic regression over their leaves.

Friedman 2001; Ke et al., LightGBM, NeurIPS 2017; LambdaRank: Burges 2010; leaves as features: He et al., ADKDD 2014. A
tree splits on ordered codes (quantiles, counts, times) and on sets of categories, so crosses need not be named.

Notable
- objective "listwise" is LambdaRank, whose scores order a list and are no log-odds unless calibrated.
- Bags (the items of a history) and hashed pairs of codes are not read; trees read counts and recency instead.
- With `leaf_regression` half of the requests grows the trees and the other half weighs their leaves: leaves of what a
  tree has learnt from would tell the label.
- The trees are kept as LightGBM's text, in a buffer of bytes; nothing is pickled.

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

READ_AT_ONCE = 4096  # requests


class GBDTConfig(RankingConfig):
    """Settings of GBDT."""

    trees: int = Field(200, ge=1)
    """E, of each task."""
    leaves: int = Field(15, ge=2)
    """V, most leaves of a tree."""
    learning_rate: float = Field(0.05, gt=0)
    """What a tree's answer counts."""
    leaf_examples: int = Field(50, ge=1)
    """Least candidates in a leaf."""
    weight_l2: float = Field(10.0, ge=0)
    """Lambda in a leaf's weight -G / (H + lambda)."""
    leaf_regression: bool = False
    """A logistic regression over the leaves in place of the trees' sum."""
    leaf_l2: float = Field(10.0, gt=0)
    """Of that regression."""

    def idle_fields(self) -> dict[str, str]:
        """Return the fields that nothing reads while the other settings are as they are, each with the reason."""
        return {
            **super().idle_fields(),
            **configs.idle_unless(self.leaf_regression, "leaf_regression is false", "leaf_l2"),
            "l2": "trees have no field vectors",
        }


class GBDT(RankingModel):
    """Ranks by trees."""

    Config = GBDTConfig
    config: GBDTConfig
    known_answers: ClassVar[tuple[str, ...]] = ("cycle",)  # a checkerboard has no split that pays by itself
    trees: Tensor
    leaf_weights: Tensor
    leaf_biases: Tensor

    def __init__(self, config: GBDTConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        single = [part for part in self.fields.parts if not part.is_bag]
        self.read = [
            place for place, part in enumerate(single) if not (isinstance(part, CrossedWithLast) and not part.is_exact)
        ]
        kinds = (ItemId, ItemCategory, RequestCategory, CrossedWithLast)
        self.categories = [place for place, at in enumerate(self.read) if isinstance(single[at], kinds)]
        self.register_buffer("trees", torch.zeros(0, dtype=torch.uint8))  # JSON: LightGBM's text for each task
        self.register_buffer("leaf_weights", torch.zeros(0))  # [S, E, V]
        self.register_buffer("leaf_biases", torch.zeros(0))  # [S]
        self._parsed: tuple[Tensor, int, list[lightgbm.Booster]] | None = None  # text, its version, what it says

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moved as any module; the trees are read anew from the text that has moved."""
        self._parsed = None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def fit(self, train: Dataset) -> None:
        """Grows the trees of every task."""
        self.fit_to(self.examples(train))

    def fit_to(self, examples: Examples[SequenceBatch]) -> None:
        """The same, from examples that stand (`examples_of`)."""
        parts = []
        for batch in examples.batches(READ_AT_ONCE, epoch=0, seed=0):
            assert batch.candidates is not None
            values = torch.stack([batch.candidate_labels[label].values for label in self._labels(batch)], 1)
            labels = values > 0
            weights = torch.where(labels, torch.as_tensor(self._weights(batch))[..., None], 1.0)
            known = ~values.isnan()
            matrix = self._matrix(self.fields(batch))
            parts.append((matrix, labels.numpy(), weights.numpy(), known.numpy(), batch.candidates.lengths.numpy()))
        matrix, labels_PS, weights_PS, known_PS, sizes = (np.concatenate(part) for part in zip(*parts, strict=True))
        grows = np.ones(len(matrix), np.bool_)
        if self.config.leaf_regression:
            grows = np.repeat(np.random.default_rng(0).random(len(sizes)) < 0.5, sizes)
        texts = []
        for column in range(len(self.tasks)):
            rows = grows & known_PS[:, column]  # what is not known of a candidate teaches nothing
            data = lightgbm.Dataset(
                matrix[rows],
                labels_PS[rows, column],
                weight=weights_PS[rows, column],
                group=_sizes_of(sizes, rows) if self.config.objective == "listwise" else None,
                categorical_feature=self.categories,
            )
            texts.append(lightgbm.train(self._settings(), data, num_boost_round=self.config.trees).model_to_string())
        self.trees = torch.frombuffer(bytearray(json.dumps(texts).encode()), dtype=torch.uint8)
        if self.config.leaf_regression:
            self._weigh_leaves(matrix[~grows], labels_PS[~grows], weights_PS[~grows], known_PS[~grows])

    def logits(self, batch: SequenceBatch, codes: FieldCodes) -> Tensor:
        """The sums of the trees' answers, or of their leaves' weights."""
        boosters, matrix = self._boosters(), self._matrix(codes)
        if not boosters:
            return self.popularity.new_zeros(len(matrix), len(self.tasks))
        if not self.config.leaf_regression:
            answers = [torch.from_numpy(booster.predict(matrix, raw_score=True)) for booster in boosters]
            return torch.stack(answers, 1).to(self.popularity)
        logits = [
            weights[torch.arange(len(weights)), torch.from_numpy(_leaves(booster, matrix))].sum(1)
            for booster, weights in zip(boosters, self.leaf_weights, strict=True)
        ]
        return torch.stack(logits, 1) + self.leaf_biases

    def _matrix(self, codes: FieldCodes) -> NDArray[np.int32]:
        """What the trees read, [P, F]."""
        matrix: NDArray[np.int32] = codes.matrix()[:, self.read].int().cpu().numpy()
        return matrix

    def _settings(self) -> dict[str, Any]:
        settings = self.config
        return {
            "objective": "lambdarank" if self.config.objective == "listwise" else "binary",
            "learning_rate": settings.learning_rate,
            "num_leaves": settings.leaves,
            "min_data_in_leaf": settings.leaf_examples,
            "min_data_per_group": settings.leaf_examples,
            "lambda_l2": settings.weight_l2,
            "deterministic": True,
            "force_row_wise": True,
            "verbosity": -1,
        }

    def _boosters(self) -> list[lightgbm.Booster]:
        """Return the trees, read from their text once; anew if other weights have been loaded."""
        version = version_of(self.trees)
        if self._parsed is None or self._parsed[0] is not self.trees or self._parsed[1] != version:
            texts = json.loads(self.trees.cpu().numpy().tobytes()) if len(self.trees) else []
            self._parsed = (self.trees, version, [lightgbm.Booster(model_str=text) for text in texts])
        return self._parsed[2]

    def _weigh_leaves(
        self,
        matrix: NDArray[np.int32],
        labels_PS: NDArray[np.bool_],
        weights_PS: NDArray[np.float32],
        known_PS: NDArray[np.bool_],
    ) -> None:
        """Logistic regression of the labels on the leaves of trees that have not seen them."""
        weights, biases = [], []
        for column, booster in enumerate(self._boosters()):
            known = known_PS[:, column]
            if len(np.unique(labels_PS[known, column])) < 2:
                raise UserError(
                    "model.leaf_regression: of the half of the requests that weighs the leaves, no two candidates "
                    f"differ in the label of {self.tasks[column]!r}; leave leaf_regression out"
                )
            leaves_PE = _leaves(booster, matrix[known])
            shape = (leaves_PE.shape[1], self.config.leaves)
            places = leaves_PE + np.arange(shape[0]) * shape[1]
            ones = csr_matrix(
                (np.ones(places.size), places.ravel(), np.arange(len(places) + 1) * shape[0]),
                (len(places), shape[0] * shape[1]),
            )
            fitted = LogisticRegression(C=1 / self.config.leaf_l2, max_iter=1000).fit(
                ones, labels_PS[known, column], sample_weight=weights_PS[known, column]
            )
            weights.append(torch.from_numpy(fitted.coef_[0].reshape(shape)).float())
            biases.append(float(fitted.intercept_[0]))
        self.leaf_weights, self.leaf_biases = torch.stack(weights), torch.tensor(biases)


def _leaves(booster: lightgbm.Booster, matrix: NDArray[np.int32]) -> NDArray[np.int64]:
    """The leaf that each tree puts each candidate into, [P, E]."""
    leaves = np.asarray(booster.predict(matrix, pred_leaf=True), np.int64)
    return leaves.reshape(len(matrix), -1)


def _sizes_of(sizes: NDArray[np.int64], kept: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Of the requests with candidates that are kept, how many of these each has."""
    counts = np.bincount(np.repeat(np.arange(len(sizes)), sizes)[kept], minlength=len(sizes))
    left: NDArray[np.int64] = counts[counts > 0]
    return left
