"""Tests of iALS against the normal equations, its own loss, and the implicit library."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from implicit.als import AlternatingLeastSquares

from nextitem.core.batch import SequenceBatch
from nextitem.core.jagged import Jagged
from nextitem.core.vector_model import VectorModel
from nextitem.models import matrix_factorisation
from nextitem.models.matrix_factorisation import MatrixFactorisation, MatrixFactorisationConfig
from nextitem.testing.known_answers import build

ITEMS = 25


def random_sequences(seed: int, *, users: int = 40) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(1, ITEMS + 1, rng.integers(2, 12)).tolist() for _ in range(users)]


def fitted(sequences: list[list[int]], **settings: object) -> MatrixFactorisation:
    dataset = build(sequences, [f"t{number}" for number in range(ITEMS)], name="random")
    fields = {"width": 6, "recency_decay": 1.0, "regularisation": 0.05, "unobserved_weight": 0.1, **settings}
    model = MatrixFactorisation(MatrixFactorisationConfig(**fields), dataset.catalog)
    torch.manual_seed(0)
    model.fit(dataset)
    return model


def observed_pairs(sequences: list[list[int]]) -> torch.Tensor:
    observed = torch.zeros(len(sequences) + 1, ITEMS + 1, dtype=torch.float64)
    for user, sequence in enumerate(sequences, start=1):
        observed[user, sequence] = 1
    return observed


def loss(model: MatrixFactorisation, observed: torch.Tensor, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    config = model.config
    products = users @ items.T
    alpha, power = config.unobserved_weight, config.frequency_power
    by_user = (observed.sum(1)[1:] + alpha * (observed.shape[1] - 1)) ** power
    by_item = (observed.sum(0)[1:] + alpha * (observed.shape[0] - 1)) ** power
    squares = (by_user * users[1:].square().sum(1)).sum() + (by_item * items[1:].square().sum(1)).sum()
    fit = (observed * (products - 1).square()).sum() + alpha * products.square().sum()
    return fit + config.regularisation * squares


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_the_gradient_of_the_loss_is_zero_at_solved_rows(power: float) -> None:
    sequences = random_sequences(0)
    model, observed = fitted(sequences, frequency_power=power), observed_pairs(sequences)
    users = model.user_vectors(SequenceBatch(Jagged.from_rows(sequences))).double()
    users = torch.cat([torch.zeros(1, 6), users]).requires_grad_()
    loss(model, observed, users, model.items.double()).backward()
    assert users.grad is not None
    torch.testing.assert_close(users.grad, torch.zeros_like(users), atol=2e-5, rtol=0)


def test_more_rounds_lower_the_loss() -> None:
    sequences = random_sequences(1)
    observed = observed_pairs(sequences)
    values = []
    for rounds in (1, 2, 5, 20):
        model = fitted(sequences, iterations=rounds)
        users = model.user_vectors(SequenceBatch(Jagged.from_rows(sequences)))
        users = torch.cat([torch.zeros(1, 6), users]).double()
        values.append(float(loss(model, observed, users, model.items.double())))
    assert values == sorted(values, reverse=True)
    assert values[0] > 1.01 * values[-1]


def test_a_request_s_vector_equals_that_of_the_implicit_library() -> None:
    sequences = random_sequences(2)
    model = fitted(sequences, frequency_power=0.0, unobserved_weight=0.2)
    peer = AlternatingLeastSquares(
        factors=6, regularization=0.05 / 0.2, alpha=1.0, use_cg=False, use_native=False, iterations=1
    )
    user_items = sp.csr_matrix(observed_pairs(sequences)[1:, 1:].numpy().astype(np.float32))
    peer.fit(user_items, show_progress=False)
    peer.item_factors = model.items[1:].numpy()
    peer._YtY = None
    weighted = user_items.copy()
    weighted.data[:] = 1 + 1 / 0.2
    theirs = np.stack([peer.recalculate_user(user, weighted[user]) for user in range(10)])
    ours = model.user_vectors(SequenceBatch(Jagged.from_rows(sequences[:10])))
    np.testing.assert_allclose(1.2 * ours.numpy(), theirs.reshape(10, 6), rtol=2e-3, atol=1e-4)


def test_blocks_of_rows_have_the_same_result_as_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    sequences = random_sequences(3)
    whole = fitted(sequences)
    monkeypatch.setattr(matrix_factorisation, "PADDED_NUMBERS", 100)
    torch.testing.assert_close(fitted(sequences).items, whole.items, rtol=1e-3, atol=1e-5)


def test_recent_events_have_larger_weights() -> None:
    model = fitted(random_sequences(4), recency_decay=0.5)
    one = model.user_vectors(SequenceBatch(Jagged.from_rows([[3, 8]])))
    pair = model.items[[3, 8]]
    system = pair.T @ torch.diag(torch.tensor([0.5, 1.0])) @ pair + 0.1 * model.items.T @ model.items
    system += 0.05 * (1.5 + 0.1 * ITEMS) * torch.eye(6)
    expected = torch.linalg.solve(system, 0.5 * pair[0] + pair[1])
    torch.testing.assert_close(one[0], expected, rtol=1e-3, atol=1e-4)


def test_scores_are_inner_products_of_vectors() -> None:
    model = fitted(random_sequences(5))
    assert isinstance(model, VectorModel)
    batch = SequenceBatch(Jagged.from_rows([[1, 2], [7]]))
    products = model.user_vectors(batch) @ model.item_vectors().T
    answer = model.recommend(batch, 5)
    torch.testing.assert_close(answer.scores, products[:, 1:].topk(5).values)
