"""Fixtures of the kernel tests: poisoned memory, and one measure of error for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor


def _poisoned(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def poisoned(*args: Any, **kwargs: Any) -> Tensor:
        tensor = allocate(*args, **kwargs)
        return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

    return poisoned


@pytest.fixture(scope="module", autouse=True)
def nan_in_fresh_memory() -> Iterator[None]:
    """Memory that a kernel forgets to write shows up as NaN instead of, by luck, as zero.

    PyTorch lists the functions that ``with torch.device(...)`` acts on when one is first called under it or traced,
    and keeps the list. Made while ``torch.empty`` is replaced, it would lack the real one for the rest of the process,
    and models asked for on the meta device would be built in memory. So it is made first.
    """
    with torch.device("cpu"):
        torch.empty(0)
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in [
            (torch, "empty"),
            (torch, "empty_like"),
            (torch, "empty_strided"),
            (Tensor, "new_empty"),
        ]:
            patch.setattr(owner, name, _poisoned(getattr(owner, name)))
        yield


def _error(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    if want.numel() == 0:
        return 0.0
    assert torch.isfinite(got).all()
    got, want = got.detach().double(), want.detach().double()
    return float((got - want).abs().max() / want.abs().max().clamp_min(1e-3))


@pytest.fixture(scope="session")
def error() -> Callable[[Tensor, Tensor], float]:
    """Largest absolute difference over the largest absolute value wanted; fails on shapes and on values not finite."""
    return _error
