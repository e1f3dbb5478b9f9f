"""Cost of a computation, traced on the meta device: saved activations, multiply-adds, memory traffic, operators."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

SECONDS = 6.0
"""Processor time of a trace, after which the plan falls back to a formula; a busy machine does not count."""
HIDING = 4.0
"""Multiply-adds of a matrix product that hide the traffic of a byte: only what exceeds its arithmetic counts."""


class TooLong(Exception):
    """Raised when a trace has too many operators."""


@dataclass
class Cost:
    """Cost of a computation.

    Attributes:
        saved: bytes of activations that the backward pass needs, without parameters and inputs.
        transient: bytes of the largest temporary values.
        products: multiply-adds of matrix products and convolutions.
        traffic: bytes that operators read and write, without those behind the arithmetic of matrix products.
        operators: number of operators executed.
    """

    saved: int = 0
    transient: int = 0
    products: float = 0.0
    traffic: float = 0.0
    operators: int = 0

    def plus(self, other: Cost, times: int = 1) -> Cost:
        """Return the cost of both in sequence: sums, except for the transient maximum."""
        return Cost(
            max(self.saved, other.saved),
            max(self.transient, other.transient),
            self.products + times * other.products,
            self.traffic + times * other.traffic,
            self.operators + times * other.operators,
        )


@dataclass
class Trace:
    """Collects the cost of what runs inside :meth:`recording`.

    Args:
        known: tensors that exist already: parameters and inputs.
        cost: the cost so far.
        seconds: time limit; by default ``SECONDS``.
    """

    known: Iterable[Tensor]
    cost: Cost = field(default_factory=Cost)
    seconds: float | None = None

    def __post_init__(self) -> None:
        self._known = {_storage(t) for t in self.known}
        self._kept: dict[int, Tensor] = {}

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Count everything executed inside the context."""
        counter = _Counter(self.cost, SECONDS if self.seconds is None else self.seconds)
        with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda saved: saved), counter:
            yield

    def _pack(self, tensor: Tensor) -> Tensor:
        key = _storage(tensor)
        if key not in self._known and key not in self._kept:
            # Keep a reference, so that no other tensor reuses the storage's address.
            self._kept[key] = tensor
            self.cost.saved += tensor.untyped_storage().nbytes()
        return tensor


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


class _Counter(TorchDispatchMode):
    """Counts operators as they are dispatched, in forward and backward."""

    def __init__(self, cost: Cost, seconds: float) -> None:
        super().__init__()
        self.cost = cost
        self.until = time.thread_time() + seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        cost = self.cost
        if time.thread_time() > self.until:
            raise TooLong
        products = 0.0
        if func._overloadpacket in flop_registry:
            products = flop_registry[func._overloadpacket](*args, **kwargs, out_val=result) / 2
            cost.products += products
        if not func.is_view:
            made = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
            read = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
            moved = sum(t.numel() * t.element_size() for t in (*made, *read))
            cost.traffic += max(moved - products / HIDING, 0.0)
            cost.transient = max(cost.transient, sum(t.numel() * t.element_size() for t in made))
            cost.operators += 1
        return result
