"""From attention weights to a recurrent mixer: queries read, keys address, values are written.

The mapping of MambaInLlama (arXiv 2408.15237, section 3), with whole heads and normalised rows.

Legend: D width, H heads, K key/value heads, E head width, N state size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from xarch import PlanError
from xarch_decoder.facts import DecoderFacts
from xarch_decoder.weights import attention_shapes
from xarch_mohawk.channels import StateChannels
from xarch_mohawk.mixer import RecurrentMixer

START_HALF_LIFE = 4.0
"""Initial half-life in tokens, until the closed-form fit finds one per head."""

OWN_SCALE = 0.1
"""Scale of state channels without a counterpart in the teacher, relative to the copied ones."""


def transfer_attention(
    mixer: RecurrentMixer[Any], facts: DecoderFacts, layer: int, weights: Mapping[str, Tensor]
) -> None:
    """Write every tensor of ``mixer`` from the teacher's attention in ``layer``.

    Grouped key and value heads are repeated whole where the mixer has one per query head. The rows of queries and keys
    are normalised to rms D^-1/2 per head; the closed-form stage finds the scale. Biases of q, k and v become biases of
    ``in_proj``, or else of the convolution, which is otherwise the identity; the weights of q and k norms are
    multiplied into the rows.

    Args:
        weights: the teacher's, by canonical name.

    Raises:
        PlanError: the teacher lacks a tensor, or its shape differs.
    """
    own = _attention(facts, layer, weights)
    generator = torch.Generator().manual_seed(layer)
    with torch.no_grad():
        for parameter in (mixer.in_proj.weight, mixer.in_proj.bias, mixer.conv1d.weight, mixer.conv1d.bias):
            if parameter is not None:
                parameter.zero_()
        mixer.conv1d.weight[..., -1] = 1.0
        for part, name in mixer.sources.items():
            heads = mixer.widths[part] // (facts.head_dim if name == "v" else mixer.channels.size)
            rows_HED, bias_HE = _heads(facts, own, name, heads)
            if name != "v":
                rows_HED, bias_HE = _as_state(rows_HED, bias_HE, mixer.channels, generator)
            mixer.in_proj.weight[mixer.rows(part)] = rows_HED.flatten(0, 1)
            if mixer.in_proj.bias is not None:
                mixer.in_proj.bias[mixer.rows(part)] = bias_HE.flatten()
            elif mixer.conv1d.bias is not None:
                mixer.conv1d.bias[mixer.conv_rows(part)] = bias_HE.flatten()
        mixer.start(START_HALF_LIFE)
        mixer.out_proj.weight.copy_(own["o.weight"])
        if mixer.out_proj.bias is not None:
            mixer.out_proj.bias.copy_(own["o.bias"]) if facts.out_bias else mixer.out_proj.bias.zero_()


def transferred(
    facts: DecoderFacts, layer: int, mixer: RecurrentMixer[Any]
) -> tuple[dict[str, tuple[str, ...]], list[str], list[str]]:
    """Return what :func:`transfer_attention` derives from teacher tensors (canonical names), what it sets, and the
    teacher's tensors for which the mixer has no place."""
    stem = f"blocks.{layer}.attention."
    theirs = {name.removeprefix(stem): name for name in attention_shapes(facts, layer)}
    rows = ("q.weight", "k.weight", "v.weight", "q_norm.weight", "k_norm.weight")
    biases = ("q.bias", "k.bias", "v.bias")
    names = list(mixer.state_dict())
    places = {"in_proj.weight": rows, "out_proj.weight": ("o.weight",), "out_proj.bias": ("o.bias",)}
    places["in_proj.bias" if "in_proj.bias" in names else "conv1d.bias"] = biases
    taken = {
        own: tuple(theirs[n] for n in sources if n in theirs)
        for own, sources in places.items()
        if own in names and any(n in theirs for n in sources)
    }
    read = {name for found in taken.values() for name in found}
    unused = [name for name in theirs.values() if name not in read]
    return {n: taken[n] for n in names if n in taken}, [n for n in names if n not in taken], unused


def _attention(facts: DecoderFacts, layer: int, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the layer's attention by local name, checked to be complete and of the right shape."""
    stem = f"blocks.{layer}.attention."
    own: dict[str, Tensor] = {}
    for name, shape in attention_shapes(facts, layer).items():
        if name not in weights:
            raise PlanError(f"the teacher has no tensor {name!r}, which layer {layer} of the student needs")
        if tuple(weights[name].shape) != shape:
            raise PlanError(f"the teacher's {name!r} has shape {tuple(weights[name].shape)}, expected {shape}")
        own[name.removeprefix(stem)] = weights[name]
    return own


def _heads(facts: DecoderFacts, own: Mapping[str, Tensor], name: str, heads: int) -> tuple[Tensor, Tensor]:
    """Return rows [H, E, D] and bias [H, E] of q, k or v for so many heads."""
    rows_HED = own[f"{name}.weight"].float().unflatten(0, (-1, facts.head_dim))
    bias = own.get(f"{name}.bias")
    bias_HE = rows_HED.new_zeros(rows_HED.shape[:2]) if bias is None else bias.float().view(rows_HED.shape[:2])
    if f"{name}_norm.weight" in own:
        norm_E = own[f"{name}_norm.weight"].float()
        rows_HED, bias_HE = rows_HED * norm_E[:, None], bias_HE * norm_E
    shared = heads // rows_HED.shape[0]
    return rows_HED.repeat_interleave(shared, 0), bias_HE.repeat_interleave(shared, 0)


def _as_state(
    rows_HED: Tensor, bias_HE: Tensor, channels: StateChannels, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return rows [H, N, D] of rms D^-1/2 per head, and the bias at the same scale."""
    source = list(channels.source)
    heads, _, width = rows_HED.shape
    rows_HND, bias_HN = rows_HED[:, source], bias_HE[:, source]
    scale_H11 = (width * rows_HND.square().mean((1, 2), keepdim=True).clamp_min(1e-30)).rsqrt()
    rows_HND, bias_HN = rows_HND * scale_H11, bias_HN * scale_H11[..., 0]
    if channels.own:
        new_HOD = torch.randn(heads, channels.own, width, generator=generator).to(rows_HND) * (OWN_SCALE * width**-0.5)
        rows_HND = torch.cat([rows_HND, new_HOD], 1)
        bias_HN = torch.cat([bias_HN, bias_HN.new_zeros(heads, channels.own)], 1)
    return rows_HND, bias_HN
