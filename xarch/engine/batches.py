"""Preparation of a stage's batches: moving them to the device and applying batch steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from xarch.contracts.batch import CHANGED, Batch
from xarch.contracts.batch_step import BatchStep, StepContext
from xarch.contracts.data import BatchStream


class DeviceStream(BatchStream):
    """Stream that moves batches to the device and shares its counters with the run."""

    def __init__(self, stream: BatchStream, device: torch.device, counters: dict[str, int]) -> None:
        self.stream, self.device, self.shared = stream, device, counters
        self.watches_losses = stream.watches_losses

    def __next__(self) -> Batch:
        batch = next(self.stream).to(self.device)
        self.shared.update(self.stream.counters())
        return batch

    def state_dict(self) -> dict[str, Any]:
        return self.stream.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.stream.load_state_dict(state)
        # A stage that resumes after its last step reads no batch, but must still report its data counters.
        self.shared.update(self.stream.counters())

    def take_losses(self, batch: Batch, losses: Mapping[str, Tensor]) -> None:
        self.stream.take_losses(batch.to("cpu"), losses)

    def counters(self) -> dict[str, int]:
        return self.stream.counters()

    def close(self) -> None:
        self.stream.close()


def apply_steps(batch: Batch, steps: Sequence[BatchStep], moment: StepContext) -> Batch:
    """Apply all steps in order. The batch is marked if data tensors changed, so that a cache does not confuse it with
    the original samples."""
    before = dict(batch.tensors)
    for step in steps:
        batch = step(batch, moment)
    if any(batch.tensors.get(name) is not tensor for name, tensor in before.items()):
        batch = Batch(dict(batch.tensors), batch.units, {**batch.meta, CHANGED: True})
    return batch
