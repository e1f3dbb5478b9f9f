"""Which files a reference names, without opening any of them."""

from __future__ import annotations

import glob
import hashlib
import os
import platform
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from xarch import UsageError

STDLIB = "python-stdlib"
RECORD_SUFFIXES = (".jsonl", ".ndjson", ".parquet")
_NOT_STDLIB = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})
_GLOB = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class TextFile:
    """One file.

    Attributes:
        path: where it is.
        name: its identity on every machine: the path relative to the corpus, with ``/``.
        bytes: its size.
    """

    path: Path
    name: str
    bytes: int

    @property
    def suffix(self) -> str:
        """Extension in lower case, without a trailing ``.gz``."""
        return Path(self.name.lower().removesuffix(".gz")).suffix

    @property
    def compressed(self) -> bool:
        """Whether the content is in gzip."""
        return self.name.lower().endswith(".gz")

    @property
    def holds_records(self) -> bool:
        """Whether it holds many documents rather than being one."""
        return self.suffix in RECORD_SUFFIXES


@dataclass(frozen=True)
class Corpus:
    """The files of a reference, sorted by name.

    Attributes:
        title: what it is, for a person.
        digest: sha256 over names and sizes.
    """

    title: str
    files: tuple[TextFile, ...]
    digest: str

    @property
    def bytes(self) -> int:
        """Sum of the file sizes."""
        return sum(f.bytes for f in self.files)


def find_corpus(ref: str, extensions: Sequence[str]) -> Corpus:
    """The corpus of ``python-stdlib``, a file, a folder or a quoted glob.

    Raises:
        UsageError: nothing is there.
    """
    if ref == STDLIB:
        files = list(_stdlib())
        title, hint = f"Python {platform.python_version()} standard library", "name a file or a folder instead"
    else:
        path = Path(ref).expanduser()
        hint = "for example text:FILE.txt, text:FOLDER, 'text:FOLDER/**/*.md' or text:python-stdlib"
        if path.is_file():
            files, title = [_file(path, path.name)], path.name
        elif path.is_dir():
            files, title = list(_folder(path, extensions)), f"{path.name or path}/"
            hint = f"files read from a folder end in {', '.join(extensions)}; see data.options.extensions"
        elif _GLOB & set(ref):
            files, title = list(_matching(str(path))), ref
        else:
            raise UsageError(f"text data {ref!r} does not exist (looked for {path.absolute()})", hint)
    if not files:
        raise UsageError(f"text data {ref!r} holds no file that can be read", hint)
    ordered = tuple(sorted(files, key=lambda f: f.name))
    lines = "\n".join(f"{f.name}\t{f.bytes}" for f in ordered)
    count = f"{len(ordered)} file{'s' if len(ordered) > 1 else ''}"
    return Corpus(f"{title}, {count}", ordered, hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest())


def _file(path: Path, name: str) -> TextFile:
    return TextFile(path, name, path.stat().st_size)


def _walk(root: Path, skipped: Iterable[str]) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if f not in skipped and not f.startswith("."))
        for name in names:
            path = Path(folder, name)
            if not name.startswith(".") and path.is_file():
                yield path


def _folder(root: Path, extensions: Sequence[str]) -> Iterator[TextFile]:
    wanted = tuple(e.lower() if e.startswith(".") else f".{e.lower()}" for e in extensions)
    for path in _walk(root, ("__pycache__",)):
        if not wanted or path.name.lower().removesuffix(".gz").endswith(wanted):
            yield _file(path, path.relative_to(root).as_posix())


def _matching(pattern: str) -> Iterator[TextFile]:
    parts = Path(pattern).parts
    fixed = next(i for i, part in enumerate(parts) if _GLOB & set(part))
    root = Path(*parts[:fixed]) if fixed else Path()
    for found in glob.iglob(pattern, recursive=True):
        path = Path(found)
        if path.is_file():
            yield _file(path, path.relative_to(root).as_posix())


def _stdlib() -> Iterator[TextFile]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in _walk(root, _NOT_STDLIB):
        if path.suffix == ".py":
            yield _file(path, path.relative_to(root).as_posix())
