"""The teacher with the inputs and outputs of its replaceable parts as taps."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from xarch import Batch, Replaceable, Sink, Student, Tap, Teacher
from xarch_acm.sensitivity import sensitivities
from xarch_acm.student import SENSITIVITY, flat

PASSES = 2
"""Of sensitivities, see ``Tap.info``: forward, and back to the outputs of parts, not to weights."""


def part_taps(parts: Sequence[Replaceable], model: nn.Module) -> dict[str, Tap]:
    """Return ``PATH.in`` and ``PATH.out`` [B, L, D], and ``PATH.sensitivity`` [B, L] of every part."""
    found: dict[str, Tap] = {}
    for part in parts:
        module = model.get_submodule(part.path)
        first = module.get_submodule(part.into[0]) if part.into else module
        last = module.get_submodule(part.out) if part.out else module
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        found[f"{part.path}.in"] = Tap(f"{part.path}.in", "hidden", "BLD", {"D": first.in_features})
        found[f"{part.path}.out"] = Tap(f"{part.path}.out", "hidden", "BLD", {"D": last.out_features})
        name = f"{part.path}.{SENSITIVITY}"
        found[name] = Tap(name, SENSITIVITY, "BL", info={"passes": PASSES})
    return found


class PartsTeacher(Teacher):
    """A teacher that runs as the model rebuilt from its facts where parts are tapped, and as itself elsewhere.

    Args:
        teacher: owns the weights.
        model: the rebuilt model, sharing them.
        parts: those that are tapped.
    """

    def __init__(self, teacher: Teacher, model: Student, parts: Sequence[Replaceable]) -> None:
        self.teacher, self.model, self.parts = teacher, model, list(parts)
        self.module, self.family, self.facts = teacher.module, teacher.family, teacher.facts
        self.ref, self.fingerprint = teacher.ref, teacher.fingerprint
        self._own = part_taps(parts, model.module)

    def taps(self) -> Mapping[str, Tap]:
        return {**self.teacher.taps(), **self._own}

    def run(self, batch: Batch, wanted: Collection[str], sink: Sink) -> None:
        depends = {part.path for part in self.parts if f"{part.path}.{SENSITIVITY}" in wanted}
        ours = {name for name in wanted if name in self._own}
        if ours:
            self._run(batch, ours, set(wanted) - ours, sink)
        else:
            self.teacher.run(batch, wanted, sink)
        if depends:
            for path, value in sensitivities(self.model, batch, depends).items():
                sink(f"{path}.{SENSITIVITY}", value)

    def _run(self, batch: Batch, ours: set[str], others: set[str], sink: Sink) -> None:
        handles = [
            self.model.module.get_submodule(part.path).register_forward_hook(self._hook(part.path, ours, sink))
            for part in self.parts
        ]
        last = list(self.model.taps())[-1]
        try:
            self.model.run(batch, others | {last}, lambda name, value: sink(name, value) if name in others else None)
        finally:
            for handle in handles:
                handle.remove()

    @staticmethod
    def _hook(path: str, ours: Collection[str], sink: Sink) -> Any:
        def hook(module: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
            for leaf, value in (("in", given[0]), ("out", made)):
                if f"{path}.{leaf}" in ours:
                    sink(f"{path}.{leaf}", flat(value))

        return hook

    def work(self, sample: Mapping[str, Any]) -> float:
        return self.teacher.work(sample)

    def weights(self) -> Mapping[str, Tensor]:
        return self.teacher.weights()

    def constants(self) -> Mapping[str, Tensor]:
        return self.teacher.constants()

    def packed(self, name: str, value: Any) -> Any:
        return self.teacher.packed(name, value)

    def unpacked(self, name: str, stored: Tensor) -> Any:
        return self.teacher.unpacked(name, stored)

    def processor(self) -> Any:
        return self.teacher.processor()

    def save_processor(self, folder: str) -> None:
        self.teacher.save_processor(folder)
