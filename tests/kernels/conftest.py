"""Poisoned memory, one measure of error, and the split between an ordinary process and one that interprets Triton."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from agreement import INTERPRETED
from torch import Tensor

from xarch.kernels import backends, dispatch, gpu, register


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Triton's tests run where its kernels are interpreted, and nothing else does there."""
    here = [i for i in items if not i.path.is_relative_to(config.rootpath / "tests" / "kernels") or _belongs(i)]
    config.hook.pytest_deselected(items=[i for i in items if i not in set(here)])
    items[:] = here


def _belongs(item: pytest.Item) -> bool:
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    return (parameters.get("backend") == "triton" or item.path.name == "mamba_ssm_cases.py") == INTERPRETED


@pytest.fixture(scope="session", autouse=INTERPRETED)
def triton_takes_cpu_tensors() -> Iterator[None]:
    """The Triton backends as they are registered, but allowed on the CPU, and blocks of sixteen tokens in the scan: the
    interpreter scans element by element."""
    with dispatch.isolated(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu.SIZES, "scan_tile", 16)
        for b in backends():
            if b.name == "triton":
                register(b.op, b.name, priority=b.priority, dtypes=b.dtypes, lacks=b.lacks, check=b.check)(b.run)
        yield


def _poisoned(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def poisoned(*args: Any, **kwargs: Any) -> Tensor:
        tensor = allocate(*args, **kwargs)
        return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

    return poisoned


@pytest.fixture(scope="module", autouse=not INTERPRETED)
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
