"""Keys of config.json that are read, and keys that do not affect a decoder's output; others are reported.

transformers keeps unknown keys but ignores them, so it may compute another program's model differently from that
program. It also gains new keys: one that is missing from this table must have its default value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xarch import UsageError

READ = frozenset(
    {
        "model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
        "intermediate_size", "vocab_size", "hidden_act", "rms_norm_eps", "layer_norm_eps", "max_position_embeddings",
        "attention_bias", "mlp_bias", "qk_layernorm", "use_parallel_residual", "tie_word_embeddings", "bos_token_id",
        "eos_token_id", "rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor", "rotary_pct",
        "rotary_emb_base", "sliding_window", "use_sliding_window", "max_window_layers", "layer_types",
        "quantization_config",
    }
)  # fmt: skip
HARMLESS = frozenset(
    {
        # Training, generation, other tasks, and provenance of the file.
        "architectures", "dtype", "torch_dtype", "transformers_version", "initializer_range", "use_cache",
        "attention_dropout", "hidden_dropout", "classifier_dropout", "embd_pdrop", "resid_pdrop", "pretraining_tp",
        "pad_token_id", "unk_token_id", "output_attentions", "output_hidden_states", "return_dict", "problem_type",
        "id2label", "label2id", "num_labels", "finetuning_task", "task_specific_params", "chunk_size_feed_forward",
        "is_decoder", "_name_or_path", "name_or_path", "_model_name_or_path", "_attn_implementation",
        "attn_implementation", "_attn_implementation_internal", "auto_map", "transformers_weights", "fusion_config",
        "_commit_hash",
        "use_bfloat16", "torchscript", "gradient_checkpointing", "_from_model_config", "generation_config",
        "temperature", "top_p", "top_k", "do_sample", "max_length", "min_length", "num_beams", "repetition_penalty",
        "is_llama_config", "rope_interleaved", "unsloth_fixed", "unsloth_version", "transformers.js_config",
        "original_max_position_embeddings", "model_max_length", "tokenizer_class", "attention_probs_dropout_prob",
    }
)  # fmt: skip
"""``rope_interleaved`` is also written for Llama models whose weights transformers has already permuted."""


def check_config_keys(raw: Mapping[str, Any], config: Any, where: str) -> tuple[str, ...]:
    """Check keys and return warnings about ignored ones.

    Args:
        raw: content of config.json.
        config: transformers' configuration object built from it.

    Raises:
        UsageError: transformers reads a key that is unknown here and does not have its default value, or the
            configuration describes an encoder-decoder model.
    """
    if raw.get("is_encoder_decoder"):
        raise UsageError(f"{where}: config.json sets is_encoder_decoder, but only decoders are supported")
    usual = type(config)().to_dict()
    known = READ | HARMLESS | {"is_encoder_decoder"}
    changed = sorted(name for name in set(raw) & set(usual) - known if raw[name] != usual[name])
    if changed:
        raise UsageError(
            f"{where}: config.json sets {changed[0]} to {raw[changed[0]]!r}, which transformers reads but this xarch "
            "does not support",
            f"a newer xarch may support it; the default without effect is {usual[changed[0]]!r}",
        )
    passed_over = sorted(name for name in set(raw) - set(usual) - known if raw[name] is not None)
    if not passed_over:
        return ()
    return (f"{where}: config.json has keys that transformers does not read: {', '.join(passed_over[:8])}",)
