"""A rival: early exit. A sample, or a position of text, whose answer is sure enough after some of the modules skips the
rest; the model's own head reads every answer (Teerapittayanon et al., *BranchyNet*, arXiv:1709.01686; with one head for
all exits, Elhoushi et al., *LayerSkip*, arXiv:2404.16710).

Legend: B samples, ... samples, and positions of text, E exits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from xarch_acm.module import AdaptiveModule

NEVER = 2.0
"""Least probability of the likeliest answer that no answer has."""
READ = ("k", "v", "qkv")
"""Kinds of modules that positions of text which still run read at those that do not."""
ADDED = ("mlp", "o")
"""Kinds of modules whose output is added to what runs through the model."""


class ExitModule(AdaptiveModule):
    """Runs all learners where the model has not stopped, and adds nothing elsewhere.

    Attributes:
        kind: see ``xarch.Replaceable``.
        running: where it runs [...]; None: everywhere.
    """

    kind = ""
    gated = False
    running: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.out(self.hidden(x))
        if self.running is None:
            runs = torch.ones_like(x[..., :1])
        else:
            shape = (*self.running.shape, *(1,) * (x.ndim - self.running.ndim))
            runs = self.running.reshape(shape).to(x).expand_as(x[..., :1])
        read = self.running is not None and self.running.ndim > 1 and self.kind in READ
        if self.watch is not None:
            choice = x.new_zeros(*x.shape[:-1], self.learners + 1)
            choice[..., -1:] = 1.0 if read else runs
            choice[..., :1] = 1.0 - choice[..., -1:]
            self.watch(choice, choice)
        return made * runs if self.kind in ADDED else made


class Exits:
    """The exits of a model: after each module of the kind that comes last.

    Args:
        modules: path -> module, in the order in which they run.
    """

    def __init__(self, modules: Mapping[str, ExitModule]) -> None:
        self.modules = list(modules.values())
        self.count = 0
        self.number: list[int] = []
        """Exit before which each module runs."""
        for module in self.modules:
            self.number.append(self.count)
            self.count += module.kind == self.modules[-1].kind

    def shares(self) -> Tensor:
        """Return the share of all learners' multiply-adds that comes before each exit [E]."""
        costs = torch.zeros(self.count, dtype=torch.float64)
        for number, module in zip(self.number, self.modules, strict=True):
            costs[number] += module.cost * module.learners
        return costs.cumsum(0) / costs.sum()

    def leave(self, exits: Tensor | None) -> None:
        """Let samples or positions leave at their exits [...], or none of them before the end."""
        for number, module in zip(self.number, self.modules, strict=True):
            module.running = None if exits is None else exits >= number

    def draw(self, samples: int, device: torch.device) -> None:
        """Let every sample leave at an exit by chance: what trains all of them at the cost of one pass."""
        self.leave(torch.randint(self.count, (samples,)).to(device))

    def sure(self, answer: Callable[[], Tensor], samples: int, device: torch.device) -> Tensor:
        """Return the probability of the likeliest answer at every exit but the last [..., E - 1].

        Args:
            answer: runs the model on so many samples, returns logits [..., V].
        """
        found = []
        for number in range(self.count - 1):
            self.leave(torch.full((samples,), number, device=device))
            found.append(answer().float().softmax(-1).amax(-1))
        self.leave(None)
        return torch.stack(found, -1)


def taken(sure: Tensor, least: float) -> Tensor:
    """Return the first exit whose answer is sure enough [...], from their probabilities [..., E - 1]."""
    enough = torch.cat([sure >= least, torch.ones_like(sure[..., :1], dtype=torch.bool)], -1)
    return enough.int().argmax(-1)


def least_for(sure: Tensor, shares: Tensor, share: float) -> float:
    """Return the probability at which what runs is nearest to a share of all, but not above it if that can be.

    Args:
        sure: see :func:`taken`. shares: see :meth:`Exits.shares`.
    """
    low, high = 0.0, NEVER
    for _ in range(48):
        middle = (low + high) / 2
        above = float(shares[taken(sure, middle).cpu()].mean()) > share
        low, high = (low, middle) if above else (middle, high)
    return low
