"""Whether a compiled backend can be chosen: there is a compiler, the library builds, and its results are right."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from xarch.errors import XarchError
from xarch.kernels.native.build import why_not
from xarch.kernels.precision import tracing

_LOG = logging.getLogger(__name__)
_LIMIT = 1e-4
"""Relative norm of the error in the check; float32 sums stay two orders of magnitude below."""

_CHECKS: dict[str, Callable[[], float]] = {}
_FAILURES: dict[str, str | None] = {}


def ready(op: str, check: Callable[[], float]) -> Callable[[], str | None]:
    """The ``available`` of the compiled backend of an operation.

    Its first call compiles the library and runs ``check``, which returns the largest relative error of a small call. A
    library that does not build, or whose results are wrong, is reported once as a warning and not asked again in this
    process. Without a compiler there is a reason, but no warning.
    """
    _CHECKS[op] = check

    def available() -> str | None:
        if tracing():
            return "an exporter records plain operators"
        return _failure(op)

    return available


def largest_error(
    run: Callable[..., Any], truth: Callable[..., Any], operands: Sequence[Tensor], options: dict[str, Any]
) -> float:
    """Largest relative norm of the error over all outputs and gradients, against ``truth`` in float64."""
    found = []
    for function, dtype in ((run, torch.float32), (truth, torch.float64)):
        leaves = [t.to(dtype).requires_grad_() for t in operands]
        outputs = function(*leaves, **options)
        generator = torch.Generator().manual_seed(1)
        upstream = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(dtype) for t in outputs]
        found.append([*outputs, *torch.autograd.grad(outputs, leaves, upstream)])
    return max(
        float((a.detach().double() - b.detach()).norm() / b.detach().norm().clamp_min(1e-9))
        for a, b in zip(*found, strict=True)
    )


def _failure(op: str) -> str | None:
    reason = why_not()
    if reason is not None:
        return reason
    if op not in _FAILURES:
        # In a thread of its own no autocast, device or fake-tensor context of the caller reaches the check.
        with ThreadPoolExecutor(1) as thread:
            _FAILURES[op] = thread.submit(_try, op).result()
        if _FAILURES[op] is not None:
            _LOG.warning("%s: backend cpp is skipped: %s", op, _FAILURES[op])
    return _FAILURES[op]


def _try(op: str) -> str | None:
    try:
        error = _CHECKS[op]()
    except XarchError as e:
        return str(e).splitlines()[0]
    if not error <= _LIMIT:
        return f"its first call was wrong by {error:.1e} (relative), want <= {_LIMIT:.0e}"
    return None
