"""Conversion of a GGUF header to a transformers configuration, including values that transformers ignores."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

from xarch import UsageError
from xarch_hf.gguf_header import GGUFHeader
from xarch_hf.gguf_keys import ADVICE, check_keys
from xarch_hf.gguf_tokenizer import check_tokenizer, end_tokens
from xarch_hf.quiet import quiet
from xarch_hf.wording import brief

GGUF_ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""Architectures supported by both transformers' reader and the table of architectures."""

REQUIRED = (
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.layer_norm_rms_epsilon",
)
"""Required keys, for which libraries would otherwise substitute another model's defaults."""
ROPE_BASE = 10_000.0
"""Default base of the rotary frequencies, as in llama.cpp."""

_BIASES = {"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_down.bias"}
_FREE_BIASES = {"llama": ("attention_bias", "mlp_bias"), "qwen3": ("attention_bias",)}


def check_architecture(header: GGUFHeader, where: str) -> None:
    """Reject files that cannot be read faithfully.

    Raises:
        UsageError: the architecture, a key or the tokenizer is unknown, or there are rotary factors that transformers'
            reader ignores.
    """
    name = header.metadata.get("general.architecture")
    if name not in GGUF_ARCHITECTURES:
        raise UsageError(
            f"{where}: GGUF architecture {name!r} is not supported; known: {', '.join(GGUF_ARCHITECTURES)}", ADVICE
        )
    check_keys(header, where)
    if any(tensor.startswith("rope_") for tensor in header.tensors):
        raise UsageError(f"{where} stores rotary factors as a tensor, which transformers' reader ignores", ADVICE)
    lacking = [name for name in REQUIRED if not isinstance(header.fact(name), int | float)]
    if lacking:
        raise UsageError(f"{where}: the metadata lack {name}.{lacking[0]}", ADVICE)
    check_tokenizer(header, where)


def gguf_config(path: Path, header: GGUFHeader, where: str) -> dict[str, Any]:
    """Return the content of a config.json for the file.

    transformers' reader supplies most of it. It ignores biases and rotary scaling and mistakes the rotated width for
    the head width, so these come from the header; 32-bit numbers are written as their shortest decimal.

    Raises:
        UsageError: the metadata do not describe a model.
    """
    from transformers import AutoConfig

    check_architecture(header, where)
    try:
        with quiet():
            config = AutoConfig.from_pretrained(str(path.parent), gguf_file=path.name).to_dict()
    except Exception as e:
        raise UsageError(
            f"{where}: transformers cannot read the metadata: {brief(e)}", "download the file again"
        ) from e
    config = {k: v for k, v in config.items() if k not in ("quantization_config", "_name_or_path", "name_or_path")}
    kind = config["model_type"]
    config["rms_norm_eps"] = _decimal(config["rms_norm_eps"])
    width = header.fact("attention.key_length") or config["hidden_size"] // config["num_attention_heads"]
    if header.fact("attention.value_length", width) != width:
        raise UsageError(f"{where}: keys and values have different widths")
    if kind == "qwen2" and width * config["num_attention_heads"] != config["hidden_size"]:
        raise UsageError(
            f"{where}: {config['num_attention_heads']} heads of width {width} do not match the model width of a qwen2"
        )
    if kind != "qwen2":
        config["head_dim"] = width
    if header.fact("rope.dimension_count", width) != width:
        raise UsageError(f"{where}: only part of each head is rotated, which {kind} models cannot express")
    for field in _FREE_BIASES.get(kind, ()):
        config[field] = _BIASES[field] in header.tensors
    config["rope_parameters"] = _rotary(config["rope_parameters"], header, where)
    config["num_key_value_heads"] = header.fact("attention.head_count_kv", config["num_attention_heads"])
    config["bos_token_id"] = header.metadata.get("tokenizer.ggml.bos_token_id")
    config["eos_token_id"] = end_tokens(header) or None
    return config


def _rotary(parameters: dict[str, Any], header: GGUFHeader, where: str) -> dict[str, Any]:
    parameters = {**parameters, "rope_theta": _decimal(header.fact("rope.freq_base", ROPE_BASE))}
    kind = header.fact("rope.scaling.type", "none")
    factor, gain = header.fact("rope.scaling.factor"), header.fact("rope.scaling.attn_factor", 1.0)
    if kind != "yarn" and gain != 1.0:
        raise UsageError(f"{where}: rope.scaling.attn_factor is {gain} with scaling {kind!r}, expected yarn", ADVICE)
    if kind == "none" and not header.fact("rope.scale_linear"):
        return parameters
    if kind in ("linear", "none"):
        return {**parameters, "rope_type": "linear", "factor": _decimal(factor or header.fact("rope.scale_linear"))}
    original = header.fact("rope.scaling.original_context_length")
    if kind == "yarn" and factor and original:
        yarn = {"rope_type": "yarn", "factor": _decimal(factor), "original_max_position_embeddings": original}
        for name in ("beta_fast", "beta_slow"):
            stated = header.fact(f"rope.scaling.yarn_{name}")
            if stated is not None:
                yarn[name] = _decimal(stated)
        if gain != 1.0:
            # llama.cpp multiplies by it; transformers treats it as the whole factor.
            yarn["attention_factor"] = gain * (1 + 0.1 * math.log(factor))
        return {**parameters, **yarn}
    raise UsageError(f"{where}: rotary scaling {kind!r} is not supported in GGUF files", ADVICE)


def _decimal(value: float) -> float:
    """Return the shortest decimal that equals this number in float32: 1e-5 for 9.99999974e-06."""
    for digits in range(1, 18):
        short = float(f"{value:.{digits}g}")
        if struct.pack("<f", short) == struct.pack("<f", value):
            return short
    return value
