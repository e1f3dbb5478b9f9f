"""Which of the teacher's tensors each of the student's starts from."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from xarch import Initialisation, PlanError, Teacher
from xarch_decoder.facts import DecoderFacts
from xarch_decoder.weights import weight_shapes
from xarch_encdec.layout import Layout
from xarch_encdec.model.network import EncDecModel

OPENING = "opening"


def sources_of(module: EncDecModel, layout: Layout, facts: DecoderFacts) -> dict[str, str | None]:
    """Return student tensor -> the teacher's tensor it is a copy of; None where it is new.

    Args:
        facts: the teacher's.
    """
    found = {name: _source(name, module.facts.cross, layout) for name in module.state_dict()}
    if "enter.weight" in found:
        found["enter.weight"] = None
    if facts.tied and "head.weight" in found:
        found["head.weight"] = "embed.weight"
    return found


def _source(name: str, cross: str, layout: Layout) -> str | None:
    head, _, rest = name.partition(".")
    if head not in ("encoder", "decoder"):
        renamed = name.replace("encoder_norm.", "norm.")
        return None if name == OPENING else renamed
    number, _, leaf = rest.partition(".")
    part = leaf.split(".")[0]
    if part.startswith("post") or (part == "cross" and cross == "random"):
        return None
    layers = layout.encoder if head == "encoder" else layout.decoder
    # The norm before cross-attention starts as the one before self-attention, whose projections read it.
    canonical = leaf.replace("norm_cross.", "norm1.").replace("cross.", "attention.")
    return f"blocks.{layers[int(number)]}.{canonical}"


def initialisation(module: EncDecModel, layout: Layout, facts: DecoderFacts) -> Initialisation:
    """Return what :func:`copy_weights` copies; the teacher's layers that no plan takes stay unused."""
    found, own_facts = sources_of(module, layout, facts), module.facts
    read_by = {own: theirs for own, theirs in found.items() if theirs is not None}
    other = own_facts.encoder_layer.width != own_facts.width
    narrowed = {own for own in read_by if other and (own.startswith("encoder") or _reads_memory(own))}
    read = set(read_by.values())
    return Initialisation(
        copied=tuple(own for own in read_by if own not in narrowed),
        mapped=tuple(own for own in read_by if own in narrowed),
        new=tuple(own for own, theirs in found.items() if theirs is None),
        unused=tuple(name for name in weight_shapes(facts) if name not in read),
        sources={own: (theirs,) for own, theirs in read_by.items() if own != theirs},
    )


def _reads_memory(name: str) -> bool:
    return ".cross.k." in name or ".cross.v." in name


def copy_weights(module: EncDecModel, layout: Layout, teacher: Teacher) -> Initialisation:
    """Copy the teacher's tensors, bit for bit; of an encoder of another width, its first channels.

    Raises:
        PlanError: the teacher lacks a tensor, or its shape differs; nothing has been written.
    """
    weights, own = teacher.weights(), module.state_dict()
    start = initialisation(module, layout, teacher.facts)
    narrowed = set(start.mapped)
    planned = {name: theirs for name, theirs in sources_of(module, layout, teacher.facts).items() if theirs is not None}
    for name, theirs in planned.items():
        seen = tuple(weights[theirs].shape) if theirs in weights else None
        if seen is None or not _holds(seen, tuple(own[name].shape), narrowed=name in narrowed):
            raise PlanError(
                f"the student copies {name!r} {tuple(own[name].shape)} from the teacher's {theirs!r}, which "
                + (f"has {seen}" if seen else "it does not have")
            )
    _write(module, {name: weights[theirs] for name, theirs in planned.items()})
    return start


def _holds(seen: tuple[int, ...], wanted: tuple[int, ...], *, narrowed: bool) -> bool:
    """Return whether a tensor has another's shape, or is as large everywhere if only its first channels count."""
    if not narrowed:
        return seen == wanted
    return len(seen) == len(wanted) and all(a >= b for a, b in zip(seen, wanted, strict=True))


def _write(module: nn.Module, values: Mapping[str, torch.Tensor]) -> None:
    own = module.state_dict()
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value[tuple(slice(size) for size in own[name].shape)])
