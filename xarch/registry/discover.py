"""Finds plugins without importing them: entry points of installed distributions, and plugin files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, entry_points
from pathlib import Path
from typing import NamedTuple

from xarch.errors import UsageError

CORE = "core"
GROUP = "xarch"
OWN_DISTRIBUTION = "xarch"
FILES_VARIABLE = "XARCH_PLUGIN_FILES"


@dataclass(frozen=True)
class Candidate:
    """A plugin that may be loaded.

    Attributes:
        name: unique among candidates.
        origin: module (``package.module[:attribute]``) or path of a file.
        distribution, version: who ships it.
        requires: requirement lines of the distribution.
        extras: extras its entry point asks for.
        entry_point: None for a plugin file.
    """

    name: str
    origin: str
    distribution: str = ""
    version: str = ""
    requires: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    entry_point: EntryPoint | None = None


class _Shipper(NamedTuple):
    name: str
    version: str
    requires: tuple[str, ...]


def discover(files: Iterable[str] = ()) -> list[Candidate]:
    """Return all plugins of this environment sorted by (distribution, name), the core first and plugin files last.

    If two distributions use the same name, both are called ``DISTRIBUTION/NAME``; xarch's own names are kept.

    Raises:
        UsageError: a plugin file does not exist.
    """
    shippers: dict[Distribution, _Shipper] = {}
    found = [_from_entry_point(e, shippers) for e in entry_points(group=GROUP)]
    if not any(c.name == CORE and c.distribution == OWN_DISTRIBUTION for c in found):
        builtin = EntryPoint(CORE, "xarch.builtin", GROUP)
        found.append(Candidate(CORE, builtin.value, OWN_DISTRIBUTION, _own_version(), entry_point=builtin))
    found.sort(key=lambda c: (c.distribution != OWN_DISTRIBUTION, c.name != CORE, c.distribution, c.name))
    found = [_qualified(c) if _shares_name(c, found) else c for c in found]
    return found + [_from_file(Path(f)) for f in files]


def files_from_environment() -> list[str]:
    """Return the plugin files in XARCH_PLUGIN_FILES, separated like PATH."""
    return [f for f in os.environ.get(FILES_VARIABLE, "").split(os.pathsep) if f]


def _own_version() -> str:
    from xarch._version import __version__

    return __version__


def _from_entry_point(entry: EntryPoint, shippers: dict[Distribution, _Shipper]) -> Candidate:
    """Describe an entry point.

    Args:
        shippers: distributions that have been read; each is read once, for it takes milliseconds.
    """
    dist: Distribution | None = entry.dist
    if dist is None:
        return Candidate(entry.name, entry.value, entry_point=entry)
    if dist not in shippers:
        told = dist.metadata
        shippers[dist] = _Shipper(told["Name"] or "?", told["Version"] or "", tuple(dist.requires or ()))
    ships = shippers[dist]
    return Candidate(entry.name, entry.value, ships.name, ships.version, ships.requires, tuple(entry.extras), entry)


def _from_file(path: Path) -> Candidate:
    if not path.is_file():
        raise UsageError(f"plugin file {path} does not exist")
    return Candidate(path.stem, str(path.resolve()))


def _shares_name(one: Candidate, all_: list[Candidate]) -> bool:
    return one.distribution != OWN_DISTRIBUTION and sum(c.name == one.name for c in all_) > 1


def _qualified(c: Candidate) -> Candidate:
    name = f"{c.distribution or c.origin}/{c.name}"
    return Candidate(name, c.origin, c.distribution, c.version, c.requires, c.extras, c.entry_point)
