"""Random values of declared taps, for the conformance classes."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from xarch.contracts.tap import Tap
from xarch.registry.loader import get_registry

M = TypeVar("M", bound=nn.Module)
FREE = 3
"""Default size of a free dimension."""


def random_value(tap: Tap, samples: int, sizes: Mapping[str, int], generator: torch.Generator) -> Tensor:
    """Return a normally distributed value of a dense tap, float64.

    Args:
        sizes: sizes of the dimensions that the tap leaves free.
    """
    assert tap.dense, f"{tap.name}: {tap.layout} is a structured form; override the method that makes its values"
    shape = [samples, *(tap.shape.get(letter, sizes.get(letter, FREE)) for letter in tap.layout[1:])]
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def tensors_of(value: Any) -> list[Tensor]:
    """Return every floating-point tensor in a tensor, mapping, sequence, or object with attributes."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, Mapping):
        return [t for v in value.values() for t in tensors_of(v)]
    if isinstance(value, list | tuple):
        return [t for v in value for t in tensors_of(v)]
    return [t for v in vars(value).values() for t in tensors_of(v)] if hasattr(value, "__dict__") else []


def snapshot(value: Any) -> list[Tensor]:
    """Return copies of every tensor of a value."""
    return [t.detach().clone() for t in tensors_of(value)]


def assert_unchanged(before: list[Tensor], value: Any, what: str) -> None:
    """Assert that no tensor of ``value`` has changed since :func:`snapshot`."""
    now = tensors_of(value)
    assert len(now) == len(before), f"{what} lost or gained a tensor"
    assert all(torch.equal(a, b) for a, b in zip(before, now, strict=True)), f"{what} was changed in place"


def without_dropout(module: M) -> M:
    """Put the module in train mode without dropout, so that two passes can be compared."""
    module.train()
    for part in module.modules():
        if isinstance(part, nn.modules.dropout._DropoutNd):
            part.eval()
    return module


def assert_close(found: Tensor, wanted: Tensor, told: str, tolerance: float = 1e-6) -> None:
    """Assert equality up to rounding; ``told`` is the message."""
    torch.testing.assert_close(
        found, wanted, rtol=tolerance, atol=tolerance, check_dtype=False, msg=lambda m: f"{told}: {m}"
    )


@contextlib.contextmanager
def random_state(seed: int) -> Iterator[None]:
    """Seed every global random generator within the block and restore their states afterwards."""
    kept = torch.random.get_rng_state(), random.getstate(), np.random.get_state()
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        torch.random.set_rng_state(kept[0])
        random.setstate(kept[1])
        np.random.set_state(kept[2])


def global_draws() -> tuple[float, float, float]:
    """Return the next number of every global random generator without advancing them."""
    kept = torch.random.get_rng_state(), random.getstate(), np.random.get_state()
    drawn = float(torch.rand(())), random.random(), float(np.random.random())
    torch.random.set_rng_state(kept[0])
    random.setstate(kept[1])
    np.random.set_state(kept[2])
    return drawn


def registered(kind: str, name: str, layout: str = "") -> Any:
    """Return what a plugin registered under a name.

    Args:
        layout: layout of the student, for objectives with an implementation per layout.
    """
    assert name, f"name the {kind} that is tested"
    registry = get_registry()
    return registry.resolve(registry.get(kind, name, layout))
