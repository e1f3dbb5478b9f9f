"""Sections of plugins: those registered as ``report``, and those of the student's family."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from xarch.errors import XarchError
from xarch.registry.declare import Spec
from xarch.registry.registry import Registry
from xarch.report.blocks import Section
from xarch.report.files import RunInfo


def plugin_sections(run: RunInfo, render: Callable[[Section], object]) -> list[Section]:
    """Sections for a run; what fails becomes a note of ``run`` instead.

    Args:
        render: called with every section, to see that it can be shown.
    """
    from xarch.registry.loader import get_registry

    registry = get_registry()
    sections: list[Section] = []
    for spec, make in _makers(registry, run):
        try:
            with registry.guard(spec, "report sections"):
                made = [_checked(section) for section in make(run)]
                for section in made:
                    render(section)
            sections += made
        except XarchError as e:
            run.notes.append(f"no report section: {e.what}")
    return sections


def _makers(registry: Registry, run: RunInfo) -> Iterator[tuple[Spec, Callable[[RunInfo], Sequence[Any]]]]:
    for spec in registry.specs("family"):
        if spec.name == run.family:
            yield spec, partial(_of_family, registry, spec)
    for spec in registry.specs("report"):
        if not spec.accepts or run.family in spec.accepts:
            yield spec, partial(_registered, registry, spec)


def _of_family(registry: Registry, spec: Spec, run: RunInfo) -> Sequence[Any]:
    made: Sequence[Any] = registry.create("family", spec.qualified).report_sections(run)
    return made


def _registered(registry: Registry, spec: Spec, run: RunInfo) -> Sequence[Any]:
    made: Sequence[Any] = registry.resolve(spec)(run)
    return made


def _checked(section: Any) -> Section:
    if not isinstance(section, Section):
        raise TypeError(f"a report section is a xarch.report.Section, got {type(section).__name__}")
    return section
