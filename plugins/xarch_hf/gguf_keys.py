"""Keys of a GGUF header that are read, and keys without effect; files with any other key are rejected."""

from __future__ import annotations

from typing import Any

from xarch import UsageError
from xarch_hf.gguf_header import GGUFHeader

ADVICE = "use the transformers checkpoint of this model (hf:ID)"

READ = frozenset(
    {
        "context_length",
        "embedding_length",
        "block_count",
        "feed_forward_length",
        "vocab_size",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "attention.layer_norm_rms_epsilon",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.scale_linear",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scaling.original_context_length",
        "rope.scaling.attn_factor",
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
    }
)
"""Keys under the name of the architecture."""

HARMLESS = frozenset({"tensor_data_layout", "rope.scaling.finetuned"})
"""Keys that record the provenance of the file."""

WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "use_parallel_residual": (False,),
    "attention.causal": (True,),
    "attention.sliding_window": (0,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.scale": (0.0,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "rope.scaling.yarn_ext_factor": (1.0,),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
}
"""Keys that change the model -> their values without effect."""

WORDS = {
    "expert_count": "it is a mixture of {value} experts, not a plain decoder",
    "attention.sliding_window": "it has a sliding window, which transformers' reader leaves out",
}

OTHER_FILES = {"clip": "a vision model", "adapter": "an adapter, not a model", "control_vector": "a control vector"}


def check_keys(header: GGUFHeader, where: str) -> None:
    """Check that every key that can affect the model is known.

    Raises:
        UsageError: a key is unknown or its value is not supported, or the file is one of several parts or not a model.
    """
    architecture = str(header.metadata.get("general.architecture"))
    parts = header.metadata.get("split.count", 1)
    if parts != 1:
        raise UsageError(
            f"{where} is one of {parts} parts of a model",
            "put them together with llama.cpp's `llama-gguf-split --merge FIRST-PART WHOLE.gguf`",
        )
    for begin, what in OTHER_FILES.items():
        if any(key.startswith(f"{begin}.") for key in header.metadata):
            raise UsageError(f"{where} holds {what}", ADVICE)
    for key, value in header.metadata.items():
        if not key.startswith(f"{architecture}."):
            continue
        name = key.removeprefix(f"{architecture}.")
        if name in WITHOUT_EFFECT:
            if value not in WITHOUT_EFFECT[name]:
                said = WORDS.get(name, "{key} is {value}, which is not read").format(key=key, value=value)
                raise UsageError(f"{where}: {said}", ADVICE)
        elif name not in READ | HARMLESS:
            raise UsageError(f"{where}: the key {key} ({value!r}) is not known here", ADVICE)
        elif not isinstance(value, int | float | str):
            raise UsageError(f"{where}: {key} has a value for each layer, one for all is read", ADVICE)
