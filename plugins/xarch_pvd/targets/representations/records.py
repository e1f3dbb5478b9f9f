"""Conversion between file records and modules: names, axis orders and channels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from xarch import UsageError
from xarch_field import RadianceField
from xarch_pvd.source.formats.record import FieldFile, numbered
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
    known = OPTIONS[record.arch].model_fields
    options = options_of(record.arch, {k: v for k, v in record.options.items() if k in known}, "the file's options")
    low, high = record.aabb[:3], record.aabb[3:]
    field = build_field(
        record.arch,
        options,
        aabb=[list(low), list(high)],
        warp=record.warp,
        sigma_clip=record.sigma_clip or NO_CLIP,
        background=record.background or (1.0, 1.0, 1.0),
        occupancy=record.occupancy,
    )
    tensors = {k: v.float() for k, v in record.tensors.items()}
    if issubclass(FIELDS[record.arch], FactorField):
        tensors = _joined(tensors)
    elif record.arch == "tensors" and "volume" in tensors:
        tensors["volume"] = tensors["volume"].permute(1, 2, 3, 0).contiguous()
    wanted = dict(field.named_parameters())
    for name, parameter in wanted.items():
        given = tensors.get(name)
        if given is None or given.shape != parameter.shape:
            seen = "missing" if given is None else str(list(given.shape))
            raise UsageError(f"tensor {name} of a {record.arch} field is {seen}, expected {list(parameter.shape)}")
        parameter.data.copy_(given)
    return field


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
