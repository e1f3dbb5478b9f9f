"""Detection of non-finite numbers, and memory freed before a retry."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from xarch.contracts.batch import Batch
from xarch.contracts.model import Sink, TapModel
from xarch.errors import DivergedError


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


def all_finite(tensor: Tensor) -> bool:
    """Return whether a tensor has neither NaN nor infinity; one pass without a mask if it has none."""
    if not tensor.is_floating_point() or tensor.is_meta or not tensor.numel():
        return True
    return math.isfinite(float(_total(tensor))) or bool(torch.isfinite(tensor).all())


def first_nonfinite_tensor(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Return the name of the first tensor with NaN or infinity."""
    return next((name for name, tensor in tensors if not all_finite(tensor)), None)


def require_finite_weights(model: TapModel, what: str) -> None:
    """Check all parameters and buffers of a model. A buffer may hold infinities (a mask), but no NaN.

    Raises:
        DivergedError: names the first that is not finite.
    """
    parameters = first_nonfinite_tensor(model.module.named_parameters())
    buffers = (n for n, b in model.module.named_buffers() if not all_finite(b) and bool(torch.isnan(b).any()))
    name = parameters or next(buffers, None)
    if name is not None:
        raise DivergedError(
            f"{what} holds NaN or infinity: first non-finite: {name}", "its file is damaged; replace it"
        )


def first_nonfinite(model: TapModel, batch: Batch) -> str | None:
    """Return the first part of a model that is not finite on a batch: a weight, else a module, else the last tap; None
    without one."""
    name = first_nonfinite_tensor(model.module.named_parameters())
    if name is not None:
        return f"weight {name}"
    values: dict[str, Any] = {}
    last = set(list(model.taps())[-1:])
    name = first_nonfinite_module(model.module, lambda: values.update(model.collect(batch, last)))
    if name is not None:
        return f"module {name}"
    taps = ((tap, tensor) for tap, value in values.items() for tensor in _tensors(value))
    name = first_nonfinite_tensor(taps)
    return f"tap {name}" if name is not None else None


class FiniteValues:
    """Passes values on as a sink and checks that they are finite: on a CPU before anything uses them, elsewhere when
    all have been produced or something failed, because looking at a value there waits for the device.

    Args:
        sink: receives the values.
        who: the model in errors.
        model: the model itself, whose weights are searched for the origin.
    """

    def __init__(self, sink: Sink, who: str, model: TapModel) -> None:
        self.sink, self.who, self.model = sink, who, model
        self._waiting: list[tuple[str, Tensor]] = []

    def __call__(self, name: str, value: Any) -> None:
        for tensor in _tensors(value):
            if tensor.device.type == "cpu":
                if not all_finite(tensor):
                    self._fail(name)
            elif tensor.numel() and not tensor.is_meta:
                self._waiting.append((name, _total(tensor)))
        self.sink(name, value)

    @contextlib.contextmanager
    def checked(self) -> Iterator[None]:
        """Check on leaving; an error that follows from a value that is not finite is replaced by what it follows from.

        Raises:
            DivergedError: names the first tap that is not finite, and the weight it comes from.
        """
        try:
            yield
        except Exception:
            self._check()
            raise
        self._check()

    def _check(self) -> None:
        if not self._waiting:
            return
        names, totals = zip(*self._waiting, strict=True)
        self._waiting = []
        for name, total in zip(names, torch.stack([t.double() for t in totals]).tolist(), strict=True):
            if not math.isfinite(total):
                self._fail(name)

    def _fail(self, tap: str) -> None:
        weight = first_nonfinite_tensor(self.model.module.named_parameters())
        origin = f"weight {weight} holds NaN or infinity" if weight else "all its weights are finite"
        raise DivergedError(
            f"{self.who} gives NaN or infinity; first non-finite: tap {tap} ({origin})",
            "check the teacher's file, and inputs and precision (`runtime.precision`)",
        )


def _total(tensor: Tensor) -> Tensor:
    """Return the sum in a precision in which finite values of practical size do not overflow."""
    return tensor.detach().sum(dtype=torch.promote_types(tensor.dtype, torch.float32))


def _tensors(value: Any) -> Iterable[Tensor]:
    """Yield the floating-point tensors of a value: those of a structured one too, but no weights it refers to."""
    if isinstance(value, Tensor):
        if value.is_floating_point() and not isinstance(value, nn.Parameter):
            yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif dataclasses.is_dataclass(value):
        yield from _tensors(vars(value))


def release_memory() -> None:
    """Free cached memory before a retry."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
