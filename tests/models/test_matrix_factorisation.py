"""iALS against the normal equations, its own loss, and a well-kept library."""

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
    chosen = {"width": 6, "recency_decay": 1.0, "regularisation": 0.05, "unobserved_weight": 0.1, **settings}
    model = MatrixFactorisation(MatrixFactorisationConfig(**chosen), dataset.catalog)
    torch.manual_seed(0)
    model.fit(dataset)
    return model


def taken_by(sequences: list[list[int]]) -> torch.Tensor:
    taken = torch.zeros(len(sequences) + 1, ITEMS + 1, dtype=torch.float64)
    for user, sequence in enumerate(sequences, start=1):
        taken[user, sequence] = 1
    return taken


def loss(model: MatrixFactorisation, taken: torch.Tensor, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    chosen = model.config
    products = users @ items.T
    alpha, power = chosen.unobserved_weight, chosen.frequency_power
    by_user = (taken.sum(1)[1:] + alpha * (taken.shape[1] - 1)) ** power
    by_item = (taken.sum(0)[1:] + alpha * (taken.shape[0] - 1)) ** power
    squares = (by_user * users[1:].square().sum(1)).sum() + (by_item * items[1:].square().sum(1)).sum()
    fit = (taken * (products - 1).square()).sum() + alpha * products.square().sum()
    return fit + chosen.regularisation * squares


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_solved_rows_are_where_the_loss_is_flat(power: float) -> None:
    sequences = random_sequences(0)
    model, taken = fitted(sequences, frequency_power=power), taken_by(sequences)
    users = model.user_vectors(SequenceBatch(Jagged.from_rows(sequences))).double()
    users = torch.cat([torch.zeros(1, 6), users]).requires_grad_()
    loss(model, taken, users, model.items.double()).backward()
    assert users.grad is not None
    torch.testing.assert_close(users.grad, torch.zeros_like(users), atol=2e-5, rtol=0)


def test_more_rounds_lower_the_loss() -> None:
    sequences = random_sequences(1)
    taken = taken_by(sequences)
    values = []
    for rounds in (1, 2, 5, 20):
        model = fitted(sequences, iterations=rounds)
        users = model.user_vectors(SequenceBatch(Jagged.from_rows(sequences)))
        users = torch.cat([torch.zeros(1, 6), users]).double()
        values.append(float(loss(model, taken, users, model.items.double())))
    assert values == sorted(values, reverse=True)
    assert values[0] > 1.01 * values[-1]


def test_a_request_is_folded_in_as_a_well_kept_library_does() -> None:
    sequences = random_sequences(2)
    model = fitted(sequences, frequency_power=0.0, unobserved_weight=0.2)
    peer = AlternatingLeastSquares(
        factors=6, regularization=0.05 / 0.2, alpha=1.0, use_cg=False, use_native=False, iterations=1
    )
    taken = sp.csr_matrix(taken_by(sequences)[1:, 1:].numpy().astype(np.float32))
    peer.fit(taken, show_progress=False)
    peer.item_factors = model.items[1:].numpy()
    peer._YtY = None
    weighted = taken.copy()
    weighted.data[:] = 1 + 1 / 0.2
    theirs = np.stack([peer.recalculate_user(user, weighted[user]) for user in range(10)])
    ours = model.user_vectors(SequenceBatch(Jagged.from_rows(sequences[:10])))
    np.testing.assert_allclose(1.2 * ours.numpy(), theirs.reshape(10, 6), rtol=2e-3, atol=1e-4)


def test_blocks_of_rows_give_what_one_block_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    sequences = random_sequences(3)
    whole = fitted(sequences)
    monkeypatch.setattr(matrix_factorisation, "PADDED_NUMBERS", 100)
    torch.testing.assert_close(fitted(sequences).items, whole.items, rtol=1e-3, atol=1e-5)


def test_recent_events_weigh_more() -> None:
    model = fitted(random_sequences(4), recency_decay=0.5)
    one = model.user_vectors(SequenceBatch(Jagged.from_rows([[3, 8]])))
    pair = model.items[[3, 8]]
    system = pair.T @ torch.diag(torch.tensor([0.5, 1.0])) @ pair + 0.1 * model.items.T @ model.items
    system += 0.05 * (1.5 + 0.1 * ITEMS) * torch.eye(6)
    expected = torch.linalg.solve(system, 0.5 * pair[0] + pair[1])
    torch.testing.assert_close(one[0], expected, rtol=1e-3, atol=1e-4)


def test_scores_are_products_of_vectors() -> None:
    model = fitted(random_sequences(5))
    assert isinstance(model, VectorModel)
    batch = SequenceBatch(Jagged.from_rows([[1, 2], [7]]))
    products = model.user_vectors(batch) @ model.item_vectors().T
    found = model.recommend(batch, 5)
    torch.testing.assert_close(found.scores, products[:, 1:].topk(5).values)
