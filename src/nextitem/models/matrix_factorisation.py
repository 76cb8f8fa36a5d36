"""Matrix factorisation for implicit feedback by alternating least squares: iALS.

Users and items are vectors. The product of a user and an item with an event is fitted to 1, all other products are
fitted to 0 at a small weight (Hu, Koren, Volinsky, 2008). With one side fixed, each row of the other is a least-squares
problem; both sides are solved exactly, in turns. A request's vector is solved from its own history, so that unknown
visitors and new events are served without training.

    loss = sum over observed (u, i) of (x_u y_i - 1)^2  +  alpha * sum over all (u, i) of (x_u y_i)^2
           + lambda * sum over u of (|I_u| + alpha N)^nu |x_u|^2  +  the same over i with |U_i| + alpha U
    x_u  = (sum over I_u of y y'  +  alpha Y'Y  +  lambda (|I_u| + alpha N)^nu 1)^-1  sum over I_u of y

The loss is that of Rendle et al., Revisiting the Performance of iALS on Item Recommendation Benchmarks
(arXiv 2110.14037), whose regularisation by frequency is what makes it competitive.

Notable
- Given the items, x_u is 1 / (1 + alpha) times that of the implicit library at confidence 1 + 1 / alpha (tested).
- A request's events weigh `recency_decay` ** age in its sum, since the next item is to be predicted; events of training
  users weigh the same. A repeated item counts once in training, and by the sum of its weights in a request.
- Items without events have the vector 0; they rank below all others.

Shapes: B requests, U users, N items, D width, R rows that are solved together, L length of the longest of them.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import scipy.sparse as sp
import torch
from pydantic import Field
from torch import Tensor

from nextitem.core import config as configs
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.dataset import Dataset
from nextitem.core.recommendations import Recommendations
from nextitem.core.vector_model import VectorModel
from nextitem.neighbours.ann_index import AnnIndex, AnnIndexConfig, ExactIndex
from nextitem.neighbours.sparse_rows import padded_rows, users_by_items
from nextitem.neighbours.votes import recent_history

PADDED_NUMBERS = 2**22  # numbers of the vectors, and of the normal equations, in memory at a time


class MatrixFactorisationConfig(configs.Config):
    """Settings of MatrixFactorisation."""

    width: int = Field(64, ge=1)
    """Width of the vectors (D)."""
    iterations: int = Field(15, ge=1)
    """Number of rounds; each solves all users and then all items."""
    unobserved_weight: float = Field(0.01, gt=0)
    """Alpha: weight of the term that fits every pair of user and item, observed or not, to 0."""
    regularisation: float = Field(0.02, ge=0)
    """Lambda: weight of the L2 regularisation."""
    frequency_power: float = Field(1.0, ge=0)
    """Nu: power of the frequency of a user or item in its regularisation; 0: all are regularised equally."""
    initial_scale: float = Field(0.1, gt=0)
    """Typical length of a vector at the start."""
    recent_items: int | None = Field(50, ge=1)
    """Number of most recent items of the history from which a request's vector is solved; None: all."""
    recency_decay: float = Field(0.7, gt=0, le=1)
    """Factor on the weight of an item for each later event."""
    index: AnnIndexConfig = Field(ExactIndex(), discriminator="kind")
    """Index that searches for the nearest items."""


class MatrixFactorisation(VectorModel):
    """A recommender that ranks items by the inner product of their vector and the history's."""

    Config = MatrixFactorisationConfig
    config: MatrixFactorisationConfig
    known_answers: ClassVar[tuple[str, ...]] = ("checkerboard", "planted-clusters")
    items: Tensor
    gram: Tensor

    def __init__(self, config: MatrixFactorisationConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        width = config.width
        self.register_buffer("items", torch.zeros(catalog.num_items + 1, width))
        self.register_buffer("gram", torch.zeros(width, width))  # alpha Y'Y of the item vectors Y
        self.index = AnnIndex(config.index)

    def fit(self, train: Dataset) -> None:
        """Solve users and items in turns; only the initial vectors of the items are random."""
        user_items = users_by_items(train.interactions.targets_only())
        item_users = user_items.T.tocsr()
        width = self.config.width
        self.items = torch.randn(user_items.shape[1], width) * self.config.initial_scale / width**0.5
        self.items[0] = 0
        users = torch.zeros(user_items.shape[0], width)
        for _ in range(self.config.iterations):
            users = self.solve(user_items, self.items, num_others=user_items.shape[1] - 1)
            self.items = self.solve(item_users, users, num_others=user_items.shape[0] - 1)
        self.gram = self.config.unobserved_weight * self.items.T @ self.items
        self.index.build(self.items, users[np.diff(user_items.indptr) > 0])

    def solve(self, weights: sp.csr_matrix, vectors: Tensor, *, num_others: int, gram: Tensor | None = None) -> Tensor:
        """Return the vectors [R, D] that minimise the loss of each row.

        Args:
            weights: weights [R, .] of the pairs of each row with the other side.
            vectors: fixed vectors of the other side.
            num_others: number of those vectors, without padding.
            gram: alpha times their Gram matrix; None: it is computed.

        """
        config = self.config
        alpha, width = config.unobserved_weight, vectors.shape[1]
        if gram is None:
            gram = alpha * vectors.T @ vectors
        lengths = np.diff(weights.indptr)
        solved = torch.zeros(weights.shape[0], width)
        rows = np.flatnonzero(lengths > 0)
        rows = rows[np.argsort(lengths[rows], kind="stable")[::-1]]
        unit = torch.eye(width)
        while len(rows):  # rows of about equal lengths are solved together, so that there is little padding
            part = rows[: max(1, PADDED_NUMBERS // (width * max(int(lengths[rows[0]]), width)))]
            rows = rows[len(part) :]
            values, columns = padded_rows(weights, part)
            values[values == -torch.inf] = 0
            fixed_vectors = vectors[columns]
            weighted = fixed_vectors * values[:, :, None]
            penalty = config.regularisation * (values.sum(1) + alpha * num_others) ** config.frequency_power
            system = torch.baddbmm(gram, weighted.mT, fixed_vectors) + penalty[:, None, None] * unit
            factor = torch.linalg.cholesky(system)
            solved[torch.from_numpy(part)] = torch.cholesky_solve(weighted.sum(1)[:, :, None], factor)[:, :, 0]
        return solved

    def user_vectors(self, batch: SequenceBatch) -> Tensor:
        """Return the vectors [B, D] solved from the histories."""
        config = self.config
        history = recent_history(batch, count=config.recent_items, decay=config.recency_decay, num_items=self.num_items)
        return self.solve(history, self.items, num_others=self.num_items, gram=self.gram)

    def item_vectors(self) -> Tensor:
        """Return the item vectors, [N + 1, D]; row 0 is padding."""
        return self.items

    def _nearest(self, vectors: Tensor, batch: SequenceBatch, k: int) -> Recommendations:
        return self.index.nearest(self, vectors, batch, k)
