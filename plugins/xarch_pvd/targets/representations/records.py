"""Conversion between file records and modules: names, axis orders and channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from xarch import UsageError
from xarch_field import RadianceField
from xarch_pvd.source.formats.record import FieldFile, FieldHead, numbered
from xarch_pvd.targets.representations import FIELDS, OPTIONS, build_field, options_of
from xarch_pvd.targets.representations.factor_fields import FactorField

NO_CLIP = (-100.0, 30.0)
"""Log-density bounds of a field whose file has none; values outside make no visible difference."""


def from_file(record: FieldFile) -> RadianceField:
    """Build the module of a record with its weights; foreign kinds are wrapped.

    Raises:
        UsageError: the kind of field is unknown, or a tensor does not fit.
    """
    if record.arch not in OPTIONS:
        # Imported here because they depend on the representations, which include this module.
        from xarch_pvd.editing.fields import EDITED
        from xarch_pvd.editing.record import edited_field
        from xarch_pvd.source.foreign import foreign_field

        if record.arch == EDITED:
            return edited_field(record)

        return foreign_field(record)
    check_shapes(record, {name: t.shape for name, t in record.tensors.items()}, f"a {record.arch} field")
    field = _untrained(record, record.occupancy)
    tensors = _of_module(record.arch, {k: v.float() for k, v in record.tensors.items()})
    for name, parameter in field.named_parameters():
        parameter.data.copy_(tensors[name])
    return field


def check_shapes(head: FieldHead | FieldFile, shapes: Mapping[str, Sequence[int]], where: str) -> None:
    """Compare the tensors of a file with those of the module that its options describe, before memory is taken.

    The modules of foreign kinds consist of the tensors of their file, so there is nothing to compare.

    Args:
        shapes: tensor name -> shape, from the header of the file.
        where: name of the file in errors.

    Raises:
        UsageError: an option is invalid, or a tensor is missing or has another shape.
    """
    if head.arch not in OPTIONS:
        return
    with torch.device("meta"):
        wanted = {name: p.shape for name, p in _untrained(head).named_parameters()}
        try:
            stored = {name: torch.empty(tuple(shape)) for name, shape in shapes.items()}
            found = {name: t.shape for name, t in _of_module(head.arch, stored).items()}
        except (RuntimeError, IndexError) as e:
            raise UsageError(f"{where}: tensors of a {head.arch} field do not fit together: {e}") from e
    for name, shape in wanted.items():
        if found.get(name) != shape:
            seen = str(list(found[name])) if name in found else "missing"
            raise UsageError(f"{where}: tensor {name} of a {head.arch} field is {seen}, expected {list(shape)}")


def _untrained(head: FieldHead | FieldFile, occupancy: Tensor | None = None) -> RadianceField:
    """Build the module with new weights; on the meta device if it is the default."""
    known = OPTIONS[head.arch].model_fields
    given = {k: v for k, v in head.options.items() if k in known}
    low, high = head.aabb[:3], head.aabb[3:]
    return build_field(
        head.arch,
        options_of(head.arch, given, "the file's options"),
        aabb=[list(low), list(high)],
        warp=head.warp,
        sigma_clip=head.sigma_clip or NO_CLIP,
        background=head.background or (1.0, 1.0, 1.0),
        occupancy=occupancy,
    )


def _of_module(arch: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a file as those of the module."""
    if issubclass(FIELDS[arch], FactorField):
        return _joined(tensors)
    if arch == "tensors" and "volume" in tensors:
        return {**tensors, "volume": tensors["volume"].permute(1, 2, 3, 0).contiguous()}
    return tensors


def to_file(
    field: RadianceField, options: Mapping[str, Any] | None = None, details: dict[str, Any] | None = None
) -> FieldFile:
    """Return the record of a module; ``options`` default to those it was built with."""
    tensors = {k: v.detach().cpu() for k, v in field.named_parameters()}
    if isinstance(field, FactorField):
        tensors = _split(tensors, field.split)
    elif field.arch == "tensors":
        tensors["volume"] = tensors["volume"].permute(3, 0, 1, 2).contiguous()
    low, high = field.aabb.tolist()
    background = field.background
    return FieldFile(
        arch=field.arch,
        options=dict(field.options if options is None else options),
        tensors=tensors,
        aabb=(low[0], low[1], low[2], high[0], high[1], high[2]),
        warp=field.warp,
        sigma_clip=field.sigma_clip,
        occupancy=field.occupancy.cpu(),
        background=(background[0], background[1], background[2]),
        details=details or {},
    )


def _joined(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Join ``sigma_planes.m`` and ``color_planes.m`` [1, R, Nb, Na] to ``planes.m`` [Nb, Na, R + R']; also lines."""
    out = {k: v for k, v in tensors.items() if not k.startswith(("sigma_planes", "color_planes", "sigma_lines"))}
    out = {k: v for k, v in out.items() if not k.startswith("color_lines")}
    for kind in ("planes", "lines"):
        densities, colours = numbered(tensors, f"sigma_{kind}"), numbered(tensors, f"color_{kind}")
        if [t.shape[2:] for t in densities] != [t.shape[2:] for t in colours]:
            raise UsageError(f"sigma_{kind} and color_{kind} of the file differ in the number or size of grids")
        for m, (density, colour) in enumerate(zip(densities, colours, strict=True)):
            both = torch.cat((density, colour), dim=1)[0].permute(1, 2, 0)
            out[f"{kind}.{m}"] = (both if kind == "planes" else both[:, 0]).contiguous()
    return out


def _split(tensors: dict[str, Tensor], density: int) -> dict[str, Tensor]:
    """Invert :func:`_joined`."""
    out = {k: v for k, v in tensors.items() if not k.startswith(("planes.", "lines."))}
    for name, grid in tensors.items():
        kind, _, m = name.partition(".")
        if kind not in ("planes", "lines"):
            continue
        full = (grid if kind == "planes" else grid[:, None]).permute(2, 0, 1)[None]
        out[f"sigma_{kind}.{m}"] = full[:, :density].contiguous()
        out[f"color_{kind}.{m}"] = full[:, density:].contiguous()
    return out
