"""Names of tensors in GGUF files, and a check from the header alone that a file contains a model's weights."""

from __future__ import annotations

from collections.abc import Mapping

from xarch import PlanError
from xarch_hf.gguf_header import GGUFHeader
from xarch_hf.gguf_keys import ADVICE
from xarch_hf.wording import few

WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
PARTS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """Return the GGUF name of a transformers weight of a Llama-like model."""
    stem, suffix = name.rsplit(".", 1)
    if stem in WHOLE:
        return f"{WHOLE[stem]}.{suffix}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{PARTS[part]}.{suffix}"


def prove_tensors(header: GGUFHeader, shapes: Mapping[str, tuple[int, ...]], cut: range, where: str) -> None:
    """Check that every weight is in the file with its shape, and nothing else.

    Args:
        shapes: transformers' name of a weight -> its shape.
        cut: layers of the file that the model omits.

    Raises:
        PlanError: weights do not fit; lists their names and both shapes.
    """
    wanted = {gguf_name(name): shape for name, shape in shapes.items()}
    missing = sorted(set(wanted) - set(header.tensors))
    if missing:
        raise PlanError(f"{where} lacks tensors of its architecture: {few(missing)}", "download the file again")
    wrong = [
        f"{name} has the shape {header.tensors[name].shape}, the metadata imply {shape}"
        for name, shape in wanted.items()
        if header.tensors[name].shape != shape
    ]
    if wrong:
        raise PlanError(f"{where}: {few(wrong, 3)}", ADVICE)
    left_out = tuple(f"blk.{layer}." for layer in cut)
    extra = sorted(name for name in set(header.tensors) - set(wanted) if not name.startswith(left_out))
    if extra:
        raise PlanError(f"{where} holds tensors that its architecture has no use for: {few(extra)}", ADVICE)
