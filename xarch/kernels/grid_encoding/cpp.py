"""Products of grids in C++ for CPUs: one pass over the points, vectors over channels, no index tensors.

Every entry of a gradient is summed over points in their order, so results do not depend on the number of threads.
Legend: see the package.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from xarch.kernels.dispatch import register
from xarch.kernels.grid_encoding.naive import grid_encode_naive
from xarch.kernels.grid_encoding.plain import grid_encode_plain
from xarch.kernels.native import declare, kernel, why_not
from xarch.kernels.selfcheck import agree

_FACTORS = 4
"""Most factors of a group, as in kernel.cpp."""


class _Factor(ctypes.Structure):
    _fields_ = [
        *((n, ctypes.c_int64) for n in ("table", "grad", "axes", "row_stride")),
        ("axis", ctypes.c_int64 * 3),
        ("size", ctypes.c_int64 * 3),
    ]


class _Group(ctypes.Structure):
    _fields_ = [*((n, ctypes.c_int64) for n in ("channels", "first", "count")), ("factor", _Factor * _FACTORS)]


class _Call(ctypes.Structure):
    _fields_ = [
        *((n, ctypes.c_void_p) for n in ("points", "out")),
        *((n, ctypes.c_int64) for n in ("n", "width", "groups", "threads")),
        ("group", ctypes.POINTER(_Group)),
    ]


@kernel("grid_encoding", Path(__file__).with_name("kernel.cpp"))
def _library(loaded: ctypes.CDLL) -> None:
    for function in (loaded.grid_forward, loaded.grid_backward):
        declare(function, ctypes.POINTER(_Call))


def _check(_: str) -> None:
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    points = torch.rand(70, 3, generator=generator)

    def run(function: Any) -> Any:
        def both(plane: Tensor, line: Tensor, volume: Tensor) -> list[Tensor]:
            groups = [[(plane, (2, 0)), (line, (1,))], [(volume, (0, 1, 2))]]
            return [function(points.to(plane.dtype), groups)]

        return both

    inputs = [randn(5, 6, 19), randn(7, 19), randn(4, 5, 3, 2)]
    agree(run(grid_encode_cpp), run(grid_encode_naive), inputs, tolerance=5e-6)


@register(
    "grid_encode",
    "cpp",
    priority=30,
    devices=["cpu"],
    dtypes=[torch.float32],
    lacks=["position_gradient"],
    available=why_not,
    check=_check,
)
def grid_encode_cpp(u_N3: Tensor, groups: Sequence[Sequence[tuple[Tensor, tuple[int, ...]]]]) -> Tensor:
    """Arguments and result of :func:`xarch.kernels.grid_encode`."""
    if max(len(group) for group in groups) > _FACTORS:
        return grid_encode_plain(u_N3, groups)
    tables = [table for group in groups for table, _ in group]
    layout = []
    for group in groups:
        layout.append(len(group))
        for _, axes in group:
            layout += [len(axes), *axes]
    if torch.compiler.is_compiling():
        return grid_encode_cpp_forward(u_N3, tables, layout)
    return _Eager.apply(layout, u_N3, *tables)


@torch.library.custom_op("xarch::grid_encode_cpp_forward", mutates_args=())
def grid_encode_cpp_forward(u_N3: Tensor, tables: list[Tensor], layout: list[int]) -> Tensor:
    """``layout`` says for each group how many of the tables it takes, and for each of these its axes: count, axes."""
    return _forward(u_N3, tables, layout)


def _forward(u_N3: Tensor, tables: Sequence[Tensor], layout: list[int]) -> Tensor:
    out = u_N3.new_empty(len(u_N3), _width(tables, layout))
    _run("grid_forward", u_N3, out, tables, layout, [])
    return out


@grid_encode_cpp_forward.register_fake
def _(u_N3: Tensor, tables: list[Tensor], layout: list[int]) -> Tensor:
    return u_N3.new_empty(u_N3.shape[0], _width(tables, layout))


@torch.library.custom_op("xarch::grid_encode_cpp_backward", mutates_args=())
def grid_encode_cpp_backward(dout: Tensor, u_N3: Tensor, tables: list[Tensor], layout: list[int]) -> list[Tensor]:
    """Gradients of the tables."""
    return _table_gradients(dout, u_N3, tables, layout)


def _table_gradients(dout: Tensor, u_N3: Tensor, tables: Sequence[Tensor], layout: list[int]) -> list[Tensor]:
    grads = [table.new_zeros(table.shape) for table in tables]
    _run("grid_backward", u_N3, dout.contiguous(), tables, layout, grads)
    return grads


@grid_encode_cpp_backward.register_fake
def _(dout: Tensor, u_N3: Tensor, tables: list[Tensor], layout: list[int]) -> list[Tensor]:
    return [table.new_empty(table.shape) for table in tables]


class _Eager(torch.autograd.Function):
    """The operators without the dispatcher, which would take a tenth of a training step and copy the gradients."""

    @staticmethod
    def forward(ctx: Any, layout: list[int], u_N3: Tensor, *tables: Tensor) -> Tensor:
        _setup(ctx, (u_N3, tables, layout), u_N3)
        return _forward(u_N3, tables, layout)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        u_N3, *tables = ctx.saved_tensors
        return None, None, *_table_gradients(grads[0], u_N3, tables, ctx.layout)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    u_N3, tables, layout = inputs
    ctx.save_for_backward(u_N3, *tables)
    ctx.layout = layout


def _backward(ctx: Any, dout: Tensor) -> tuple[None, list[Tensor], None]:
    u_N3, *tables = ctx.saved_tensors
    return None, grid_encode_cpp_backward(dout, u_N3, tables, ctx.layout), None


grid_encode_cpp_forward.register_autograd(_backward, setup_context=_setup)


def _run(
    function: str, u_N3: Tensor, out: Tensor, tables: Sequence[Tensor], layout: Sequence[int], grads: Sequence[Tensor]
) -> None:
    points = u_N3.contiguous()
    rows = [_rows(table) for table in tables]
    groups, place, t, first = [], 0, 0, 0
    while place < len(layout):
        group = _Group(channels=tables[t].shape[-1], first=first, count=layout[place])
        place += 1
        for f in range(group.count):
            axes = layout[place + 1 : place + 1 + layout[place]]
            place += 1 + len(axes)
            table, stride = rows[t]
            group.factor[f] = _Factor(
                table.data_ptr(),
                grads[t].data_ptr() if grads else 0,
                len(axes),
                stride,
                (ctypes.c_int64 * 3)(*axes),
                (ctypes.c_int64 * 3)(*table.shape[:-1]),
            )
            t += 1
        first += group.channels
        groups.append(group)
    call = _Call(points.data_ptr(), out.data_ptr(), len(points), out.shape[1], len(groups), torch.get_num_threads())
    call.group = (_Group * len(groups))(*groups)
    getattr(_library(), function)(ctypes.byref(call))


def _rows(table: Tensor) -> tuple[Tensor, int]:
    """The table itself where its rows lie evenly (so does a slice of channels), else a copy; and the step of a row."""
    step = table.stride(-2)
    even = table.stride(-1) == 1 or table.shape[-1] == 1
    for axis in range(table.dim() - 2, 0, -1):
        even = even and table.stride(axis - 1) == table.stride(axis) * table.shape[axis]
    return (table, step) if even else (table.contiguous(), table.shape[-1])


def _width(tables: Sequence[Tensor], layout: Sequence[int]) -> int:
    width, place, t = 0, 0, 0
    while place < len(layout):
        count = layout[place]
        width, t, place = width + tables[t].shape[-1], t + count, place + 1
        for _ in range(count):
            place += 1 + layout[place]
    return width
