"""A folder with the weights of a Whisper: what lies in it, and its tensors under this family's names.

Two forms are read: safetensors with a ``config.json`` of transformers, and ``model.bin`` of CTranslate2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xarch import UsageError, load_weights, open_regular, read_json, weights_header
from xarch_speech import ctranslate2
from xarch_speech.facts import STRIDE, SpeechFacts
from xarch_speech.processor import special_tokens

SAFETENSORS, BINARY = "model.safetensors", "model.bin"

Shapes = Mapping[str, tuple[int, ...]]


def weight_file(folder: Path, where: str) -> Path:
    """Return the file of a folder's weights.

    Raises:
        UsageError: there is none.
    """
    for name in (SAFETENSORS, BINARY):
        if (folder / name).is_file():
            return folder / name
    raise UsageError(
        f"{where}: {folder} has neither {SAFETENSORS} nor {BINARY}",
        "expected a folder of a Whisper, written by transformers' save_pretrained or by CTranslate2",
    )


def stored_facts(folder: Path, where: str) -> SpeechFacts:
    """Return the facts of the whole model of a folder; of its weights only headers are read.

    Raises:
        UsageError: a file is missing or damaged, or the model is no Whisper.
    """
    file = weight_file(folder, where)
    shapes, heads = _shapes(file), _heads(folder, file, where)
    layers = {side: _count(shapes, side) for side in ("encoder", "decoder")}
    try:
        vocab, width = shapes["embed.weight"]
        start, eos = special_tokens(folder, where)
        return SpeechFacts.from_json(
            {
                "mels": shapes["hear1.weight"][1],
                "frames": STRIDE * shapes["encoder_places"][0],
                "width": width,
                "heads": heads,
                **layers,
                "encoder_mlp": shapes["encoder.0.mlp.up.weight"][0],
                "decoder_mlp": shapes["decoder.0.mlp.up.weight"][0],
                "vocab": vocab,
                "max_positions": shapes["places"][0],
                "start": list(start),
                "eos": list(eos),
            }
        )
    except (KeyError, ValueError, IndexError) as e:
        raise UsageError(f"{where}: {file} is no Whisper: {e}") from e


def _count(shapes: Shapes, side: str) -> int:
    return 1 + max((int(name.split(".")[1]) for name in shapes if name.startswith(f"{side}.")), default=-1)


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Return our name -> shape."""
    if file.name == SAFETENSORS:
        stored = {name: entry.shape for name, entry in weights_header(file).tensors.items()}
        return {own: tuple(stored[name]) for name in stored if (own := _from_transformers(name)) is not None}
    found = ctranslate2.variables(file)
    return {
        own: (shape[0] // parts, *shape[1:])
        for name, variable in found.items()
        for own, _, parts in ctranslate2.renamed(name)
        for shape in [variable.shape]
    }


def _heads(folder: Path, file: Path, where: str) -> int:
    if file.name == BINARY:
        found = ctranslate2.variables(file)
        variable = found.get("decoder/num_heads")
        if variable is None or variable.shape:
            raise UsageError(f"{where}: {file} does not say how many heads there are")
        with open_regular(file) as stream:
            stream.seek(variable.start)
            return int.from_bytes(stream.read(ctranslate2.TYPES[variable.kind].itemsize), "little")
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    said: dict[str, Any] = config if isinstance(config, dict) else {}
    heads = said.get("decoder_attention_heads")
    if (
        said.get("model_type") != "whisper"
        or not isinstance(heads, int)
        or heads != said.get("encoder_attention_heads")
    ):
        raise UsageError(
            f"{where}: {folder}/config.json has model_type {said.get('model_type')!r} and {heads!r} heads",
            "expected the configuration of a Whisper, with equal numbers of heads in encoder and decoder",
        )
    return heads


def tensors(folder: Path, where: str) -> dict[str, Tensor]:
    """Return all weights under this family's names, float32.

    Raises:
        UsageError: the file is damaged.
    """
    file = weight_file(folder, where)
    if file.name == SAFETENSORS:
        stored = load_weights(file)
        return {own: t.float() for name, t in stored.items() if (own := _from_transformers(name)) is not None}
    found, made = ctranslate2.variables(file), dict[str, Tensor]()
    for name in found:
        for own, i, parts in ctranslate2.renamed(name):
            whole = ctranslate2.read(file, found, name)
            rows = whole.shape[0] // parts
            made[own] = torch.from_numpy(whole[i * rows : (i + 1) * rows].astype("f4"))
    return made


WORDS = (
    (r"^model\.", ""),
    (r"^encoder\.conv(\d)\.", r"hear\1."),
    (r"^encoder\.embed_positions\.weight$", "encoder_places"),
    (r"^decoder\.embed_positions\.weight$", "places"),
    (r"^decoder\.embed_tokens\.", "embed."),
    (r"^encoder\.layer_norm\.", "encoder_norm."),
    (r"^decoder\.layer_norm\.", "norm."),
    (r"\.layers\.", "."),
    (r"\.self_attn_layer_norm\.", ".norm1."),
    (r"\.encoder_attn_layer_norm\.", ".norm_cross."),
    (r"\.final_layer_norm\.", ".norm2."),
    (r"\.self_attn\.", ".attention."),
    (r"\.encoder_attn\.", ".cross."),
    (r"\.([qkv])_proj\.", r".\1."),
    (r"\.out_proj\.", ".o."),
    (r"\.fc1\.", ".mlp.up."),
    (r"\.fc2\.", ".mlp.down."),
)
"""transformers' names -> ours."""


def _from_transformers(name: str) -> str | None:
    """Return our name of a tensor; None for the head, which is the embedding."""
    if name == "proj_out.weight":
        return None
    for theirs, ours in WORDS:
        name = re.sub(theirs, ours, name)
    return name
