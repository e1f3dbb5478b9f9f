"""The perceptron in C++ for CPUs, float32 inside: weights are packed once, tiles of sorted positions stay in cache.

Legend: T positions, D width of the input, F hidden units, O width of the output.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xarch.kernels.dispatch import register
from xarch.kernels.native import declare, kernel, why_not
from xarch.kernels.native.tensors import dense
from xarch.kernels.precision import island_dtype
from xarch.kernels.prefix_mlp.activation import number
from xarch.kernels.prefix_mlp.check import agrees
from xarch.kernels.prefix_mlp.operators import operator
from xarch.kernels.prefix_mlp.plain import Layer, flat, prefix_mlp_plain

FEWEST = 16
"""Positions for which packing weights pays."""

_SIZES = ("positions", "width", "units", "outputs", "blocks", "layers", "activation", "threads")


class _Call(ctypes.Structure):
    _fields_ = [
        *((n, ctypes.c_int64) for n in _SIZES),
        *((n, ctypes.c_void_p) for n in ("x", "count", "edges")),
        *((n, ctypes.c_void_p * 2) for n in ("into", "into_bias")),
        *((n, ctypes.c_void_p) for n in ("out", "out_bias", "y")),
    ]


@kernel("prefix_mlp", Path(__file__).with_name("kernel.cpp"))
def _library(loaded: ctypes.CDLL) -> None:
    declare(loaded.prefix_mlp_forward, ctypes.POINTER(_Call))


def _check(_: str) -> None:
    """Whole and partial blocks of registers, and more inputs than a panel has in cache."""
    agrees(prefix_mlp_cpp, 57, 300, 37, (0, 9, 30, 41), tolerance=1e-5)


@register(
    "prefix_mlp",
    "cpp",
    priority=30,
    devices=["cpu"],
    dtypes=[torch.float32, torch.bfloat16, torch.float16],
    lacks=["own_activation"],
    available=why_not,
    check=_check,
)
def prefix_mlp_cpp(
    x_TD: Tensor,
    count_T: Tensor,
    into: Sequence[Layer],
    out: Layer,
    edges: Sequence[int],
    *,
    activation: str | None,
) -> Tensor:
    """Arguments and result of :func:`xarch.kernels.prefix_mlp`; few positions and float64 weights go to torch."""
    wide = island_dtype(x_TD, out[0], *(weight for weight, _ in into)) == torch.float64
    if wide or len(x_TD) < FEWEST:
        return prefix_mlp_plain(x_TD, count_T, into, out, edges, activation=activation)
    return _operator(x_TD, count_T, *flat(into, out), list(edges), activation)


def _forward(
    x_TD: Tensor, count_T: Tensor, into: Sequence[Layer], out: Layer, edges: Sequence[int], activation: str | None
) -> Tensor:
    weight_OF, bias_O = (None if t is None else dense(t) for t in out)
    assert weight_OF is not None
    read = [(dense(weight), None if bias is None else dense(bias)) for weight, bias in into]
    x_TD, y_TO = dense(x_TD), x_TD.new_empty(len(x_TD), len(weight_OF), dtype=torch.float32)
    count_T, edges_N = count_T.to(torch.int64).contiguous(), torch.tensor(edges, dtype=torch.int64)
    pair = ctypes.c_void_p * 2
    call = _Call(
        positions=len(x_TD),
        width=x_TD.shape[1],
        units=weight_OF.shape[1],
        outputs=len(weight_OF),
        blocks=len(edges) - 1,
        layers=len(read),
        activation=number(activation),
        threads=torch.get_num_threads(),
        x=x_TD.data_ptr(),
        count=count_T.data_ptr(),
        edges=edges_N.data_ptr(),
        into=pair(*(weight.data_ptr() for weight, _ in read)),
        into_bias=pair(*(None if bias is None else bias.data_ptr() for _, bias in read)),
        out=weight_OF.data_ptr(),
        out_bias=None if bias_O is None else bias_O.data_ptr(),
        y=y_TO.data_ptr(),
    )
    _library().prefix_mlp_forward(call)
    return y_TO


def _narrowed(x: Tensor, *rest: Any) -> Tensor:
    return _forward(x, *rest).to(x.dtype)


_operator = operator("prefix_mlp_cpp_forward", _narrowed)
