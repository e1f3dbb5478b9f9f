"""Several processes as one: the only module that knows ranks, accelerate and torch.distributed.

Every process reads the same batches and works on its slice of each, so the data of a step does not depend on the number
of processes. Losses are divided by denominators summed over all processes and gradients are *summed*, which gives the
gradient of one process on the whole batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xarch.contracts.batch import Batch
from xarch.contracts.model import Student
from xarch.errors import UsageError
from xarch.store.run_dir import RunDir


def open_run(out: Path | str | None, name: str) -> RunDir:
    """A new run folder, made once by the first process and used by all.

    Raises:
        UsageError: several processes were started without a common folder, or the folder is taken.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and out is None:
        raise UsageError("several processes need one run folder", "name it with --out")
    if os.environ.get("RANK", "0") == "0":
        return RunDir.create(out, name)
    assert out is not None
    return RunDir(out)


class Ranks:
    """The processes of this run. With one process every method is free.

    Attributes:
        rank, world: this process and how many there are.
        main: whether this process writes files and shows progress.
    """

    def __init__(self, *, cpu: bool = False) -> None:
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self._accelerator: Any = None
        self._sharded: set[str] = set()
        if self.world > 1:
            from accelerate import Accelerator

            self._accelerator = Accelerator(cpu=cpu)

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def slice(self, batch: Batch) -> Batch:
        """This process's samples of a batch.

        Raises:
            UsageError: the batch has fewer samples than there are processes.
        """
        if self.world == 1:
            return batch
        if len(batch) < self.world:
            raise UsageError(
                f"a batch of {len(batch)} samples cannot be spread over {self.world} processes",
                f"set the stage's `batch` to a multiple of {self.world}",
            )
        edges = [len(batch) * i // self.world for i in range(self.world + 1)]
        return batch.narrow(edges[self.rank], edges[self.rank + 1])

    def sum(self, value: Tensor) -> Tensor:
        """Sum of a tensor over all processes."""
        return value if self._accelerator is None else self._accelerator.reduce(value, reduction="sum")

    def sum_dict(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sums of named numbers over all processes; every process must give the same names."""
        if self._accelerator is None or not values:
            return dict(values)
        names = sorted(values)
        device = self._accelerator.device
        total = self.sum(torch.tensor([values[n] for n in names], dtype=torch.float64, device=device))
        return dict(zip(names, total.tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set in any process."""
        return bool(self.sum_dict({"flag": float(flag)})["flag"]) if self.world > 1 else flag

    def barrier(self) -> None:
        """Wait for the other processes."""
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()

    def reduce_gradients(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        """Sum gradients over processes; sharded parameters were reduced by their own backward."""
        if self._accelerator is None:
            return
        for name, parameter in parameters:
            if name in self._sharded or not parameter.requires_grad:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad = self.sum(parameter.grad)

    def shard(self, student: Student) -> bool:
        """Shard the student's units with FSDP2; returns whether anything was sharded."""
        if self._accelerator is None:
            return False
        units = list(student.shard_units())
        if not units:
            return False
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self._accelerator.device.type, (self.world,))
        before = {id(p) for p in student.module.parameters()}
        for unit in units:
            # Gradients are summed, not averaged: the loss already has the global denominator.
            fully_shard(unit, mesh=mesh).set_gradient_divide_factor(1.0)
        self._sharded = {n for n, p in student.module.named_parameters() if id(p) not in before}
        return bool(self._sharded)

    def unshard(self, student: Student) -> None:
        """Give a sharded student whole parameters again."""
        if not self._sharded:
            return
        for unit in student.shard_units():
            for module in unit.modules():
                for name, parameter in list(module.named_parameters(recurse=False)):
                    whole = nn.Parameter(self.whole(parameter.detach()), requires_grad=parameter.requires_grad)
                    module.register_parameter(name, whole)
        self._sharded = set()

    def whole(self, tensor: Tensor) -> Tensor:
        """The full tensor behind a shard (collective); other tensors unchanged."""
        return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor

    def like(self, whole: Tensor, parameter: Tensor) -> Tensor:
        """``whole`` placed like ``parameter``: sharded if it is sharded."""
        if not hasattr(parameter, "device_mesh"):
            return whole.to(parameter.device)
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(whole.to(parameter.device), parameter.device_mesh, parameter.placements)

    def close(self) -> None:
        """Leave the process group."""
        if self._accelerator is not None:
            self._accelerator.end_training()
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
