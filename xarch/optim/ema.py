"""A moving average of parameters."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class EMA:
    """``average = decay * average + (1 - decay) * value`` after every step.

    The first steps average over those so far: the decay is at most (1 + n) / (10 + n) after n steps, so that an average
    does not keep to the random start of a short stage.

    Args:
        parameters: name -> parameter.
        decay: weight of the past.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.parameters, self.decay, self.updates = dict(parameters), decay, 0
        self.averages = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._swapped = False

    @torch.no_grad()
    def update(self) -> None:
        """Update the averages after a step."""
        self.updates += 1
        share = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, parameter in self.parameters.items():
            self.averages[name].lerp_(parameter.detach(), share)

    @torch.no_grad()
    def restart(self) -> None:
        """Reset the averages to the current parameters."""
        self.updates = 0
        for name, parameter in self.parameters.items():
            self.averages[name].copy_(parameter.detach())

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """Swap the averaged values into the parameters inside the context; nested uses have no effect."""
        if self._swapped:
            yield
            return
        own = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.adopt()
        self._swapped = True
        try:
            yield
        finally:
            self._swapped = False
            self._set(own)

    def adopt(self) -> None:
        """Copy the averaged values into the parameters."""
        self._set(self.averages)

    @torch.no_grad()
    def _set(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])

    def state(self) -> dict[str, Tensor]:
        """Return averages by name, and the number of updates under ``""``."""
        return {**self.averages, "": torch.tensor(self.updates)}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore the result of :meth:`state`; tensors are placed like the averages."""
        self.updates = int(state[""])
        for name, average in self.averages.items():
            average.copy_(state[name])
