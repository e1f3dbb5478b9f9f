"""Train and eval mode, and measurements that do not affect training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from xarch.engine.seeds import RandomState


class Modes:
    """Switches the modules of a stage between train and eval mode.

    Args:
        modules: the student's, and those of connectors and objectives.
        frozen: parts of them that stay in eval mode.
    """

    def __init__(self, modules: Sequence[nn.Module], frozen: Sequence[nn.Module]) -> None:
        self.modules, self.frozen = list(modules), list(frozen)
        self._measuring = False

    def train(self) -> None:
        """Put everything but the frozen parts in train mode."""
        for module in self.modules:
            module.train()
        for module in self.frozen:
            module.eval()

    def eval(self) -> None:
        """Put all modules in eval mode."""
        for module in self.modules:
            module.eval()

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Switch everything to eval mode without gradients; restore the previous modes on exit."""
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
        """Like :meth:`evaluating`, and restore buffers and random state on exit."""
        if self._measuring:
            yield
            return
        state = RandomState.now()
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
            state.restore()

    @contextlib.contextmanager
    def repeated(self) -> Iterator[None]:
        """Repeat the last forward passes in the same mode without updating buffers a second time."""
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
