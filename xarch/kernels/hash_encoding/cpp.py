"""The hash encoding in C++ for CPUs: rows and weights in vectors, no index tensors, a level at a time.

Every row of the gradient is summed over points in their order, so results do not depend on the number of threads.
Legend: see the package.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from xarch.kernels.dispatch import register
from xarch.kernels.hash_encoding.config import HashConfig, level_table
from xarch.kernels.hash_encoding.naive import hash_encode_naive
from xarch.kernels.hash_encoding.plain import hash_encode_plain
from xarch.kernels.native import declare, kernel, why_not
from xarch.kernels.selfcheck import agree

_FEATURES = 64
"""Most features of a row, as in kernel.cpp."""


class _Level(ctypes.Structure):
    _fields_ = [
        *((n, ctypes.c_float) for n in ("scale", "shift")),
        *((n, ctypes.c_int64) for n in ("stride", "offset", "size", "dense")),
    ]


class _Call(ctypes.Structure):
    _fields_ = [
        *((n, ctypes.c_void_p) for n in ("points", "table", "grad", "out")),
        *((n, ctypes.c_int64) for n in ("n", "levels", "features", "threads")),
        ("level", ctypes.POINTER(_Level)),
    ]


@kernel("hash_encoding", Path(__file__).with_name("kernel.cpp"))
def _library(loaded: ctypes.CDLL) -> None:
    for function in (loaded.hash_forward, loaded.hash_backward):
        declare(function, ctypes.POINTER(_Call))


def _check(_: str) -> None:
    generator = torch.Generator().manual_seed(0)
    config = HashConfig(levels=4, log2_size=10, base=4, finest=60)
    # Multiples of 1/64 lie on no face of a cell in any level, so float32 and float64 find the same cells.
    points = torch.randint(1, 64, (70, 3), generator=generator) / 64

    def run(function: Any) -> Any:
        return lambda table: [function(points.to(table.dtype), table, config)]

    table = torch.randn(config.rows, 2, generator=generator, dtype=torch.float64)
    agree(run(hash_encode_cpp), run(hash_encode_naive), [table], tolerance=5e-5)


@register(
    "hash_encode",
    "cpp",
    priority=30,
    devices=["cpu"],
    dtypes=[torch.float32, torch.bfloat16, torch.float16],
    lacks=["position_gradient"],
    available=why_not,
    check=_check,
)
def hash_encode_cpp(u_N3: Tensor, table_EF: Tensor, config: HashConfig) -> Tensor:
    """Arguments and result of :func:`xarch.kernels.hash_encode`."""
    if table_EF.dtype == torch.float64 or config.features > _FEATURES:
        return hash_encode_plain(u_N3, table_EF, config)
    integers: list[int] = []
    floats: list[float] = []
    for level in level_table(config):
        integers += [level.stride, level.offset, level.size, int(level.dense)]
        floats += [level.scale, level.shift]
    operands = u_N3.float(), table_EF.float(), integers, floats
    return hash_encode_cpp_forward(*operands) if torch.compiler.is_compiling() else _Eager.apply(*operands)


@torch.library.custom_op("xarch::hash_encode_cpp_forward", mutates_args=())
def hash_encode_cpp_forward(u_N3: Tensor, table_EF: Tensor, integers: list[int], floats: list[float]) -> Tensor:
    """Levels as (stride, offset, size, dense) and (scale, shift), one after another."""
    return _forward(u_N3, table_EF, integers, floats)


def _forward(u_N3: Tensor, table_EF: Tensor, integers: list[int], floats: list[float]) -> Tensor:
    out = u_N3.new_empty(len(u_N3), len(floats) // 2 * table_EF.shape[1])
    _run("hash_forward", u_N3, table_EF.contiguous(), None, out, integers, floats)
    return out


@hash_encode_cpp_forward.register_fake
def _(u_N3: Tensor, table_EF: Tensor, integers: list[int], floats: list[float]) -> Tensor:
    return u_N3.new_empty(u_N3.shape[0], len(floats) // 2 * table_EF.shape[1])


@torch.library.custom_op("xarch::hash_encode_cpp_backward", mutates_args=())
def hash_encode_cpp_backward(
    dout: Tensor, u_N3: Tensor, rows: int, features: int, integers: list[int], floats: list[float]
) -> Tensor:
    """Gradient of the table."""
    return _table_gradient(dout, u_N3, rows, features, integers, floats)


def _table_gradient(
    dout: Tensor, u_N3: Tensor, rows: int, features: int, integers: list[int], floats: list[float]
) -> Tensor:
    grad_EF = u_N3.new_zeros(rows, features)
    _run("hash_backward", u_N3, None, grad_EF, dout.contiguous(), integers, floats)
    return grad_EF


@hash_encode_cpp_backward.register_fake
def _(dout: Tensor, u_N3: Tensor, rows: int, features: int, integers: list[int], floats: list[float]) -> Tensor:
    return u_N3.new_empty(rows, features)


class _Eager(torch.autograd.Function):
    """The operators without the dispatcher, which would take a tenth of a training step and copy the gradient."""

    @staticmethod
    def forward(ctx: Any, u_N3: Tensor, table_EF: Tensor, integers: list[int], floats: list[float]) -> Tensor:
        _setup(ctx, (u_N3, table_EF, integers, floats), u_N3)
        return _forward(u_N3, table_EF, integers, floats)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (u_N3,), (rows, features) = ctx.saved_tensors, ctx.shape
        return None, _table_gradient(grads[0], u_N3, rows, features, ctx.integers, ctx.floats), None, None


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    u_N3, table_EF, ctx.integers, ctx.floats = inputs
    ctx.save_for_backward(u_N3)
    ctx.shape = tuple(table_EF.shape)


def _backward(ctx: Any, dout: Tensor) -> tuple[None, Tensor, None, None]:
    (u_N3,), (rows, features) = ctx.saved_tensors, ctx.shape
    return None, hash_encode_cpp_backward(dout, u_N3, rows, features, ctx.integers, ctx.floats), None, None


hash_encode_cpp_forward.register_autograd(_backward, setup_context=_setup)


def _run(
    function: str,
    u_N3: Tensor,
    table_EF: Tensor | None,
    grad_EF: Tensor | None,
    out: Tensor,
    integers: list[int],
    floats: list[float],
) -> None:
    points = u_N3.contiguous()
    count = len(floats) // 2
    levels = (_Level * count)(*(_Level(*floats[2 * i : 2 * i + 2], *integers[4 * i : 4 * i + 4]) for i in range(count)))
    call = _Call(
        points.data_ptr(),
        None if table_EF is None else table_EF.data_ptr(),
        None if grad_EF is None else grad_EF.data_ptr(),
        out.data_ptr(),
        len(points),
        count,
        out.shape[1] // count,
        torch.get_num_threads(),
        levels,
    )
    getattr(_library(), function)(ctypes.byref(call))
