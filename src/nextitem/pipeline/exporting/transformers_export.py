"""Export of a decoder-only generator to a folder for Hugging Face's transformers and engines that read its format.

Cobra without vectors is GPT-2's decoder: pre-norm blocks, learned position embeddings, GELU. The position of a token in
the prompt determines both the position of its item and the level of its code. So the sum of Cobra's two embeddings of
these becomes one position embedding of GPT-2.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from nextitem.core.errors import UserError
from nextitem.models.cobra import Cobra
from nextitem.nn.attention.transformer import PreNormBlock
from nextitem.pipeline.bundle import save_catalog
from nextitem.pipeline.folders import prepare_out
from nextitem.pipeline.runs import Run

if TYPE_CHECKING:
    from transformers import GPT2Config, GPT2LMHeadModel


def write_transformers(run: Run, out: str | Path, *, overwrite: bool) -> Path:
    """Write config.json, generation_config.json and model.safetensors, the catalogue, its codes and their trie.

    Raises UserError if the run is no decoder-only generator, if transformers is not installed, or if `out` may not be
    written.
    """
    model = run.model
    if not isinstance(model, Cobra) or model.config.dense:
        raise UserError(
            f"{run.folder} is no decoder of codes alone, and nothing else can be exported for transformers; train one "
            "with: nextitem train cobra --set model.dense=false, or choose another --format: onnx, vectors or generator"
        )
    exported = as_gpt2(model)
    folder = prepare_out(out, overwrite=overwrite)
    exported.save_pretrained(folder)
    save_catalog(folder, model.catalog)
    model.trie.save(folder / "trie.safetensors")
    return folder


def as_gpt2(model: Cobra) -> GPT2LMHeadModel:
    """Return the decoder as a GPT2LMHeadModel with the same weights. Its last token is padding.

    Raises UserError if transformers is not installed.
    """
    try:
        from transformers import GPT2LMHeadModel
    except ImportError:
        raise UserError("the export needs the extra `text`; install it with: pip install 'nextitem[text]'") from None
    config = _config(model)
    weights = _weights(model)
    exported = GPT2LMHeadModel(config).eval()
    missing, unknown = exported.load_state_dict(weights, strict=False)
    assert not unknown, unknown
    assert not missing, missing
    return cast("GPT2LMHeadModel", exported)


def _config(model: Cobra) -> GPT2Config:
    from transformers import GPT2Config

    settings, codes = model.config, sum(model.sizes)
    return GPT2Config(
        vocab_size=codes + 1,
        n_positions=(settings.max_history_length + 1) * model.per_item,
        n_embd=settings.width,
        n_layer=settings.layers,
        n_head=settings.heads,
        activation_function="gelu",
        resid_pdrop=settings.dropout,
        embd_pdrop=settings.dropout,
        attn_pdrop=settings.dropout,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=codes,
    )


def _weights(model: Cobra) -> dict[str, Tensor]:
    """Return the weights by GPT-2's names. Its linear layers store their matrices transposed."""
    padding = torch.zeros((1, model.config.width))
    positions = model.positions.weight[:, None] + model.kinds.weight  # [items, levels, D]
    weights = {
        "transformer.wte.weight": torch.cat([model.tokens.weight * model.config.width**0.5, padding]),
        "transformer.wpe.weight": positions.flatten(0, 1),
        "lm_head.weight": torch.cat([model.sparse.weight, padding]),
        "transformer.ln_f.weight": model.norm.weight,
        "transformer.ln_f.bias": model.norm.bias,
    }
    for number, part in enumerate(model.blocks):
        block = cast(PreNormBlock, part)
        norms = {"ln_1": block.norm_attention, "ln_2": block.norm_feed}
        linears = {
            "attn.c_attn": block.attention.query_key_value,
            "attn.c_proj": block.attention.output,
            "mlp.c_fc": block.feed[0],
            "mlp.c_proj": block.feed[3],
        }
        for name, layer in (norms | linears).items():
            assert isinstance(layer.weight, Tensor)
            weight = layer.weight.T if name in linears else layer.weight
            weights[f"transformer.h.{number}.{name}.weight"] = weight
            weights[f"transformer.h.{number}.{name}.bias"] = cast(Tensor, layer.bias)
    return {name: value.detach().contiguous() for name, value in weights.items()}
