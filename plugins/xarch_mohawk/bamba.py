"""A whole student with Mamba-2 mixers as a folder that transformers loads: ``BambaForCausalLM``, attention included.

transformers' own Mamba-2 model has no MLPs, so a student of a Llama cannot be one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from xarch import UsageError
from xarch_decoder.facts import DecoderFacts
from xarch_decoder.model.attention import Attention
from xarch_decoder.model.decoder import MixerDecoder
from xarch_mohawk.layouts import mamba2, save
from xarch_mohawk.mamba2 import Mamba2

PARTS = {
    "norm1.weight": "input_layernorm.weight",
    "norm2.weight": "pre_ff_layernorm.weight",
    "mlp.gate": "feed_forward.gate_proj",
    "mlp.up": "feed_forward.up_proj",
    "mlp.down": "feed_forward.down_proj",
    "mixers.attention.q": "self_attn.q_proj",
    "mixers.attention.k": "self_attn.k_proj",
    "mixers.attention.v": "self_attn.v_proj",
    "mixers.attention.o": "self_attn.o_proj",
}
"""Beginnings of names within a block, here and there."""


def save_bamba(decoder: MixerDecoder, folder: Path) -> None:
    """Write ``config.json`` and ``model.safetensors`` for ``BambaForCausalLM.from_pretrained``.

    Args:
        decoder: the module of a finished student, as ``xarch.load`` returns it.
        folder: created if it does not exist; files in it of these names are replaced.

    Raises:
        UsageError: the student has a part that Bamba lacks.
    """
    config, tensors = bamba_config(decoder), bamba_tensors(decoder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def bamba_config(decoder: MixerDecoder) -> dict[str, Any]:
    """Return the settings of ``BambaConfig``.

    Raises:
        UsageError: the student has a part that Bamba lacks.
    """
    facts = decoder.facts
    recurrent = [m for i in range(facts.layers) if isinstance(m := decoder.block(i).mixer(), Mamba2)]
    kept = [i for i in range(facts.layers) if isinstance(decoder.block(i).mixer(), Attention)]
    problems = list(_problems(facts, bool(kept)))
    if len(recurrent) + len(kept) < facts.layers or not recurrent:
        problems.append("a layer with another mixer than Mamba-2 and attention, or no layer with Mamba-2")
    if problems:
        raise UsageError(f"Bamba has no place for this student: {'; '.join(problems)}")
    first = recurrent[0]
    inner = first.heads * first.value_width
    return {
        "architectures": ["BambaForCausalLM"],
        "model_type": "bamba",
        "vocab_size": facts.vocab,
        "hidden_size": facts.width,
        "intermediate_size": facts.mlp_width,
        "num_hidden_layers": facts.layers,
        "num_attention_heads": facts.heads,
        "num_key_value_heads": facts.kv_heads,
        "rms_norm_eps": facts.norm_eps,
        "tie_word_embeddings": facts.tied,
        "attn_layer_indices": kept,
        "attention_bias": facts.qkv_bias,
        "mlp_bias": facts.mlp_bias,
        "mamba_n_heads": first.heads,
        "mamba_d_head": first.value_width,
        "mamba_n_groups": first.heads,
        "mamba_d_state": first.state_size,
        "mamba_d_conv": first.taps,
        "mamba_expand": inner // facts.width,
        "mamba_conv_bias": True,
        "mamba_proj_bias": first.in_proj.bias is not None,
        "max_position_embeddings": facts.max_positions,
        # Bamba's own default rotates one half of a head.
        "rope_parameters": {"rope_type": "default", "rope_theta": _theta(facts), "partial_rotary_factor": 1.0},
        "bos_token_id": facts.bos,
        "eos_token_id": list(facts.eos) or None,
        "pad_token_id": None,
        "torch_dtype": str(decoder.embed.weight.dtype).removeprefix("torch."),
    }


def bamba_tensors(decoder: MixerDecoder) -> dict[str, Tensor]:
    """Return all tensors under the names of ``BambaForCausalLM``."""
    found: dict[str, Tensor] = {}
    for name, tensor in decoder.state_dict().items():
        _, _, rest = name.partition("blocks.")
        block, _, inside = rest.partition(".")
        theirs = next((new + inside[len(old) :] for old, new in PARTS.items() if inside.startswith(old)), None)
        if theirs is not None:
            found[f"model.layers.{block}.{theirs}"] = tensor.clone()
    for layer in range(decoder.facts.layers):
        mixer = decoder.block(layer).mixer()
        if isinstance(mixer, Mamba2):
            own = save(mixer, mamba2(mixer))
            found |= {f"model.layers.{layer}.mamba.{name}": tensor for name, tensor in own.items()}
    found["model.embed_tokens.weight"] = decoder.embed.weight.detach().clone()
    found["model.final_layernorm.weight"] = decoder.norm.weight.detach().clone()
    if not decoder.facts.tied:
        found["lm_head.weight"] = decoder.head_weight.detach().clone()
    return found


def _theta(facts: DecoderFacts) -> float:
    """The base of the rotary frequencies; 1e4 without any."""
    slow = facts.inverse_frequencies
    return float(slow[1] ** (-facts.head_dim / 2)) if len(slow) > 1 else 1e4


def _problems(facts: DecoderFacts, attends: bool) -> Iterator[str]:
    """What a Bamba model cannot be, in words; rotation and the like matter only where attention is kept."""
    if (facts.norm, facts.block, facts.mlp, facts.activation) != ("rms", "sequential", "gated", "silu"):
        yield f"blocks with {facts.norm} norms, {facts.block}, with {facts.mlp} {facts.activation} MLPs"
    if facts.shared_norm or facts.head_bias or facts.final_softcap is not None or facts.embed_gain != 1.0:
        yield "a shared norm, a bias of the head, capped logits or scaled embeddings"
    if facts.heads * facts.head_dim % facts.width:
        yield f"{facts.heads} heads of {facts.head_dim} channels, no multiple of the width {facts.width}"
    if not attends:
        return
    if facts.heads * facts.head_dim != facts.width:
        yield f"attention heads of {facts.head_dim} channels instead of width / heads"
    if facts.qk_norm or facts.softcap is not None or any(w is not None for w in facts.windows):
        yield "attention with normalised queries, capped scores or windows"
    if facts.qkv_bias != facts.out_bias:
        yield "biases of some projections of attention and not of others"
    half = facts.head_dim // 2
    wanted = [_theta(facts) ** (-i / half) for i in range(half)]
    close = len(wanted) == len(facts.inverse_frequencies) and all(
        abs(a - b) <= 1e-5 * b for a, b in zip(facts.inverse_frequencies, wanted, strict=True)
    )
    if not close or facts.rotary_gain != 1.0 or abs(facts.scale - facts.head_dim**-0.5) > 1e-6:
        yield "another rotation or scale of attention"
