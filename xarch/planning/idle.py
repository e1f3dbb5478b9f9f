"""Settings that have no effect, or less than they say: the plan warns of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from xarch.config.schema import RunConfig, Stage
from xarch.matching.pairing import Pair


@dataclass
class ReadModels:
    """Models that the planned stages read.

    Attributes:
        names: of further teachers, and of copies of the student.
        averaged: those that an objective averages with others by their weights.
    """

    names: set[str] = field(default_factory=set)
    averaged: set[str] = field(default_factory=set)

    def add(self, stage: Stage, pairs: Iterable[Pair], of_steps: Iterable[str]) -> None:
        """Add what a stage reads.

        Args:
            of_steps: models that its batch steps run.
        """
        self.names.update(of_steps, (key.partition(".")[0] for key in stage.requires))
        for pair in pairs:
            self.names.update(r.model for r in (*pair.right.values(), *pair.aux.values()))
            if pair.several and not pair.joined:
                self.averaged.update(pair.right)


def idle_settings(config: RunConfig, read: ReadModels, facts: Mapping[str, Any], *, trains_all: bool) -> list[str]:
    """Return a warning for every setting without effect.

    Args:
        read: by the stages that run.
        facts: of the data set.
        trains_all: whether every stage computes matches; another kind may read any teacher in its code.
    """
    told = []
    for name, given in config.teachers.items():
        if name not in read.names and trains_all:
            told.append(
                f"teachers.{name} is loaded but no match, batch step or requirement reads it: write {name}:TAP or *:TAP"
            )
        elif given.weight != 1.0 and name not in read.averaged and trains_all:
            told.append(
                f"teachers.{name}.weight is {given.weight:g}, but no objective averages this teacher with others "
                "(`teacher: *:TAP`); a match has a weight of its own"
            )
    samples = facts.get("samples") or {}
    for name, stage in config.stages.items():
        if stage.validation is not None and not stage.skip:
            told += _too_many(f"stages.{name}.validation.samples", stage.validation.samples, "validation", samples)
    return told + _too_many("evaluate.samples", config.evaluate.samples, "heldout", samples)


def _too_many(where: str, wanted: int, split: str, samples: Mapping[str, int]) -> list[str]:
    there = samples.get(split)
    if there is None or wanted <= there:
        return []
    return [f"{where} is {wanted}, but the {split} split has {there} samples: all of them are measured"]
