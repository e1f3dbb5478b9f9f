"""Detection of non-finite numbers, and memory freed before a retry."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


def finite(value: float) -> bool:
    """Return whether a loss or a norm is finite."""
    return math.isfinite(value)


def first_nonfinite_gradient(parameters: Iterable[tuple[str, nn.Parameter]]) -> str | None:
    """Return the name of the first parameter with a non-finite gradient."""
    for name, parameter in parameters:
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
            return name
    return None


def first_nonfinite_module(module: nn.Module, forward: Callable[[], object]) -> str | None:
    """Run ``forward`` once more and return the name of the first submodule whose output is not finite."""
    found: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if not found and any(not bool(torch.isfinite(t).all()) for t in _tensors(output)):
                found.append(name)

        return hook

    handles = [m.register_forward_hook(watch(name)) for name, m in module.named_modules() if name]
    try:
        with torch.no_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)


def release_memory() -> None:
    """Free cached memory before a retry."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
