"""Train and eval mode, and measurements that leave no trace in the training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from xarch.engine.seeds import restore_rng, rng_state


class Modes:
    """Which modules of a stage are in train mode.

    Args:
        modules: the student's, and those of connectors and objectives.
        frozen: parts of them that stay in eval mode.
    """

    def __init__(self, modules: Sequence[nn.Module], frozen: Sequence[nn.Module]) -> None:
        self.modules, self.frozen = list(modules), list(frozen)
        self._measuring = False

    def train(self) -> None:
        """Everything but the frozen parts."""
        for module in self.modules:
            module.train()
        for module in self.frozen:
            module.eval()

    def eval(self) -> None:
        """All of it."""
        for module in self.modules:
            module.eval()

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside, everything is in eval mode and no gradients are kept; afterwards it is as it was."""
        was = [(m, m.training) for module in self.modules for m in module.modules()]
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            for module, training in was:
                module.training = training

    @contextlib.contextmanager
    def undisturbed(self) -> Iterator[None]:
        """The same, and buffers and random state are afterwards what they were."""
        if self._measuring:
            yield
            return
        state = rng_state()
        buffers = self._buffers()
        copies = [b.detach().clone() for b in buffers]
        self._measuring = True
        try:
            with self.evaluating():
                yield
        finally:
            self._measuring = False
            with torch.no_grad():
                for buffer, copy in zip(buffers, copies, strict=True):
                    buffer.copy_(copy)
            restore_rng(*state)

    @contextlib.contextmanager
    def repeated(self) -> Iterator[None]:
        """Inside, the last forward passes are made again, in the same mode: buffers move once, not twice."""
        buffers = self._buffers()
        copies = [b.detach().clone() for b in buffers]
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, copy in zip(buffers, copies, strict=True):
                    buffer.copy_(copy)

    def _buffers(self) -> list[Tensor]:
        return [b for module in self.modules for b in module.buffers()]
