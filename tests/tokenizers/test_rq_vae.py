"""RQ-VAE: loss computed by hand, gradients to every part, k-means start, revived codes, resumed training."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from support.planted_content import catalog_of, clusters, learn
from torch import Tensor, nn

from nextitem.core.catalog import Catalog
from nextitem.data.examples.content_rows import ContentBatch
from nextitem.nn.quantisation.quantizers import nearest_code
from nextitem.tokenizers.collisions import build_table
from nextitem.tokenizers.quality import QualityConfig, collapse_warning
from nextitem.tokenizers.rq_vae import RQVAE, RQVAEConfig

CONTENT, _ = clusters()


def _model(catalog: Catalog | None = None, *, seed: int = 0, **settings: object) -> RQVAE:
    torch.manual_seed(seed)
    small = {"codebook_size": 8, "hidden": (16,), "latent_dim": 4, **settings}
    return RQVAE(RQVAEConfig.model_validate(small), catalog or catalog_of(CONTENT))


def test_the_loss_is_that_of_the_paper() -> None:
    model = _model(commitment=0.5).eval()
    terms = model.training_loss(ContentBatch(CONTENT[:10]))
    latent = model.network.encoder(CONTENT[:10])
    residual, total, quantised = latent, torch.zeros(()), torch.zeros_like(latent)
    for book in model.codebooks.tables:
        nearest = torch.stack([book[int(((row - book) ** 2).sum(1).argmin())] for row in residual])
        total = total + 1.5 * ((residual - nearest) ** 2).sum() / 10
        quantised, residual = quantised + nearest, residual - nearest
    total = total + ((CONTENT[:10] - model.network.decoder(quantised)) ** 2).sum() / 10
    torch.testing.assert_close(terms.total, total)
    assert set(terms.named) == {"reconstruction", "codebook", "codes_in_use"}


def test_gradients_reach_encoder_decoder_and_every_used_code() -> None:
    model = _model()
    model.training_loss(ContentBatch(CONTENT)).total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
    assert model.codebooks.tables.grad is not None
    has_gradient = model.codebooks.tables.grad.abs().sum(2) > 0
    assert torch.equal(has_gradient, model.codebooks.usage > 0)
    gradient = model.network.get_parameter("encoder.0.weight").grad
    assert gradient is not None
    assert float(gradient.norm()) > 0


def test_the_gradient_of_the_reconstruction_passes_straight_through_to_the_encoder() -> None:
    """The reconstruction loss has the same gradient at the latent vector as at the quantised vector."""
    model = _model(commitment=0.0).eval()
    content = CONTENT[:6]
    latents: list[Tensor] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...], latent: Tensor) -> None:
        latent.retain_grad()
        latents.append(latent)

    hook = model.network.encoder.register_forward_hook(record)
    model.training_loss(ContentBatch(content)).total.backward()
    hook.remove()
    codes = model.encode(content)
    quantised = sum(book[codes[:, level]] for level, book in enumerate(model.codebooks.tables.detach()))
    quantised.requires_grad_()
    (content - model.network.decoder(quantised)).square().sum(1).mean().backward()
    torch.testing.assert_close(latents[0].grad, quantised.grad)


def test_the_first_batch_initialises_the_codes_by_kmeans() -> None:
    model = _model()
    model.training_loss(ContentBatch(CONTENT))
    latent = model.network.encoder(CONTENT).detach()
    codes = model.encode(CONTENT)
    assert len(torch.unique(codes[:, 0])) == 8
    for code in range(8):  # a converged centroid is the mean of its cluster
        torch.testing.assert_close(
            model.codebooks.tables[0, code].detach(), latent[codes[:, 0] == code].mean(0), atol=1e-3, rtol=1e-3
        )


def test_unused_codes_restart_and_used_codes_stay() -> None:
    model = _model(revive_every=2)
    batch = ContentBatch(CONTENT)
    model.training_loss(batch)
    with torch.no_grad():
        model.codebooks.tables[0, 3] = 1e6
        model.codebooks.usage[0, 3] = 0
        before = model.codebooks.tables.detach().clone()
    model.training_loss(batch)
    assert float(model.codebooks.tables[0, 3, 0].detach()) == 1e6
    with torch.no_grad():
        model.codebooks.usage[0, 3] = 0
    model.training_loss(batch)
    latent = model.network.encoder(CONTENT).detach()
    assert float((latent - model.codebooks.tables[0, 3].detach()).norm(dim=1).min()) < 1e-5
    others = torch.arange(8) != 3
    assert torch.equal(model.codebooks.tables[0, others].detach(), before[0, others])
    assert int(nearest_code(model.codebooks.tables[0, 3:4].detach(), model.codebooks.tables[0].detach())) == 3


def test_evaluating_the_loss_changes_nothing() -> None:
    model = _model().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.training_loss(ContentBatch(CONTENT))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_training_resumed_from_a_saved_state_equals_uninterrupted_training() -> None:
    def train(model: RQVAE, optimizer: torch.optim.Optimizer, batches: range) -> None:
        for index in batches:
            optimizer.zero_grad()
            model.training_loss(ContentBatch(CONTENT[index * 7 : index * 7 + 30])).total.backward()
            optimizer.step()

    whole = _model(revive_every=3, codebook_size=32)
    optimizer = torch.optim.AdamW(whole.parameters(), lr=1e-2)
    train(whole, optimizer, range(8))
    state, moments = deepcopy(whole.state_dict()), deepcopy(optimizer.state_dict())
    resumed = _model(revive_every=3, codebook_size=32, seed=77)
    resumed.load_state_dict(state)
    resumed_optimizer = torch.optim.AdamW(resumed.parameters(), lr=1e-2)
    resumed_optimizer.load_state_dict(moments)
    torch.manual_seed(5)
    train(resumed, resumed_optimizer, range(8, 16))
    train(whole, optimizer, range(8, 16))
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


def test_training_lowers_the_reconstruction_error() -> None:
    catalog = catalog_of(CONTENT)
    early, late = (learn("rq-vae", catalog, epochs=epochs, codebook_size=8) for epochs in (1, 60))
    errors = [float((model.decode(model.encode(CONTENT)) - CONTENT).square().mean()) for model in (early, late)]
    assert errors[1] < errors[0] / 5


@pytest.mark.parametrize(("standardise", "collapses"), [(False, True), (True, False)])
def test_unit_vectors_around_a_common_mean_collapse_unless_standardised(standardise: bool, collapses: bool) -> None:
    """Content is like that of sentence encoders: unit norm, nearly the same direction, small differences."""
    content = torch.nn.functional.normalize(CONTENT * 1e-4 + 1.0, dim=1)
    catalog = catalog_of(content)
    model = learn("rq-vae", catalog, codebook_size=16, standardise=standardise, revive_every=10**6)
    warning = collapse_warning(build_table(model, catalog).report or {}, QualityConfig())
    assert (warning is not None) == collapses
