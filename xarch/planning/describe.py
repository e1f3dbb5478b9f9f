"""Describes the inputs of a conversion without loading weights: teachers, data and their families, each once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from xarch.config.schema import RunConfig
from xarch.contracts.adapters import SourceInfo
from xarch.contracts.data import DataInfo, DataRequest
from xarch.contracts.family import Facts, Family
from xarch.contracts.tap import Tap
from xarch.errors import PlanError, PluginError
from xarch.planning.resolve import Resolved, Say, providers, resolve_data, resolve_teacher
from xarch.registry.registry import Registry

NO_TEACHER = "none"
"""``teacher: none``: the student is built from its options and the facts of the data."""
COPIES = ("ema", "self")
"""References of further teachers that denote copies of the student."""
RANDOM = "random"
"""Reference of a teacher with the main one's architecture and random weights."""
FACTS = ("to_json", "from_json", "taps", "tiny", "work")


@dataclass(frozen=True)
class DescribedTeacher:
    """A teacher described by its facts.

    Attributes:
        ref: as the user wrote it.
        source: its source adapter.
        info: the adapter's description.
        family: its family.
        taps: every tap by name.
        weight: weight when several teachers are averaged.
    """

    ref: str
    source: Resolved
    info: SourceInfo
    family: Family
    taps: Mapping[str, Tap]
    weight: float = 1.0


@dataclass(frozen=True)
class DescribedData:
    """A data set described by its provider.

    Attributes:
        adapter: the provider.
        request: request used to describe it; fields are replaced to open it.
        info: the provider's description.
    """

    adapter: Resolved
    request: DataRequest
    info: DataInfo


@dataclass
class Describer:
    """Describes each teacher and data set once, and caches the descriptions.

    Attributes:
        registry: provides sources, data providers and families.
        say: called with progress messages (a named teacher is fetched on first use).
    """

    registry: Registry
    say: Say
    _teachers: dict[str, DescribedTeacher] = field(default_factory=dict)

    def teacher(self, config: RunConfig) -> DescribedTeacher | None:
        """Describe the main teacher; None with ``teacher: none``."""
        if config.teacher == NO_TEACHER:
            return None
        return self.reference(config.teacher, config.teacher_options, tiny=config.tiny)

    def teachers(self, config: RunConfig) -> dict[str, DescribedTeacher]:
        """Describe further teachers with their own weights, by name, without copies of the student."""
        return {
            name: replace(self.reference(t.ref, t.options, tiny=config.tiny), weight=t.weight)
            for name, t in config.teachers.items()
            if t.ref not in (*COPIES, RANDOM)
        }

    def reference(self, ref: str, options: Mapping[str, Any], *, tiny: bool = False) -> DescribedTeacher:
        """Describe a teacher by its reference.

        Raises:
            UsageError: the reference or an option is invalid.
            PluginError: its adapter failed, or its description does not match its family.
        """
        key = json.dumps([ref, dict(options), tiny], sort_keys=True, default=str)
        if key not in self._teachers:
            source = resolve_teacher(self.registry, ref, options, self.say, tiny=tiny)
            spec = self.registry.get("source", source.name)
            with self.registry.guard(spec, "describe"):
                info: SourceInfo = source.adapter.describe(source.ref, source.options)
            family = family_of(self.registry, info.family)
            check_facts(family, info, f"{self.registry.owner(spec)}, describe {ref}")
            with self.registry.guard(spec, "taps"):
                taps = dict(info.facts.taps())
            self._teachers[key] = DescribedTeacher(ref, source, info, family, taps)
        return self._teachers[key]

    def data(self, config: RunConfig, facts: Any, sample: Mapping[str, Any] | None = None) -> DescribedData:
        """Describe the data of a configuration.

        Args:
            facts: the teacher's facts; None without a teacher.
            sample: form of one sample; by default the configuration's ``data.sample``.
        """
        adapter = resolve_data(self.registry, config.data.ref, config.data.options)
        request = DataRequest(
            ref=adapter.ref,
            options=adapter.options,
            sample=config.data.sample if sample is None else sample,
            facts=facts,
            seed=config.seed,
            workers=config.data.workers,
            provider=providers(self.registry),
        )
        with self.registry.guard(self.registry.get("data", adapter.name), "describe"):
            info: DataInfo = adapter.adapter.describe(request)
        return DescribedData(adapter, request, info)


def family_of(registry: Registry, name: str) -> Family:
    """Return the family called ``name``.

    Raises:
        UsageError: no plugin registers it; suggests the closest name.
    """
    family: Family = registry.create("family", name)
    return family


def check_facts(family: Family, info: SourceInfo, who: str) -> None:
    """Check that facts have the type declared by their family.

    Raises:
        PluginError: they do not; names the adapter.
    """
    kind = type(info.facts).__name__
    if not isinstance(info.facts, family.Facts):
        raise PluginError(f"{who}: facts of the family {info.family!r} must be {family.Facts.__name__}, got {kind}")
    if not isinstance(info.facts, Facts):
        absent = ", ".join(name for name in FACTS if not hasattr(info.facts, name))
        raise PluginError(f"{who}: {kind} lacks {absent}, see xarch.Facts")


def prove_tensors(family: Family, name: str, data: DataInfo, side: str, who: str) -> None:
    """Check that the data provide every tensor that models of a family read, in its layout.

    Args:
        family, name: the family and its name.
        side: "teacher" or "student": selects the views (``NAME@side``).
        who: the model, for messages.

    Raises:
        PlanError: a tensor is missing or has another layout.
    """
    seen = seen_by(data, side)
    for key, layout in family.tensors.items():
        wanted, optional = key.removesuffix("?"), key.endswith("?")
        if wanted not in seen:
            if optional:
                continue
            raise PlanError(
                f"{who} reads the tensor {wanted!r} (family {name}), which the data {data.title!r} do not have",
                f"they have {', '.join(sorted(seen)) or 'declared no tensors'}",
            )
        if "*" not in (layout, seen[wanted]) and layout != seen[wanted]:
            raise PlanError(
                f"{who} reads {wanted!r} as {layout} (family {name}), the data {data.title!r} give {seen[wanted]}"
            )


def seen_by(data: DataInfo, side: str) -> dict[str, str]:
    """Return the layouts of the data's tensors as seen by one side."""
    plain = {key: info.layout for key, info in data.tensors.items() if "@" not in key}
    views = {k.partition("@")[0]: i.layout for k, i in data.tensors.items() if k.endswith("@" + side)}
    return plain | views


def prove_accepted(family: Family, registry: Registry, name: str, facts: Any, data: DataInfo, who: str) -> None:
    """Check that a model can read data of these sizes (classes, length, channels).

    Raises:
        PlanError: it cannot, with the family's reason.
    """
    with registry.guard(registry.get("family", name), "accepts"):
        reason = family.accepts(facts, data)
    if reason:
        raise PlanError(f"{who} does not fit the data {data.title!r}: {reason}")
