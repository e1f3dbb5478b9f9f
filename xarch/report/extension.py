"""Report sections of plugins: those registered as ``report`` and those of the student's family."""

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
    """Return the sections for a run; a section that fails is replaced by a note in ``run``.

    Args:
        render: called with every section, to verify that it can be rendered.
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
            run.notes.append(f"report section left out: {e.what}")
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
        raise TypeError(f"a report section must be a xarch.report.Section, got {type(section).__name__}")
    return section
