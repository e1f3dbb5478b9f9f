"""Conversion of a transformers configuration to the decoder family's facts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import nn

from xarch import UsageError
from xarch_decoder.facts import DecoderFacts
from xarch_hf.architectures import ARCHITECTURES, Architecture, Field

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}

FIXED_ROTARY = ("default", "linear", "llama3", "yarn")
"""Rotary scalings whose frequencies do not depend on the text length."""


def architecture_of(config: Mapping[str, Any], where: str) -> Architecture:
    """Return the table entry for the content of a config.json.

    Raises:
        UsageError: there is no entry; lists the supported model types and how to add one.
    """
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in ARCHITECTURES:
        return ARCHITECTURES[model_type]
    remark = ""
    if "auto_map" in config:
        remark = "; it requires its own Python code, which xarch does not run (trust_remote_code is off)"
    raise UsageError(
        f"{where}: model type {model_type!r} is not supported by the hf source{remark}",
        f"supported: {', '.join(sorted(ARCHITECTURES))}; to add one, write an entry in xarch_hf.architectures with the "
        "names of its modules and weights, and its facts",
    )


def decoder_facts(architecture: Architecture, config: Any, rotary: nn.Module, where: str) -> DecoderFacts:
    """Return the facts of a model.

    Args:
        architecture: the table's entry.
        config: the model's configuration, with defaults filled in by transformers.
        rotary: the model's own rotary module, on a real device: frequencies and gain are read from it, so every
            scaling rule matches transformers.
        where: the reference, used in errors.

    Raises:
        UsageError: the configuration needs something that the decoder family cannot describe.
    """
    _check(architecture, config, where)
    heads, width = config.num_attention_heads, config.hidden_size
    given = {name: _value(config, value) for name, value in architecture.facts.items()}
    given = {name: value for name, value in given.items() if value is not None}
    head_dim = given.pop("head_dim", width // heads)
    return DecoderFacts(
        layers=config.num_hidden_layers,
        width=width,
        vocab=config.vocab_size,
        heads=heads,
        kv_heads=given.pop("kv_heads", heads),
        head_dim=head_dim,
        mlp_width=config.intermediate_size,
        activation=cast(Any, ACTIVATIONS[config.hidden_act]),
        block="parallel" if _value(config, architecture.parallel) else "sequential",
        scale=head_dim**-0.5,
        inverse_frequencies=tuple(float(f) for f in cast(Any, rotary.inv_freq).float().tolist()),
        rotary_gain=float(cast(Any, rotary.attention_scaling)),
        windows=_windows(architecture, config),
        tied=bool(config.tie_word_embeddings),
        max_positions=config.max_position_embeddings,
        bos=next(iter(tokens(config.bos_token_id)), None),
        eos=tokens(config.eos_token_id),
        **given,
    )


def _check(architecture: Architecture, config: Any, where: str) -> None:
    for name, wanted in architecture.required.items():
        seen = getattr(config, name, wanted)
        if seen != wanted:
            raise UsageError(f"{where}: {name} is {seen!r}; the decoder family supports only {wanted!r}")
    if config.hidden_act not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise UsageError(f"{where}: hidden_act is {config.hidden_act!r}; the decoder family supports {known}")
    scaling = config.rope_parameters.get("rope_type", "default")
    if scaling not in FIXED_ROTARY:
        raise UsageError(
            f"{where}: rotary scaling {scaling!r} changes its frequencies with the text length, but a student needs "
            f"fixed ones ({', '.join(FIXED_ROTARY)})",
            "use the variant of this model without length-dependent scaling",
        )


def _value(config: Any, value: Any) -> Any:
    if not isinstance(value, Field):
        return value
    seen = getattr(config, value.name, None)
    return value.default if seen is None else seen


def _windows(architecture: Architecture, config: Any) -> tuple[int | None, ...]:
    """Return the sliding window per layer; empty if every layer has full attention."""
    size, layers = getattr(config, "sliding_window", None), config.num_hidden_layers
    if architecture.windows == "none" or size is None:
        return ()
    if architecture.windows == "all":
        return (size,) * layers
    kinds = config.layer_types[:layers]
    windows = tuple(size if kind == "sliding_attention" else None for kind in kinds)
    return windows if any(windows) else ()


def tokens(said: int | list[int] | None) -> tuple[int, ...]:
    """Return the token ids in a field that holds none, one or several of them."""
    if said is None:
        return ()
    return tuple(int(token) for token in said) if isinstance(said, list) else (int(said),)
