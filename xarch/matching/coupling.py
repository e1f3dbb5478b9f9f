"""Whether a batch may be split; shared by the plan, micro-batches, out-of-memory handling and processes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING

from torch import nn

from xarch.contracts.model import Student

if TYPE_CHECKING:
    from xarch.matching.pairing import Pair


def cuttable(student: Student, trained: Collection[str], pairs: Iterable[Pair]) -> str | None:
    """Return why the batches of a stage may not be split into micro-batches or across processes; None if they may.

    Args:
        student: may be on the meta device.
        trained: names of its parameters that the stage trains.
        pairs: pairs of the stage.
    """
    for pair in pairs:
        if pair.coupled:
            return pair.coupled
    if not student.couples_batch:
        return None
    named = dict(student.module.named_modules())
    tracking = {name for name, m in named.items() if getattr(m, "track_running_stats", False)}
    # Without running statistics it takes those of the batch in eval mode too.
    always = {n for n, m in named.items() if isinstance(m, nn.modules.batchnorm._BatchNorm)} - tracking
    if not tracking | always:
        return "the student couples the samples of a batch"
    still = {id(m) for part in frozen_parts(student.module, trained) for m in part.modules()}
    moving = [name for name in named if name in always or (name in tracking and id(named[name]) not in still)]
    return f"the student's module {moving[0]} computes statistics over the batch" if moving else None


def frozen_parts(module: nn.Module, trained: Collection[str]) -> list[nn.Module]:
    """Return the largest submodules with parameters of which none trains; they stay in eval mode. Modules without
    parameters (dropout, activations) follow their parent.
    """
    return list(_frozen(module, "", set(trained)))


def _frozen(module: nn.Module, prefix: str, trained: set[str]) -> Iterator[nn.Module]:
    own = [prefix + name for name, _ in module.named_parameters()]
    if own and not any(name in trained for name in own):
        yield module
        return
    for name, child in module.named_children():
        yield from _frozen(child, f"{prefix}{name}.", trained)
