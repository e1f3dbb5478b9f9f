"""Text that every Python brings: the sources of its standard library, and the topics of ``pydoc``.

They need no download. Code and prose have other statistics, and what is fitted on one alone is worse on the other.
"""

from __future__ import annotations

import os
import platform
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from xarch import cache_dir, new_folder

STDLIB = "python-stdlib"
TOPICS = "python-topics"
MIXED = "python-mixed"

EVERY = 5
"""The mixture has every fifth module: as much code as prose, within a factor of about two."""

_NOT_STDLIB = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})

Files = Iterator[tuple[Path, str]]
"""Path and name of each file."""

Included = tuple[Callable[[], Files], str]
"""Files that every Python brings or makes, and their title."""


def walk(root: Path, skipped: Iterable[str]) -> Iterator[Path]:
    """Yield the files below a folder, in order; names that begin with a dot and some folders are skipped."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if f not in skipped and not f.startswith("."))
        for name in names:
            path = Path(folder, name)
            if not name.startswith(".") and path.is_file():
                yield path


def stdlib() -> Files:
    """Yield the modules of the standard library."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in walk(root, _NOT_STDLIB):
        if path.suffix == ".py":
            yield path, path.relative_to(root).as_posix()


def topics() -> Files:
    """Yield the topics of ``pydoc``, written to the cache once for every version of Python."""
    folder = cache_dir() / "text" / f"python-topics-{platform.python_version()}"
    if not folder.is_dir():
        from pydoc_data.topics import topics as texts

        folder.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(folder) as part:
            for name, text in texts.items():
                (part / f"{name}.txt").write_text(text, encoding="utf-8")
    for path in sorted(folder.glob("*.txt")):
        yield path, f"topics/{path.name}"


def mixed() -> Files:
    """Yield code and prose; not the module that holds all of the prose, part of which would be in two splits."""
    chosen = sorted(stdlib(), key=lambda found: found[1])[::EVERY]
    yield from (found for found in chosen if found[1] != "pydoc_data/topics.py")
    yield from topics()


INCLUDED: dict[str, Included] = {
    STDLIB: (stdlib, "standard library"),
    TOPICS: (topics, "documentation"),
    MIXED: (mixed, "standard library and documentation"),
}
"""By reference."""
