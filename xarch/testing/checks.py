"""Checks shared by the conformance classes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from xarch.contracts.batch import Batch
from xarch.contracts.model import TapModel
from xarch.contracts.tap import Tap

HEAVY = ("torch", "transformers", "onnx", "onnxruntime", "timm")


def assert_light_registration() -> None:
    """Loading every plugin imports nothing heavy."""
    code = (
        "import sys; from xarch.registry.loader import load_registry; load_registry();"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", f"imported while registering: {done.stdout.strip()}"


def assert_layout(tap: Tap, value: Any, batch: Batch) -> None:
    """A tensor has the dimensions and sizes its tap declares."""
    if not isinstance(value, Tensor):
        assert not tap.dense, f"{tap.name}: declared {tap.layout}, got {type(value).__name__}"
        return
    assert value.ndim == len(tap.layout), f"{tap.name}: {tuple(value.shape)} is not {tap.layout}"
    sizes = {"B": len(batch), **tap.shape}
    for letter, size in zip(tap.layout, value.shape, strict=True):
        if letter in sizes:
            assert size == sizes[letter], f"{tap.name}: {letter} is {size}, declared {sizes[letter]}"


def assert_taps(model: TapModel, batch: Batch) -> None:
    """Every declared tap is pushed once, in the declared layout, and two runs agree bit for bit."""
    taps = model.taps()
    with torch.no_grad():
        first, second = _record(model, batch, taps), _record(model, batch, taps)
    assert sorted(first) == sorted(taps), f"not pushed: {sorted(set(taps) - set(first))}"
    for name, value in first.items():
        assert_layout(taps[name], value, batch)
        if isinstance(value, Tensor):
            assert torch.equal(value, second[name]), f"{name} differs between two runs"
            assert bool(torch.isfinite(value).all()), f"{name} is not finite"


def _record(model: TapModel, batch: Batch, taps: Mapping[str, Tap]) -> dict[str, Any]:
    values: dict[str, Any] = {}

    def take(name: str, value: Any) -> None:
        assert name not in values, f"{name} was pushed twice"
        values[name] = value

    model.run(batch, set(taps), take)
    return values
