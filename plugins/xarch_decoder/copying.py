"""Copy the weights that a conversion keeps, and check that every student and teacher tensor is accounted for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from xarch import Initialisation, PlanError, Teacher
from xarch_decoder.facts import DecoderFacts
from xarch_decoder.model.attention import Attention
from xarch_decoder.student import DecoderStudent
from xarch_decoder.weights import attention_names, attention_shapes, trunk_shapes

Shape = tuple[int, ...]


def _planned(facts: DecoderFacts, student: DecoderStudent) -> dict[str, tuple[str, Shape]]:
    """Map the student name of every copied tensor to its (canonical name, shape)."""
    planned = {name: (name, shape) for name, shape in trunk_shapes(facts).items()}
    for layer in range(facts.layers):
        for kind in student.decoder.block(layer).kinds:
            if isinstance(student.decoder.block(layer).mixer(kind), Attention):
                shapes = attention_shapes(facts, layer)
                planned |= {own: (name, shapes[name]) for own, name in attention_names(facts, layer, kind).items()}
    return planned


def trunk_initialisation(facts: DecoderFacts, student: DecoderStudent) -> Initialisation:
    """Return what :func:`copy_trunk` copies, derived from the architecture alone."""
    planned = _planned(facts, student)
    renamed = {own: (canonical,) for own, (canonical, _) in planned.items() if own != canonical}
    return Initialisation(copied=tuple(planned), sources=renamed)


def trunk_tensors(student: DecoderStudent, teacher: Teacher) -> dict[str, Tensor]:
    """Return the teacher's tensors under the student's names, as :func:`copy_trunk` would copy them; no copies.

    Raises:
        PlanError: the teacher lacks a tensor.
    """
    weights, planned = teacher.weights(), _planned(teacher.facts, student)
    lost = sorted({canonical for canonical, _ in planned.values()} - set(weights))
    if lost:
        raise PlanError(f"the teacher has no tensor {lost[0]!r} ({len(lost)} are missing)")
    return {own: weights[canonical] for own, (canonical, _) in planned.items()}


def copy_trunk(student: DecoderStudent, teacher: Teacher) -> Initialisation:
    """Copy embedding, norms, MLPs, head and every mixer that is an :class:`Attention`, bit for bit.

    Raises:
        PlanError: the teacher lacks a tensor, or its shape differs; nothing has been written.
    """
    facts: DecoderFacts = teacher.facts
    planned = _planned(facts, student)
    weights = teacher.weights()
    own = dict(student.module.named_parameters())
    for name, (canonical, shape) in planned.items():
        _prove(name, canonical, shape, own, weights)
    with torch.no_grad():
        for name, (canonical, _) in planned.items():
            own[name].copy_(weights[canonical])
    return trunk_initialisation(facts, student)


def _prove(name: str, canonical: str, shape: Shape, own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    if canonical not in weights:
        raise PlanError(f"the teacher has no tensor {canonical!r} that the student copies to {name!r}")
    if name not in own:
        raise PlanError(f"the student has no tensor {name!r} to copy the teacher's {canonical!r} to")
    seen = {"teacher": tuple(weights[canonical].shape), "student": tuple(own[name].shape), "facts": shape}
    if len(set(seen.values())) > 1:
        raise PlanError(f"shapes of {canonical!r} differ: " + ", ".join(f"{k} {v}" for k, v in seen.items()))


def check_initialisation(
    student: DecoderStudent, initialisation: Initialisation, weights: Collection[str] | None = None
) -> None:
    """Check that ``initialisation`` names every student tensor exactly once and accounts for every teacher tensor.

    Args:
        weights: names of the teacher's tensors; None checks only the student's.

    Raises:
        PlanError: a tensor is missing, is named twice, or does not exist.
    """
    named = [*initialisation.copied, *initialisation.mapped, *initialisation.new]
    own = set(student.module.state_dict())
    problems = {
        "not initialised": sorted(own - set(named)),
        "named twice": sorted(name for name, times in Counter(named).items() if times > 1),
        "not in the student": sorted(set(named) - own),
        "neither read nor declared unused in the teacher": sorted(set(weights or ()) - read_tensors(initialisation)),
    }
    found = [f"{what}: {', '.join(names[:8])}" for what, names in problems.items() if names]
    if found:
        raise PlanError("the student's initialisation does not cover its tensors; " + "; ".join(found))


def read_tensors(initialisation: Initialisation) -> set[str]:
    """Return the names of the teacher's tensors that are read or declared unused."""
    sources = initialisation.sources or {}
    taken = (*initialisation.copied, *initialisation.mapped)
    read = {theirs for own in taken for theirs in sources.get(own, (own,))}
    return read | set(initialisation.unused)


def merged(*parts: Initialisation) -> Initialisation:
    """Merge several parts into one."""
    return Initialisation(
        copied=tuple(n for p in parts for n in p.copied),
        mapped=tuple(n for p in parts for n in p.mapped),
        new=tuple(n for p in parts for n in p.new),
        unused=tuple(n for p in parts for n in p.unused),
        sources={own: theirs for p in parts for own, theirs in (p.sources or {}).items()},
    )
