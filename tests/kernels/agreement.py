"""Comparing a backend with naive in float64, values and gradients; the truth of a case is computed once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, Protocol

import pytest
import torch
from torch import Tensor

from xarch.kernels.native import why_not

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton kernels run in Python here, and only their tests do (test_triton_interpreter.py starts such a process)."""

needs_compiler = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
slow = pytest.mark.slow


class Case(Protocol):
    """Hashable description of one call."""

    def operands(self) -> list[Tensor | None]:
        """In float64."""

    def call(self, backend: str | None, *operands: Tensor | None) -> Any:
        """A tensor or several."""


def each(names: str = "", **rows: Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrise ``backend`` and further arguments, with rows of their own for every backend.

    A row is the value of one argument, a tuple of values of several, or a ``pytest.param``.
    """
    wanted = [n.strip() for n in names.split(",") if n.strip()]
    params = []
    for backend, values in rows.items():
        marks = [needs_compiler] if backend == "cpp" else []
        for row in values:
            if isinstance(row, type(pytest.param())):
                params.append(pytest.param(backend, *row.values, marks=[*marks, *row.marks]))
            else:
                params.append(pytest.param(backend, *((row,) if len(wanted) == 1 else row), marks=marks))
    return pytest.mark.parametrize(("backend", *wanted), params)


def source(seed: int = 0) -> Callable[..., Tensor]:
    """A function that draws normal numbers in float64."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


def documents(batch: int, length: int, seed: int = 0, often: float = 0.1) -> Tensor:
    """Ids that change at random places and come back."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(batch, length, generator=generator) < often).long().cumsum(1) % 2


def results(
    call: Callable[..., Any],
    backend: str | None,
    operands: Sequence[Tensor | None],
    dtypes: torch.dtype | Sequence[torch.dtype],
    fixed: int = 0,
) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs, and the gradients of all operands but the first ``fixed`` for an upstream gradient that is always the
    same."""
    if isinstance(dtypes, torch.dtype):
        dtypes = [dtypes] * len(operands)
    leaves = [None if t is None else t.detach().to(d) for t, d in zip(operands, dtypes, strict=True)]
    wanted = [t.requires_grad_() for t in leaves[fixed:] if t is not None]
    outputs = call(backend, *leaves)
    outputs = [outputs] if isinstance(outputs, Tensor) else [t for t in outputs if t is not None]
    live = [t for t in outputs if t.requires_grad]
    draw = source(7)
    upstream = [draw(*t.shape).to(t.dtype) for t in live]
    # Without tokens no output depends on an operand.
    grads = torch.autograd.grad(live, wanted, upstream, allow_unused=True, materialize_grads=True) if live else ()
    return [t.detach() for t in outputs], list(grads)


@lru_cache(maxsize=512)
def truth(case: Case) -> tuple[list[Tensor], list[Tensor]]:
    return results(case.call, "naive", case.operands(), torch.float64)


def assert_close(got: Sequence[Tensor], want: Sequence[Tensor], limit: float, floor: float = 1e-3) -> None:
    """Relative norms; what is smaller than ``floor`` of nothing but rounding is measured by the floor."""
    for place, (g, w) in enumerate(zip(got, want, strict=True)):
        assert g.shape == w.shape
        assert torch.isfinite(g).all(), place
        norm = float(w.double().norm())
        assert float((g.double() - w.double()).norm()) <= limit * max(norm, floor), place


def compare(
    case: Case,
    backend: str | None,
    limit: float,
    dtype: torch.dtype = torch.float32,
    beside: float = 0.0,
    floor: float = 1e-3,
) -> None:
    """Values and gradients of a backend against naive in float64.

    Args:
        beside: gradients smaller than this part of the largest result are measured by that part.
        floor: gradients smaller than this are measured by it.
    """
    values, grads = results(case.call, backend, case.operands(), dtype)
    wanted, slopes = truth(case)
    floor = max(floor, beside * max((float(t.norm()) for t in (*wanted, *slopes)), default=0.0))
    assert_close(values, wanted, min(limit, 1e-12) if dtype == torch.float64 else limit)
    assert_close(grads, slopes, limit, floor)
