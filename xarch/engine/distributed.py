"""Data-parallel processes: the only module that uses ranks, accelerate and torch.distributed.

Every process reads the same batches and processes its slice of each, so the data of a step do not depend on the number
of processes. Losses are divided by denominators summed over all processes and gradients are *summed*, which equals the
gradient of one process on the whole batch.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xarch.contracts.batch import Batch
from xarch.contracts.model import Student
from xarch.errors import UsageError
from xarch.files.run_dir import RunDir


def open_run(out: Path | str | None, name: str, head: Mapping[str, str]) -> RunDir:
    """Create a new run folder on rank 0, with the files ``head``, and open it on all ranks.

    Raises:
        UsageError: several processes were started without a common folder, or the folder is in use.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and out is None:
        raise UsageError("several processes need one run folder", "name it with --out")
    if os.environ.get("RANK", "0") == "0":
        return RunDir.create(out, name, head)
    assert out is not None
    return RunDir(out)


def open_tracker(name: str, project: str, folder: Path, options: Mapping[str, Any]) -> Any:
    """Start a tracker of accelerate: an object with ``log(values, step)`` and ``finish()``.

    Args:
        name: as accelerate calls it: wandb, mlflow, trackio, tensorboard, comet_ml, aim, clearml, swanlab, ...
        project: the project or experiment.
        folder: where trackers that write files do so.
        options: further arguments of accelerate's class.

    Raises:
        UsageError: the name is unknown, its package is not installed, or it does not start.
    """
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    if name not in LOGGER_TYPE_TO_CLASS:
        raise UsageError(
            f"runtime.trackers: there is no tracker {name!r}", f"trackers: {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}"
        )
    if name not in [str(getattr(found, "value", found)) for found in get_available_trackers()]:
        raise UsageError(f"runtime.trackers: the package of {name!r} is not installed", f"pip install {name}")
    kind = LOGGER_TYPE_TO_CLASS[name]
    PartialState()
    try:
        where = {"logging_dir": str(folder)} if kind.requires_logging_directory else {}
        tracker = kind(project, **{**where, **options})
        tracker.start()
    except Exception as e:
        # Whatever its library raises: an unknown argument, a login that is missing, a server that does not answer.
        why = " ".join(f"{type(e).__name__}: {e}".split())[:300]
        raise UsageError(f"runtime.trackers: {name} does not start: {why}") from e
    return tracker


class Distributed:
    """The process group of this run. With one process every method is a no-op.

    Attributes:
        rank, world: rank of this process, and number of processes.
        main: whether this is rank 0, which writes files and shows progress.
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
        """Whether this is rank 0, which writes files."""
        return self.rank == 0

    def slice(self, batch: Batch) -> Batch:
        """Return this process's samples of a batch.

        Raises:
            UsageError: the batch has fewer samples than there are processes.
        """
        if self.world == 1:
            return batch
        if len(batch) < self.world:
            raise UsageError(
                f"a batch of {len(batch)} samples cannot be split across {self.world} processes",
                f"set the stage's `batch` to a multiple of {self.world}",
            )
        return batch.narrow(*self._share(len(batch)))

    def joined(self, mine: Tensor, total: int) -> Tensor:
        """Gather per-sample values of the whole batch on every rank; the inverse of :meth:`slice`."""
        if self.world == 1:
            return mine
        start, stop = self._share(total)
        whole = mine.new_zeros(total)
        whole[start:stop] = mine
        return self.sum(whole)

    def _share(self, total: int) -> tuple[int, int]:
        return total * self.rank // self.world, total * (self.rank + 1) // self.world

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        return value if self._accelerator is None else self._accelerator.reduce(value, reduction="sum")

    def sum_dict(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return sums of named numbers over all processes; every process must pass the same names."""
        if self._accelerator is None or not values:
            return dict(values)
        names = sorted(values)
        device = self._accelerator.device
        total = self.sum(torch.tensor([values[n] for n in names], dtype=torch.float64, device=device))
        return dict(zip(names, total.tolist(), strict=True))

    def of_main(self, values: Sequence[float]) -> list[float]:
        """Broadcast numbers from rank 0 to all ranks."""
        told = self.sum_dict({str(i): value * self.main for i, value in enumerate(values)})
        return [told[str(i)] for i in range(len(values))]

    def any(self, flag: bool) -> bool:
        """Return whether ``flag`` is set in any process."""
        return bool(self.sum_dict({"flag": float(flag)})["flag"]) if self.world > 1 else flag

    def barrier(self) -> None:
        """Wait for the other processes."""
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()

    def reduce_gradients(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        """Sum gradients over processes.

        The backward pass of a sharded parameter already averages its gradient, which is scaled back to the sum here
        (gloo cannot reduce with another factor).
        """
        if self._accelerator is None:
            return
        for name, parameter in parameters:
            if not parameter.requires_grad:
                continue
            if name in self._sharded:
                if parameter.grad is not None:
                    parameter.grad.mul_(self.world)
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad = self.sum(parameter.grad)

    def shard(self, student: Student) -> Student | None:
        """Return a copy of the student whose units are sharded with FSDP2, or None if there is nothing to shard. It is
        a copy because sharding cannot be removed from a module; :meth:`collect_into` copies the weights back.
        """
        if self._accelerator is None or not list(student.shard_units()):
            return None
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        sharded = copy.deepcopy(student)
        mesh = init_device_mesh(self._accelerator.device.type, (self.world,))
        before = {id(p) for p in sharded.module.parameters()}
        for unit in sharded.shard_units():
            fully_shard(unit, mesh=mesh)
        self._sharded = {n for n, p in sharded.module.named_parameters() if id(p) not in before}
        return sharded

    def collect_into(self, sharded: Student, student: Student) -> None:
        """Copy the full weights of a sharded student into the one it was made from."""
        own = {**dict(student.module.named_parameters()), **dict(student.module.named_buffers())}
        with torch.no_grad():
            for name, tensor in (*sharded.module.named_parameters(), *sharded.module.named_buffers()):
                own[name].copy_(self.whole(tensor.detach()))

    def drop_shards(self) -> None:
        """Release the sharded copy."""
        self._sharded = set()

    def whole(self, tensor: Tensor) -> Tensor:
        """Return the full tensor behind a shard (collective); other tensors unchanged."""
        return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor

    def like(self, whole: Tensor, parameter: Tensor) -> Tensor:
        """Return ``whole`` placed like ``parameter``: sharded if ``parameter`` is."""
        if not hasattr(parameter, "device_mesh"):
            return whole.to(parameter.device)
        from torch.distributed.tensor import distribute_tensor

        placed: Any = parameter
        return distribute_tensor(whole.to(parameter.device), placed.device_mesh, placed.placements)

    def close(self) -> None:
        """Destroy the process group."""
        if self._accelerator is not None:
            self._accelerator.end_training()
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
