"""Matrix factorisation for implicit feedback by alternating least squares: iALS.

Users and items are vectors; products of what users took shall be 1, all others 0, these at a small weight (Hu, Koren,
Volinsky, 2008). With one side fixed the other is a least-squares problem a row, solved exactly, in turns. A request's
vector is solved from its own history, so that unknown visitors and new events are served without training.

    loss = sum over taken (u, i) of (x_u y_i - 1)^2  +  alpha * sum over all (u, i) of (x_u y_i)^2
           + lambda * sum over u of (|I_u| + alpha N)^nu |x_u|^2  +  the same over i with |U_i| + alpha U
    x_u  = (sum over I_u of y y'  +  alpha Y'Y  +  lambda (|I_u| + alpha N)^nu 1)^-1  sum over I_u of y

The loss is that of Rendle et al., Revisiting the Performance of iALS on Item Recommendation Benchmarks
(arXiv 2110.14037), whose regularisation by frequency is what makes it competitive.

Notable
- Given the items, x_u is 1 / (1 + alpha) times that of the implicit library at confidence 1 + 1 / alpha (tested).
- A request's events weigh `recency_decay` ** age in its sum, since what comes next is asked for; users of training
  weigh all alike. A repeated item counts once in training, and by the sum of its weights in a request.
- Items without events have the vector 0; they follow all others.

Shapes: B requests, U users, N items, D width, R rows that are solved together, L their longest.
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
from nextitem.neighbours.ann_index import AnnIndex, AnnIndexConfig
from nextitem.neighbours.sparse_rows import padded_rows, users_by_items
from nextitem.neighbours.votes import recent_history

PADDED_NUMBERS = 2**22  # of vectors and of normal equations that are held at a time


class MatrixFactorisationConfig(configs.Config):
    """Settings of MatrixFactorisation."""

    width: int = Field(64, ge=1)
    """D."""
    iterations: int = Field(15, ge=1)
    """Rounds of solving all users, then all items."""
    unobserved_weight: float = Field(0.01, gt=0)
    """Alpha: weight of a pair, taken or not, towards 0."""
    regularisation: float = Field(0.02, ge=0)
    """Lambda."""
    frequency_power: float = Field(1.0, ge=0)
    """Nu: how much more a frequent user or item is regularised."""
    initial_scale: float = Field(0.1, gt=0)
    """Of a vector's length at the start."""
    recent_items: int | None = Field(50, ge=1)
    """Items of the history that are solved from; None: all."""
    recency_decay: float = Field(0.7, gt=0, le=1)
    """Factor on an item's weight for each event that followed it."""
    index: AnnIndexConfig = AnnIndexConfig()
    """How items are found."""


class MatrixFactorisation(VectorModel):
    """Ranks items by the product of their vector and the history's."""

    Config = MatrixFactorisationConfig
    config: MatrixFactorisationConfig
    known_answers: ClassVar[tuple[str, ...]] = ("checkerboard", "planted-clusters")
    items: Tensor
    gram: Tensor

    def __init__(self, config: MatrixFactorisationConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        width = config.width
        self.register_buffer("items", torch.zeros(catalog.num_items + 1, width))
        self.register_buffer("gram", torch.zeros(width, width))  # alpha Y'Y
        self.index = AnnIndex(config.index)

    def fit(self, train: Dataset) -> None:
        """Solves users and items in turns; random numbers only for where the items' vectors begin."""
        taken = users_by_items(train.interactions.targets_only())
        takers = taken.T.tocsr()
        width = self.config.width
        self.items = torch.randn(taken.shape[1], width) * self.config.initial_scale / width**0.5
        self.items[0] = 0
        users = torch.zeros(taken.shape[0], width)
        for _ in range(self.config.iterations):
            users = self.solve(taken, self.items, others=taken.shape[1] - 1)
            self.items = self.solve(takers, users, others=taken.shape[0] - 1)
        self.gram = self.config.unobserved_weight * self.items.T @ self.items
        self.index.build(self.items, users[np.diff(taken.indptr) > 0])

    def solve(self, weights: sp.csr_matrix, vectors: Tensor, *, others: int, gram: Tensor | None = None) -> Tensor:
        """The best vector [R, D] of each row of `weights [R, .]`, given the other side's `vectors`.

        `others`: how many vectors there are beside padding; `gram`: alpha times their Gram matrix, if at hand.
        """
        chosen = self.config
        alpha, width = chosen.unobserved_weight, vectors.shape[1]
        if gram is None:
            gram = alpha * vectors.T @ vectors
        lengths = np.diff(weights.indptr)
        solved = torch.zeros(weights.shape[0], width)
        rows = np.flatnonzero(lengths > 0)
        rows = rows[np.argsort(lengths[rows], kind="stable")[::-1]]
        unit = torch.eye(width)
        while len(rows):  # rows of about equal lengths together: little padding
            part = rows[: max(1, PADDED_NUMBERS // (width * max(int(lengths[rows[0]]), width)))]
            rows = rows[len(part) :]
            values, columns = padded_rows(weights, part)
            values[values == -torch.inf] = 0
            taken = vectors[columns]
            weighted = taken * values[:, :, None]
            penalty = chosen.regularisation * (values.sum(1) + alpha * others) ** chosen.frequency_power
            system = torch.baddbmm(gram, weighted.mT, taken) + penalty[:, None, None] * unit
            factor = torch.linalg.cholesky(system)
            solved[torch.from_numpy(part)] = torch.cholesky_solve(weighted.sum(1)[:, :, None], factor)[:, :, 0]
        return solved

    def user_vectors(self, batch: SequenceBatch) -> Tensor:
        """Vectors [B, D] solved from the histories."""
        chosen = self.config
        history = recent_history(batch, count=chosen.recent_items, decay=chosen.recency_decay, num_items=self.num_items)
        return self.solve(history, self.items, others=self.num_items, gram=self.gram)

    def item_vectors(self) -> Tensor:
        """[N + 1, D]; row 0 is padding."""
        return self.items

    def _nearest(self, vectors: Tensor, batch: SequenceBatch, k: int) -> Recommendations:
        return self.index.nearest(self, vectors, batch, k)
