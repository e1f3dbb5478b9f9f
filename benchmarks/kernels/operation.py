"""Everything the harness knows of one operation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.kernels.case import Case
from benchmarks.kernels.contender import Contender, Inputs
from benchmarks.kernels.work import Work


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation, its sizes, its contenders and the least work it takes."""

    name: str
    shapes: dict[str, dict[str, int]]
    """Sizes without the number of tokens; those whose name starts with ``gpu:`` are measured on a GPU only."""
    inputs: Callable[[Case, torch.Generator], Inputs]
    """Inputs on the CPU in float32, in the layout of the operation's legend."""
    leaves: tuple[str, ...]
    """Inputs that get a gradient."""
    ours: Callable[[Inputs, str], Tensor]
    """The operation with a given backend of this project."""
    peers: Sequence[Contender]
    work: Callable[[Case, bool], Work]
    """Least work of the forward pass, or of both passes."""
    exact_length: int
    """Up to this length the truth is the naive backend in float64, above it the plain-PyTorch one in float64."""
    keeps_float32: tuple[str, ...] = ()
    """Inputs that stay float32 in a case of a narrower dtype."""
    longest_naive: int = 4096
    promised: tuple[int, ...] = ()
    """Lengths of the project's promises: there a peer is tried even if it did not finish fewer tokens in time."""

    also: tuple[int, ...] = ()
    """Further lengths, where a slow peer still finishes."""

    def contenders(self, case: Case) -> list[Contender]:
        """Backends that can take the case, best first, then the peers."""
        from xarch.kernels.dispatch import backends

        dtype = getattr(torch, case.dtype)
        able = [b for b in backends(self.name) if b.refusal(case.device, dtype) is None]
        return [Contender(b.name, self._with(b.name), ours=True, cannot=self._too_long(b.name)) for b in able] + list(
            self.peers
        )

    def refused(self, case: Case) -> dict[str, str]:
        """Backends of this project that cannot run here, each with its reason."""
        from xarch.kernels.dispatch import backends

        found = {b.name: b.refusal(case.device, getattr(torch, case.dtype)) for b in backends(self.name)}
        return {name: reason for name, reason in found.items() if reason is not None}

    def _with(self, backend: str) -> Callable[[Inputs], Tensor]:
        return lambda inputs: self.ours(inputs, backend)

    def _too_long(self, backend: str) -> Callable[[Case], str | None]:
        def cannot(case: Case) -> str | None:
            if backend == "naive" and case.length > self.longest_naive:
                return f"not measured above {self.longest_naive} tokens"
            return None

        return cannot
