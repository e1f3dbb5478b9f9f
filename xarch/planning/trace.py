"""What a computation costs, seen on the meta device: saved activations, multiply-adds, memory traffic, operators."""

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
"""Longest time a trace may take before the plan falls back to a formula."""


class TooLong(Exception):
    """A trace took too many operators to be worth it."""


@dataclass
class Cost:
    """Cost of a piece of computation.

    Attributes:
        saved: bytes of activations that the backward pass needs, parameters and inputs not counted.
        transient: bytes of the largest values that exist only for a moment.
        products: multiply-adds of matrix products and convolutions.
        traffic: bytes that operators read and write.
        operators: how many ran.
    """

    saved: int = 0
    transient: int = 0
    products: float = 0.0
    traffic: float = 0.0
    operators: int = 0

    def plus(self, other: Cost, times: int = 1) -> Cost:
        """Both one after the other: sums, except for what exists at one time only."""
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
        known: tensors that exist anyway: parameters and inputs.
    """

    known: Iterable[Tensor]
    cost: Cost = field(default_factory=Cost)

    def __post_init__(self) -> None:
        self._known = {_storage(t) for t in self.known}
        self._kept: dict[int, Tensor] = {}

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Count everything that runs inside."""
        with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda saved: saved), _Counter(self.cost):
            yield

    def _pack(self, tensor: Tensor) -> Tensor:
        key = _storage(tensor)
        if key not in self._known and key not in self._kept:
            # Held on to, so that no other tensor gets its storage's number.
            self._kept[key] = tensor
            self.cost.saved += tensor.untyped_storage().nbytes()
        return tensor


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


class _Counter(TorchDispatchMode):
    """Counts operators as they are dispatched, of forward and backward alike."""

    def __init__(self, cost: Cost) -> None:
        super().__init__()
        self.cost = cost
        self.until = time.monotonic() + SECONDS

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        cost = self.cost
        if time.monotonic() > self.until:
            raise TooLong
        if func._overloadpacket in flop_registry:
            cost.products += flop_registry[func._overloadpacket](*args, **kwargs, out_val=result) / 2
        if not func.is_view:
            made = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
            read = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
            cost.traffic += sum(t.numel() * t.element_size() for t in (*made, *read))
            cost.transient = max(cost.transient, sum(t.numel() * t.element_size() for t in made))
            cost.operators += 1
        return result
