"""A transformers configuration for a GGUF file: what transformers reads, completed by what it passes over."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from xarch import UsageError
from xarch_hf.gguf_header import GGUFHeader
from xarch_hf.quiet import quiet
from xarch_hf.wording import brief

GGUF_ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""Architectures that both transformers' reader and the table of architectures know."""

_BIASES = {"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_down.bias"}
_FREE_BIASES = {"llama": ("attention_bias", "mlp_bias"), "qwen3": ("attention_bias",)}


def check_architecture(header: GGUFHeader, where: str) -> None:
    """Refuse what cannot be read faithfully.

    Raises:
        UsageError: another architecture, experts, or rotary factors and windows that transformers' reader drops.
    """
    name = header.metadata.get("general.architecture")
    advice = "use the transformers checkpoint of this model (hf:ID)"
    if name not in GGUF_ARCHITECTURES:
        raise UsageError(f"{where}: GGUF architecture {name!r}, known are {', '.join(GGUF_ARCHITECTURES)}", advice)
    if header.fact("expert_count", 0):
        raise UsageError(f"{where} is a mixture of {header.fact('expert_count')} experts, not a plain decoder", advice)
    if any(tensor.startswith("rope_") for tensor in header.tensors):
        raise UsageError(f"{where} stores rotary factors as a tensor, which transformers' reader leaves out", advice)
    if header.fact("attention.sliding_window", 0):
        raise UsageError(f"{where} has a sliding window, which transformers' reader leaves out", advice)
    if not isinstance(header.fact("block_count"), int) or not isinstance(header.fact("embedding_length"), int):
        raise UsageError(f"{where}: the metadata lack block_count or embedding_length", advice)


def gguf_config(path: Path, header: GGUFHeader, where: str) -> dict[str, Any]:
    """Content of a config.json for the file.

    transformers' reader supplies most of it. It passes over biases and rotary scaling and takes the rotated width for
    the head width, so these come from the header here; 32-bit numbers are written as their shortest decimal.

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
        raise UsageError(f"{where}: {config['num_attention_heads']} heads of {width} do not make the width of a qwen2")
    if kind != "qwen2":
        config["head_dim"] = width
    if header.fact("rope.dimension_count", width) != width:
        raise UsageError(f"{where}: only a part of each head is rotated, which {kind} models cannot express")
    for field in _FREE_BIASES.get(kind, ()):
        config[field] = _BIASES[field] in header.tensors
    config["rope_parameters"] = _rotary(config["rope_parameters"], header, where)
    return config


def _rotary(parameters: dict[str, Any], header: GGUFHeader, where: str) -> dict[str, Any]:
    parameters = {**parameters, "rope_theta": _decimal(header.fact("rope.freq_base", parameters["rope_theta"]))}
    kind = header.fact("rope.scaling.type", "none")
    factor = header.fact("rope.scaling.factor")
    if kind == "none" and not header.fact("rope.scale_linear"):
        return parameters
    if kind in ("linear", "none"):
        return {**parameters, "rope_type": "linear", "factor": _decimal(factor or header.fact("rope.scale_linear"))}
    original = header.fact("rope.scaling.original_context_length")
    if kind == "yarn" and factor and original:
        return {
            **parameters,
            "rope_type": "yarn",
            "factor": _decimal(factor),
            "original_max_position_embeddings": original,
        }
    raise UsageError(
        f"{where}: rotary scaling {kind!r} cannot be read from a GGUF file", "use the transformers checkpoint (hf:ID)"
    )


def _decimal(value: float) -> float:
    """The shortest decimal that is this number in 32 bits: 1e-5 for 9.99999974e-06."""
    for digits in range(1, 18):
        short = float(f"{value:.{digits}g}")
        if struct.pack("<f", short) == struct.pack("<f", value):
            return short
    return value
