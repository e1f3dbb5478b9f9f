"""Format-independent record of a field, between its file and its module."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from xarch import UsageError, typed

Coordinate = Annotated[float, Field(ge=-1e9, le=1e9)]
Box = tuple[Coordinate, Coordinate, Coordinate, Coordinate, Coordinate, Coordinate]
LogDensity = Annotated[float, Field(ge=-1e4, le=90)]
"""Its exponential is a finite float32."""
Colour = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class FieldHead:
    """Everything about a field but its tensors, occupancy and details, as JSON data; see :class:`FieldFile`."""

    arch: Annotated[str, Field(max_length=64)]
    options: dict[str, Any]
    aabb: Box
    warp: Literal["aabb", "contract_inf", "contract_l2", "ndc"]
    sigma_clip: tuple[LogDensity, LogDensity] | None
    background: tuple[Colour, Colour, Colour] | None


MAX_OCCUPANCY = 1024
"""Cells per axis of an occupancy grid: a gigabyte of bool."""


@dataclass(frozen=True, slots=True)
class FieldFile:
    """A radiance field as described by its file, before its module is built.

    Attributes:
        arch: one of xarch's own (``hash``, ``mlp``, ``vm``, ``cp``, ``hash+vm``, ``tensors``), ``edited``, or a foreign
            variant (``torch-ngp-mlp``, ``torch-ngp-vm``, ``torch-ngp-cp``, ``tensorf-vm``, ``tensorf-cp``,
            ``nerfstudio-hash``, ``nerfstudio-vanilla``, ``nerfstudio-vm``, ``nerfstudio-cp``, ``svox2``).
        options: JSON-compatible settings of the architecture besides its tensors; see the docstring of each format.
        tensors: float32 unless a format says otherwise. xarch's own archs use these names:
            hash: ``encoder.table`` [n,F], ``sigma_net.{i}.weight``, ``color_net.{i}.weight``;
            mlp: ``trunk.{i}.weight``, ``trunk.{i}.bias``, ``sigma_net.{i}.weight``, ``color_net.{i}.weight``;
            vm: ``sigma_planes.{m}`` [1,R,Nb,Na], ``sigma_lines.{m}`` [1,R,Nc,1], ``color_planes.{m}``,
            ``color_lines.{m}``, ``basis.weight``, ``color_net.{i}.weight`` with (a,b) = (0,1), (0,2), (1,2) and
            c = 2, 1, 0; cp: the same without planes; hash+vm: those of both; tensors: ``volume`` [C,X,Y,Z].
            Foreign variants keep the names of their own code, without its prefix.
        aabb: (x0, y0, z0, x1, y1, z1) in the file's world.
        warp: mapping of world points into the field, see :mod:`xarch_field.model.warp`.
        sigma_clip: (lowest, highest) log-density, or None if the field clips nothing.
        occupancy: bool [H,H,H] over the field's unit cube (the warped box) in x, y, z order, True where the field may
            be non-empty; None if the file has no grid.
        background: RGB in [0,1] behind the scene, or None if the file has none.
        details: JSON-compatible facts for ``xarch inspect``: what was read and what was omitted.
    """

    arch: str
    options: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    aabb: tuple[float, float, float, float, float, float]
    warp: str = "aabb"
    sigma_clip: tuple[float, float] | None = None
    occupancy: Tensor | None = None
    background: tuple[float, float, float] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        head = typed(FieldHead, self.head(), "a field's record")
        low, high = head.aabb[:3], head.aabb[3:]
        if not all(a < b for a, b in zip(low, high, strict=True)):
            raise UsageError(f"the box {self.aabb} is empty, expected (x0, y0, z0, x1, y1, z1)")
        if head.sigma_clip is not None and head.sigma_clip[0] >= head.sigma_clip[1]:
            raise UsageError(f"sigma_clip is {head.sigma_clip}, expected (lowest, highest) log-density")
        grid = self.occupancy
        cubic = grid is None or (grid.dtype == torch.bool and grid.ndim == 3 and len(set(grid.shape)) == 1)
        if grid is not None and not (cubic and 1 <= grid.shape[0] <= MAX_OCCUPANCY):
            raise UsageError(
                f"occupancy is {grid.dtype} {tuple(grid.shape)}, expected bool [H,H,H] with H of 1 to {MAX_OCCUPANCY}"
            )

    def head(self) -> dict[str, Any]:
        """Return everything except tensors, occupancy and details as JSON data, see :class:`FieldHead`."""
        return {
            "arch": self.arch,
            "options": dict(self.options),
            "aabb": list(self.aabb),
            "warp": self.warp,
            "sigma_clip": self.sigma_clip,
            "background": self.background,
        }

    @classmethod
    def from_head(
        cls, head: FieldHead, tensors: dict[str, Tensor], details: Mapping[str, Any] | None = None
    ) -> FieldFile:
        """Invert :meth:`head`; a tensor named ``occupancy`` is the grid.

        Raises:
            UsageError: the box is empty, or the occupancy is no cubic grid.
        """
        grid = tensors.pop("occupancy", None)
        return cls(
            arch=head.arch,
            options=head.options,
            tensors=tensors,
            aabb=head.aabb,
            warp=head.warp,
            sigma_clip=head.sigma_clip,
            occupancy=None if grid is None else grid.to(torch.bool),
            background=head.background,
            details=details or {},
        )

    @property
    def bound(self) -> float:
        """Return half the side of the smallest cube around the origin that contains the box."""
        return max(abs(v) for v in self.aabb)


def need(tensors: Mapping[str, Tensor], name: str, where: str, shape: tuple[int | None, ...] | None = None) -> Tensor:
    """Return a tensor of a file after checking its shape (None: any size).

    Raises:
        UsageError: it is missing or its shape differs.
    """
    tensor = tensors.get(name)
    if not isinstance(tensor, Tensor):
        raise UsageError(f"{where} has no tensor {name!r}; it holds {', '.join(sorted(map(str, tensors))[:8])}")
    if shape is not None:
        seen = tuple(tensor.shape)
        fits = len(seen) == len(shape) and all(w is None or s == w for s, w in zip(seen, shape, strict=True))
        if not fits:
            wanted = "x".join("?" if w is None else str(w) for w in shape)
            raise UsageError(f"{where}: {name} has shape {seen}, expected {wanted}")
    return tensor


def numbered(tensors: Mapping[str, Tensor], prefix: str, suffix: str = "") -> list[Tensor]:
    """Return ``prefix.0suffix``, ``prefix.1suffix``, ... up to the first missing one."""
    found: list[Tensor] = []
    while (name := f"{prefix}.{len(found)}{suffix}") in tensors:
        found.append(tensors[name])
    return found


def chain(tensors: Mapping[str, Tensor], prefix: str, where: str, first: int | None = None) -> list[Tensor]:
    """Return the weight matrices of an MLP after checking that their widths are consistent.

    Raises:
        UsageError: there are none, one is not a matrix, or adjacent widths differ.
    """
    weights = numbered(tensors, prefix, ".weight")
    if not weights:
        raise UsageError(f"{where} has no layers {prefix}.0.weight, ...")
    width = first
    for i, weight in enumerate(weights):
        if weight.ndim != 2 or (width is not None and weight.shape[1] != width):
            raise UsageError(f"{where}: {prefix}.{i}.weight is {tuple(weight.shape)}, expected [?, {width or '?'}]")
        width = weight.shape[0]
    return weights


def number(said: Mapping[str, Any], name: str, usual: float, where: str) -> float:
    """Return a finite number from a dict of a file, or ``usual`` if missing.

    Raises:
        UsageError: it is not a finite number.
    """
    return numbers(said.get(name, usual), 1, f"{where}: {name}")[0]


def numbers(value: Any, count: int, what: str) -> tuple[float, ...]:
    """Return ``count`` finite numbers from a single number or a list.

    Raises:
        UsageError: the value is anything else.
    """
    given = value if isinstance(value, list | tuple) else [value]
    plain = all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in given)
    if len(given) != count or not plain:
        raise UsageError(f"{what} is {str(value)[:80]}, expected {count} numbers")
    return tuple(float(v) for v in given)
