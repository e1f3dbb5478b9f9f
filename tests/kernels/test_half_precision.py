"""bfloat16 and float16 inputs through every backend that runs here, against float64 on the same rounded inputs.

With decays, prefix sums, exponentials and states in float32, what is left is the rounding of results and gradients to
half precision: a relative norm near 2^-12 in float16 and 2^-9 in bfloat16 (spec of the kernels: 5e-4 with float16
products; 1e-2 to 1e-1 if everything were bfloat16). The decays themselves come in as float32, as the models give them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from interpreted.agreement import relative_errors
from torch import Tensor

from xarch.kernels import backends, causal_conv1d, matrix_distance, selective_scan, ssd

LIMIT = {torch.float16: 5e-4, torch.bfloat16: 4e-3}
WIDE = torch.float32


def _randn(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def _ssd() -> tuple[Callable[..., Any], list[Tensor], set[int]]:
    x, log_a, B, C, D, state = _randn(
        (2, 150, 4, 16), (2, 150, 4), (2, 150, 2, 16), (2, 150, 2, 16), (4,), (2, 4, 16, 16)
    )

    def call(backend: str, *t: Tensor) -> Any:
        return ssd(*t[:5], initial_state_BHPN=t[5], return_final_state=True, backend=backend)

    return call, [x, -F.softplus(log_a - 2), B, C, D, state], {1, 4, 5}


def _selective_scan() -> tuple[Callable[..., Any], list[Tensor], set[int]]:
    x, dt, A, B, C, D, z, bias = _randn(
        (2, 20, 150), (2, 20, 150), (20, 8), (2, 1, 8, 150), (2, 1, 8, 150), (20,), (2, 20, 150), (20,)
    )

    def call(backend: str, *t: Tensor) -> Any:
        return selective_scan(*t[:7], dt_bias_D=t[7], dt_softplus=True, return_final_state=True, backend=backend)

    return call, [x, dt, -A.exp(), B, C, D, z, bias], {2, 5, 7}


def _causal_conv1d() -> tuple[Callable[..., Any], list[Tensor], set[int]]:
    def call(backend: str, *t: Tensor) -> Any:
        return causal_conv1d(*t, backend=backend)

    return call, _randn((2, 150, 24), (24, 4), (24,)), set()


def _matrix_distance() -> tuple[Callable[..., Any], list[Tensor], set[int]]:
    q, k, C, B, log_a, D = _randn((2, 150, 4, 16), (2, 150, 2, 16), (2, 150, 2, 16), (2, 150, 2, 16), (2, 150, 4), (4,))

    def call(backend: str, *t: Tensor) -> Any:
        return matrix_distance(*t, scale=0.25, backend=backend)

    return call, [q, k, C / 4, B, -F.softplus(log_a - 2), D], {4, 5}


CASES = {
    "ssd": _ssd,
    "selective_scan": _selective_scan,
    "causal_conv1d": _causal_conv1d,
    "matrix_distance": _matrix_distance,
}
HERE = [
    (op, backend.name)
    for op in CASES
    for backend in backends(op)
    if all(backend.refusal("cpu", dtype) is None for dtype in LIMIT)
]


def test_naive_and_torch_take_half_precision_everywhere() -> None:
    assert {(op, name) for op in CASES for name in ("naive", "torch")} <= set(HERE)


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize(("op", "backend"), HERE)
def test_only_results_are_rounded(op: str, backend: str, dtype: torch.dtype) -> None:
    call, operands, wide = CASES[op]()
    dtypes = [WIDE if i in wide else dtype for i in range(len(operands))]
    assert max(relative_errors(call, operands, backend, dtypes)) <= LIMIT[dtype]


@pytest.mark.parametrize("backend", [name for op, name in HERE if op == "ssd"])
def test_a_weak_decay_still_decays(backend: str) -> None:
    """In bfloat16 a state with a = 0.999 would stay what it is for ever."""
    length, decay = 1000, 0.999
    x = torch.zeros(1, length, 1, 1, dtype=torch.bfloat16)
    x[:, 0] = 1.297
    ones = torch.ones(1, length, 1, 1, dtype=torch.bfloat16)
    log_a = torch.full((1, length, 1), decay).log()
    y, last = ssd(x, log_a, ones, ones, return_final_state=True, backend=backend)
    wanted = float(x[0, 0]) * decay ** (length - 1)
    assert abs(float(last) - wanted) < 1e-4 * wanted
    assert abs(float(y[0, -1]) - wanted) < 4e-3 * wanted
