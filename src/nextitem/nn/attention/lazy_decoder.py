"""Lazy decoder: a few positions read a long context, whose tokens pass one projection and no layer.

Zhou et al., OneRec-V2 Technical Report, arXiv 2508.20900, section 2. An encoder spends nearly all of its work on the
context. Here a context processor turns each context token into keys and values, once a request:

    C = W x                                 D -> S * L_kv * G * d features, in chunks of G * d
    k_l = RMSNorm(C[l * S])                 l = 0 .. L_kv - 1
    v_l = RMSNorm(C[l * S + 1]) if S = 2, else v_l = k_l

Layer n of N reads the keys and values l = floor(n * L_kv / N). A layer is cross-attention with query and output
projections alone, causal self-attention, and a feed-forward network or a mixture of experts; each is normalised before,
and added to its input.

Notable
- H heads of queries share G heads of keys: the queries of a group are further rows of one product, so nothing is
  repeated for the heads, nor for several sequences (targets or beams) of one request.
- Whatever the context, a layer adds 4 * L * D operations for each position and reads L_kv * S * G * d numbers for each
  context token. All other work is independent of L.

Shapes: B requests, L context tokens, W sequences of a request, n positions, t earlier positions of a sequence, D width,
H heads, G heads of keys, d width of a head, N layers.
"""

from __future__ import annotations

from typing import cast

import pydantic
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from nextitem.core import config as configs
from nextitem.nn.byte_dropout import ByteDropout
from nextitem.nn.experts import ExpertsConfig, feed_forward


class LazyDecoderConfig(configs.Config):
    """Settings of a lazy decoder."""

    width: int = Field(64, ge=1)
    """Width of the vectors (D)."""
    layers: int = Field(2, ge=1)
    """Number of layers of the decoder (N)."""
    heads: int = Field(4, ge=1)
    """Number of attention heads (H); must divide width."""
    kv_heads: int | None = Field(None, ge=1)
    """Number of heads of the keys and values of the context (G); must divide heads; none: as many as heads."""
    kv_layers: int = Field(1, ge=1)
    """Number of different keys and values of a context token (L_kv), which successive layers share."""
    separate_values: bool = False
    """Whether values of the context are other features than its keys (S = 2)."""
    ff_width: int = Field(256, ge=1)
    """Hidden units of a feed-forward network, and of an expert whose own setting is none."""
    experts: ExpertsConfig | None = None
    """Settings of a mixture of experts in place of the feed-forward networks; none: dense networks."""
    dense_layers: int = Field(0, ge=0)
    """Number of first layers whose feed-forward network stays dense."""
    dropout: float = Field(0.2, ge=0, lt=1)
    """Dropout rate of inputs and of the output of each part of a layer."""

    @pydantic.model_validator(mode="after")
    def _check_sizes(self) -> LazyDecoderConfig:
        if self.width % self.heads:
            raise ValueError(f"heads = {self.heads} must divide width = {self.width}")
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"kv_heads = {self.kv_heads} must divide heads = {self.heads}")
        if self.kv_layers > self.layers:
            raise ValueError(f"kv_layers = {self.kv_layers} is more than layers = {self.layers}; lower kv_layers")
        return self

    def idle_fields(self) -> dict[str, str]:
        """Return the fields that have no effect under the other settings, each with the reason."""
        return configs.idle_unless(self.experts is not None, "experts is none", "dense_layers")


class ContextProcessor(nn.Module):
    """Keys and values of context tokens for all layers, from one projection."""

    def __init__(self, config: LazyDecoderConfig) -> None:
        super().__init__()
        self.heads, self.head_width = config.kv_heads or config.heads, config.width // config.heads
        self.layers, self.streams = config.kv_layers, 1 + config.separate_values
        features = self.heads * self.head_width
        self.projection = nn.Linear(config.width, self.streams * self.layers * features, bias=False)
        self.norms = nn.ModuleList(nn.RMSNorm(features, eps=1e-6) for _ in range(self.streams * self.layers))

    def forward(self, tokens_BLD: Tensor) -> Tensor:
        """Return keys and values [B, L_kv, S, G, L, d]; with S = 1 values are the keys."""
        B, L, _ = tokens_BLD.shape
        chunks = self.projection(tokens_BLD).view(B, L, len(self.norms), -1).unbind(2)
        normed = [norm(chunk).view(B, L, self.heads, -1) for norm, chunk in zip(self.norms, chunks, strict=True)]
        stacked = torch.stack(normed, 1).transpose(2, 3)
        return stacked.view(B, self.layers, self.streams, *stacked.shape[2:])


class LazyLayer(nn.Module):
    """Layer of a lazy decoder: cross-attention without projections of keys and values, self-attention, feed-forward."""

    def __init__(self, config: LazyDecoderConfig, *, number: int) -> None:
        super().__init__()
        width, self.heads = config.width, config.heads
        self.norm_cross, self.norm_self, self.norm_feed = (nn.RMSNorm(width, eps=1e-6) for _ in range(3))
        self.cross_query, self.cross_output = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        experts = config.experts if number >= config.dense_layers else None
        self.feed = feed_forward(width, hidden=config.ff_width, experts=experts, dropout=config.dropout)
        self.dropout = ByteDropout(config.dropout)

    def forward(
        self, hidden_BWnD: Tensor, context: Tensor, mask: Tensor | None, past: Tensor | None, is_real: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the hidden states after the layer [B, W, n, D], and keys and values [B, W, 2, H, t + n, d].

        Args:
            hidden_BWnD: hidden states.
            context: keys and values of the context for this layer, [B, S, G, L, d].
            mask: which context tokens are real, bool [B, 1, 1, L]; None: all.
            past: keys and values of the earlier positions of each sequence, [B, W, 2, H, t, d]; None: there are none.
            is_real: which sequences are real, bool [B, W]; the feed-forward network skips the others; None: all.

        """
        hidden_BWnD = hidden_BWnD + self.dropout(self._read_context(self.norm_cross(hidden_BWnD), context, mask))
        mixed, keys_values = self._read_path(self.norm_self(hidden_BWnD), past)
        hidden_BWnD = hidden_BWnD + self.dropout(mixed)
        if is_real is None:
            return hidden_BWnD + self.dropout(self.feed(self.norm_feed(hidden_BWnD))), keys_values
        change = self.dropout(self.feed(self.norm_feed(hidden_BWnD[is_real]))).to(hidden_BWnD.dtype)
        return hidden_BWnD + torch.zeros_like(hidden_BWnD).index_put((is_real,), change), keys_values

    def _read_context(self, normed_BWnD: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """Return the output of cross-attention, [B, W, n, D]."""
        B, W, n, D = normed_BWnD.shape
        key, value = context[:, 0], context[:, -1]
        group = (self.heads // key.shape[1], W * n)  # rows of queries that read the same keys
        query = self.cross_query(normed_BWnD).view(B, W * n, key.shape[1], group[0], -1)
        query = query.permute(0, 2, 3, 1, 4).flatten(2, 3)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        mixed = mixed.unflatten(2, group).permute(0, 3, 1, 2, 4).reshape(B, W, n, D)
        return self.cross_output(mixed)  # type: ignore[no-any-return]

    def _read_path(self, normed_BWnD: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the output of causal self-attention [B, W, n, D], and all keys and values [B, W, 2, H, t + n, d]."""
        B, W, n, D = normed_BWnD.shape
        parts = self.query_key_value(normed_BWnD).view(B, W, n, 3, self.heads, -1).permute(3, 0, 1, 4, 2, 5)
        keys_values = torch.stack([parts[1], parts[2]], dim=2)
        if past is not None:
            keys_values = torch.cat([past, keys_values], dim=4)
        key, value = keys_values[:, :, :, :, None].unbind(2)  # [B, W, H, 1, t + n, d]
        # A path is a few positions long: products by element take less time than a product of matrices for each path.
        logits = (parts[0][..., None, :] * key).sum(-1) * key.shape[5] ** -0.5
        if n > 1:
            is_read = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril(logits.shape[-1] - n)
            logits = logits.masked_fill(~is_read, -torch.inf)
        mixed = (logits.softmax(-1)[..., None] * value).sum(-2)
        return self.output(mixed.transpose(2, 3).reshape(B, W, n, D)), keys_values


class LazyDecoder(nn.Module):
    """Context processor and layers."""

    def __init__(self, config: LazyDecoderConfig) -> None:
        super().__init__()
        self.processor = ContextProcessor(config)
        self.layers = nn.ModuleList(LazyLayer(config, number=number) for number in range(config.layers))

    @torch.no_grad()
    def start_as_mean(self) -> None:
        """Set the projections of context and of cross-attention to the identity, in place.

        So a position first reads the mean of the tokens that it attends to; training need not find that out.
        """
        for chunk in self.processor.projection.weight.chunk(len(self.processor.norms)):
            nn.init.eye_(chunk)
        for layer in self.layers:
            nn.init.eye_(cast(LazyLayer, layer).cross_output.weight)

    def read(self, tokens_BLD: Tensor) -> Tensor:
        """Return what positions read of context tokens: keys and values [B, L_kv, S, G, L, d]."""
        return self.processor(tokens_BLD)  # type: ignore[no-any-return]

    def forward(
        self,
        hidden_BWnD: Tensor,
        context: Tensor,
        *,
        mask: Tensor | None = None,
        past: Tensor | None = None,
        is_real: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the hidden states of n positions of W sequences a request [B, W, n, D], and the new past.

        Args:
            hidden_BWnD: input vectors.
            context: what `read` returns.
            mask: which context tokens are real, bool [B, 1, 1, L]; None: all.
            past: keys and values of earlier positions, [B, W, N, 2, H, t, d]; None: these positions are the first.
            is_real: which sequences are real, bool [B, W]; None: all.

        """
        pasts = []
        for number, layer in enumerate(self.layers):
            of_layer = context[:, number * context.shape[1] // len(self.layers)]
            former = None if past is None else past[:, :, number]
            hidden_BWnD, keys_values = cast(LazyLayer, layer)(hidden_BWnD, of_layer, mask, former, is_real)
            pasts.append(keys_values)
        return hidden_BWnD, torch.stack(pasts, dim=2)
