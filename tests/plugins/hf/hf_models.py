"""Small random transformers decoders of every architecture in the table, and reference values taken from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from xarch import Batch
from xarch_hf.architectures import ARCHITECTURES
from xarch_hf.source import HFOptions, HFSource
from xarch_hf.teacher import HFTeacher

CPU = torch.device("cpu")
LAYERS, VOCAB = 3, 61
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}

CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=True, rms_norm_eps=1e-5),
    "llama-biased-llama3": lambda: LlamaConfig(
        **SIZES, num_key_value_heads=1, attention_bias=True, mlp_bias=True, head_dim=16, rope_parameters=LLAMA3
    ),
    "llama-yarn": lambda: LlamaConfig(**SIZES, rope_parameters=YARN),
    "mistral-windowed": lambda: MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=5),
    "qwen2-mixed-windows": lambda: Qwen2Config(
        **SIZES,
        num_key_value_heads=2,
        use_sliding_window=True,
        sliding_window=6,
        max_window_layers=1,
        rope_parameters=LINEAR,
    ),
    "qwen3": lambda: Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=16, tie_word_embeddings=True),
    "gpt_neox": lambda: GPTNeoXConfig(**SIZES),
    "gpt_neox-sequential": lambda: GPTNeoXConfig(
        **SIZES, use_parallel_residual=False, hidden_act="gelu_new", attention_bias=False
    ),
    "phi": lambda: PhiConfig(**SIZES, num_key_value_heads=2),
}
NAMES = sorted(CONFIGS)
CONFIGS |= {
    "llama-biased": lambda: LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "llama-64": lambda: LlamaConfig(**{**SIZES, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16}),
    "qwen2-plain": lambda: Qwen2Config(**SIZES, num_key_value_heads=2),
}


def random_model(name: str, seed: int = 0, **fields: Any) -> nn.Module:
    """A model whose values all matter: weights large enough for peaked attention, norms and biases not trivial.

    ``fields`` replace those of the configuration.
    """
    torch.manual_seed(seed)
    config = CONFIGS[name]()
    config.update(fields)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.25)
            elif parameter_name.endswith("bias"):
                parameter.normal_(std=0.2)
            else:
                parameter.normal_(mean=1.0, std=0.2)
    return model


def saved(name: str, folder: Path, **fields: Any) -> nn.Module:
    """Write a random model to a folder and return it."""
    model = random_model(name, **fields)
    model.save_pretrained(folder)
    return model


def teacher(folder: Path, **options: Any) -> HFTeacher:
    return HFSource().load(str(folder), HFOptions(**options), device=CPU, dtype=torch.float32)


def batch(rows: int = 2, length: int = 19, segments: Tensor | None = None, seed: int = 1) -> Batch:
    ids = torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))
    tensors = {"input_ids": ids} if segments is None else {"input_ids": ids, "segment_ids": segments}
    return Batch(tensors, ids.numel())


def own_module(model: nn.Module, canonical: str, layer: int = 0) -> nn.Module:
    """A module of the transformers model by canonical stem."""
    stem = ARCHITECTURES[model.config.model_type].stems[canonical]  # type: ignore[union-attr,index]
    return model.get_submodule(str(stem).replace("{i}", str(layer)))


def reference(model: nn.Module, ids: Tensor) -> dict[str, Any]:
    """What taps should hold, from an eager forward that returns its attention probabilities and hidden states."""
    architecture = ARCHITECTURES[model.config.model_type]  # type: ignore[union-attr,index]
    caught: dict[str, Tensor] = {}
    handles = []

    def keep(key: str, of_input: bool) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...], result: Any) -> None:
            caught[key] = args[0] if of_input else result

        return hook

    final = own_module(model, "norm")
    handles.append(final.register_forward_hook(keep("last block", True)))
    for layer in range(model.config.num_hidden_layers):  # type: ignore[union-attr]
        out = own_module(model, "blocks.{i}.attention.o", layer)
        handles.append(out.register_forward_hook(keep(f"heads {layer}", True)))
    with torch.no_grad():
        result = model(ids, output_attentions=True, output_hidden_states=True, use_cache=False)
        for handle in handles:
            handle.remove()
        values: dict[str, Any] = {"logits": result.logits, "final": result.hidden_states[-1]}
        for layer in range(model.config.num_hidden_layers):  # type: ignore[union-attr]
            stem = f"blocks.{layer}"
            last = layer + 1 == model.config.num_hidden_layers  # type: ignore[union-attr]
            hidden = result.hidden_states[layer]
            normed = own_module(model, "blocks.{i}.norm1", layer)(hidden)
            values[f"{stem}.input"] = hidden
            values[f"{stem}.mixer_in"] = normed
            values[f"{stem}.matrix"] = result.attentions[layer]
            values[f"{stem}.values"] = _values(model, architecture.model_type, layer, normed)
            merged = caught[f"heads {layer}"]
            values[f"{stem}.heads"] = merged.unflatten(-1, (model.config.num_attention_heads, -1))  # type: ignore[union-attr]
            values[f"{stem}.mixer_out"] = own_module(model, "blocks.{i}.attention.o", layer)(merged)
            values[f"{stem}.output"] = caught["last block"] if last else result.hidden_states[layer + 1]
    return values


def _values(model: Any, model_type: str, layer: int, normed: Tensor) -> Tensor:
    if model_type == "gpt_neox":
        fused = model.gpt_neox.layers[layer].attention.query_key_value(normed)
        return fused.unflatten(-1, (model.config.num_attention_heads, 3, -1))[:, :, :, 2]
    attention = model.model.layers[layer].self_attn
    return attention.v_proj(normed).unflatten(-1, (-1, attention.head_dim))


def probabilities(factors: Any) -> Tensor:
    """softmax(scale q k^T) of attention factors with everything they say, [B, H, L, L]."""
    groups = factors.q_BLHE.shape[2] // factors.k_BLKE.shape[2]
    k_BLHE = factors.k_BLKE.repeat_interleave(groups, 2)
    scores = torch.einsum("blhe,bshe->bhls", factors.q_BLHE, k_BLHE) * factors.scale
    if factors.softcap is not None:
        scores = factors.softcap * torch.tanh(scores / factors.softcap)
    length = scores.shape[-1]
    place = torch.arange(length)
    allowed = place[:, None] >= place
    if factors.window is not None:
        allowed = allowed & (place > place[:, None] - factors.window)
    allowed = allowed[None, None]
    if factors.segment_ids_BL is not None:
        allowed = allowed & (factors.segment_ids_BL[:, None, :, None] == factors.segment_ids_BL[:, None, None, :])
    return torch.softmax(scores.masked_fill(~allowed, float("-inf")), -1)


def relative(seen: Tensor, wanted: Tensor) -> float:
    """|seen - wanted| / |wanted|."""
    assert seen.shape == wanted.shape
    return float((seen - wanted).norm() / wanted.norm())
