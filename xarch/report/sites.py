"""Which places of the model were replaced, from the plan and from what the stages decided."""

from __future__ import annotations

import re
from dataclasses import dataclass

from xarch.report.files import RunFiles, dig, names_of, natural


@dataclass(frozen=True)
class Sites:
    """Places in the order of the model.

    Attributes:
        every: all of them, where the teacher's architecture tells how many there are.
        replaced: those with a new module.
    """

    every: tuple[str, ...]
    replaced: frozenset[str]


def sites_of(files: RunFiles) -> Sites:
    """Sites of a run; a decision of a stage outweighs the plan."""
    planned = names_of(files.plan, "student", "sites")
    replaced = set(names_of(files.plan, "student", "replaced") or planned)
    kept = set(names_of(files.plan, "student", "kept"))
    stem, total = _stem(planned), dig(files.plan, "teacher", "facts", "layers")
    every = set(planned) | replaced | kept
    if stem is not None and isinstance(total, int) and 0 < total <= 10_000:
        every |= {f"{stem}.{i}" for i in range(total)}
    decided = decided_layers(files)
    if decided is not None and stem is not None:
        replaced = {f"{stem}.{i}" for i in decided}
    return Sites(tuple(sorted(every, key=natural)), frozenset(replaced & every))


def decided_layers(files: RunFiles) -> list[int] | None:
    """Layer numbers that a stage chose, None if none did."""
    found = dig(files.student, "decisions", "layers")
    for summary in files.stages.values():
        found = dig(summary, "decisions", "layers", default=found)
    if not isinstance(found, list) or not all(isinstance(i, int) for i in found):
        return None
    return found


def _stem(sites: list[str]) -> str | None:
    """``blocks`` of ``blocks.3``, if all sites are numbered under one stem."""
    stems = {m.group(1) for s in sites if (m := re.fullmatch(r"(.+)\.\d+", s))}
    plain = [s for s in sites if not re.fullmatch(r".+\.\d+", s)]
    return next(iter(stems)) if len(stems) == 1 and not plain else None
