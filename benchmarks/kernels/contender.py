"""One implementation that takes part: a backend of this project, or a function of another package."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from benchmarks.kernels.case import Case

Inputs = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Contender:
    """One implementation of one operation.

    ``call`` gets the inputs in its own layout, so that no contender pays for a transposition it would not do in its
    own home; ``layout`` gives the permutation of each input for which that differs from the layout of the operation's
    legend, and ``returns`` that of the result.
    """

    name: str
    call: Callable[[Inputs], Tensor]
    ours: bool = False
    family: str = ""
    """Peers of one family compete for the place of "the fastest of its kind"."""
    layout: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    returns: tuple[int, ...] | None = None
    packages: tuple[str, ...] = ()
    """Import names it needs."""
    devices: tuple[str, ...] = ("cpu", "cuda")
    cannot: Callable[[Case], str | None] = lambda case: None
    """Why it cannot take a case, or None if it can."""

    def absent(self, case: Case) -> str | None:
        """Why it cannot be measured here at any length, or None if it can."""
        if case.device not in self.devices:
            return f"runs on {', '.join(self.devices)} only"
        missing = [p for p in self.packages if importlib.util.find_spec(p) is None]
        if missing:
            return f"not installed: {', '.join(missing)}"
        return None

    def arrange(self, inputs: Inputs) -> Inputs:
        """Copies of the inputs in this contender's layout."""
        return {n: permuted(t, self.layout.get(n)) for n, t in inputs.items()}

    def restore(self, name: str, gradient: Tensor) -> Tensor:
        """A gradient back in the layout of the operation."""
        return gradient if name not in self.layout else gradient.permute(inverse(self.layout[name]))

    def result(self, output: Tensor) -> Tensor:
        """The result back in the layout of the operation."""
        return output if self.returns is None else output.permute(inverse(self.returns))


def permuted(tensor: Tensor, order: tuple[int, ...] | None) -> Tensor:
    return tensor.detach().clone() if order is None else tensor.detach().permute(order).contiguous()


def inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(range(len(order)), key=order.__getitem__))
