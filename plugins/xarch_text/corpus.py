"""Files named by a reference, found without opening them."""

from __future__ import annotations

import glob
import hashlib
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from xarch import UsageError
from xarch_text.included import INCLUDED, Included, walk
from xarch_text.kinds import MAYBE_RECORDS, TABLES, Kind, kind_by_content, kind_by_name

_GLOB = frozenset("*?[")
PACKED = (".zst", ".xz", ".bz2", ".lz4", ".zip")
HOLD_TEXT = (".json", ".csv", ".tsv", ".arrow", ".orc", ".avro", ".pdf", ".docx", ".epub", *PACKED)
"""Extensions of files in a folder that users may expect to be read."""
ReadAs = Literal["auto", "text", "records"]


@dataclass(frozen=True, slots=True)
class TextFile:
    """One file.

    Attributes:
        path: the file.
        name: machine-independent identity: the path relative to the corpus, with ``/``.
        bytes: size in bytes.
        kind: how it is read.
        as_text: treat it as one text document regardless of its content, as set by the options.
    """

    path: Path
    name: str
    bytes: int
    kind: Kind = "text"
    as_text: bool = False

    @property
    def suffix(self) -> str:
        """Return the extension in lower case, without a trailing ``.gz``."""
        return _suffix(self.name)

    @property
    def compressed(self) -> bool:
        """Return whether the content is gzip-compressed."""
        return self.name.lower().endswith(".gz")

    @property
    def holds_records(self) -> bool:
        """Return whether it contains many documents rather than being one."""
        return self.kind in ("json", "parquet")


@dataclass(frozen=True)
class Corpus:
    """The files of a reference, sorted by name.

    Attributes:
        title: description for display.
        digest: SHA-256 of names and sizes.
        left_out: extension -> number of text files in a folder that ``extensions`` excludes.
    """

    title: str
    files: tuple[TextFile, ...]
    digest: str
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Return the total size of the files."""
        return sum(f.bytes for f in self.files)


def find_corpus(
    ref: str, extensions: Sequence[str], read_as: ReadAs = "auto", included: Mapping[str, Included] = INCLUDED
) -> Corpus:
    """Find the corpus of a file, a folder, a quoted glob, or text that Python brings (``python-mixed``, ...).

    Args:
        extensions: extensions of files to read from a folder; empty means all.
        read_as: kind of the files, overriding detection by name and first bytes.
        included: what Python brings, by reference.

    Raises:
        UsageError: there are no files, or a named file is of an unsupported kind.
    """
    left_out: dict[str, int] = {}
    if ref in included:
        found, what = included[ref]
        files = [_file(path, name) for path, name in found()]
        title, hint = f"Python {platform.python_version()} {what}", "name a file or a folder instead"
    else:
        path = Path(ref).expanduser()
        hint = "for example text:FILE.txt, text:FOLDER, 'text:FOLDER/**/*.md' or text:python-mixed"
        if path.is_file():
            files, title = [_file(path, path.name)], path.name
        elif path.is_dir():
            files, title = list(_folder(path, extensions, left_out)), f"{path.name or path}/"
            hint = f"files read from a folder end in {', '.join(extensions)}; see data.options.extensions"
        elif _GLOB & set(ref):
            files, title = list(_matching(str(path))), ref
        else:
            raise UsageError(f"text data {ref!r} does not exist (looked for {path.absolute()})", hint)
    if not files:
        others = f"; left out: {_shown(left_out)}" if left_out else ""
        raise UsageError(f"text data {ref!r} has no readable file{others}", hint)
    # A file named explicitly must be readable.
    as_it_is = ref in included and read_as == "auto"
    known = [f if as_it_is else _known(f, read_as, named_by_user=len(files) == 1) for f in files]
    ordered = tuple(sorted(known, key=lambda f: f.name))
    lines = "\n".join(f"{f.name}\t{f.bytes}" for f in ordered)
    count = f"{len(ordered)} file{'s' if len(ordered) > 1 else ''}"
    digest = hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()
    return Corpus(f"{title}, {count}", ordered, digest, left_out)


def _known(file: TextFile, read_as: ReadAs, *, named_by_user: bool) -> TextFile:
    """Return the file with its kind.

    Raises:
        UsageError: the only file is a table or of a known binary kind.
    """
    if read_as == "text":
        return replace(file, as_text=True)
    if read_as == "records":
        return replace(file, kind="parquet" if file.suffix == ".parquet" else "json")
    kind, what = kind_by_name(file.suffix), TABLES.get(file.suffix, "")
    if kind is None and not what:
        kind, what = kind_by_content(file.path, compressed=file.compressed)
    if named_by_user and not what and kind == "text":
        found, what = kind_by_content(file.path, compressed=file.compressed)
        kind = found if file.suffix in MAYBE_RECORDS else kind
    if what and named_by_user:
        raise UsageError(
            f"{file.path} is {what}, which is not read as text",
            "use plain text, JSON lines or Parquet; `--set data.options.read_as=text` reads a file as plain text",
        )
    return replace(file, kind=kind or "text")


def _shown(left_out: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {suffix}" for suffix, count in sorted(left_out.items()))


def _suffix(name: str) -> str:
    return Path(name.lower().removesuffix(".gz")).suffix


def _file(path: Path, name: str) -> TextFile:
    return TextFile(path, name, path.stat().st_size)


def _folder(root: Path, extensions: Sequence[str], left_out: dict[str, int]) -> Iterator[TextFile]:
    wanted = tuple(e.lower() if e.startswith(".") else f".{e.lower()}" for e in extensions)
    for path in walk(root, ("__pycache__",)):
        if not wanted or path.name.lower().removesuffix(".gz").endswith(wanted):
            yield _file(path, path.relative_to(root).as_posix())
        elif path.name.lower().endswith(HOLD_TEXT):
            suffix = "".join(Path(path.name.lower()).suffixes[-2:]) if path.suffix in PACKED else path.suffix.lower()
            left_out[suffix] = left_out.get(suffix, 0) + 1


def _matching(pattern: str) -> Iterator[TextFile]:
    parts = Path(pattern).parts
    fixed = next(i for i, part in enumerate(parts) if _GLOB & set(part))
    root = Path(*parts[:fixed]) if fixed else Path()
    for found in glob.iglob(pattern, recursive=True):
        path = Path(found)
        if path.is_file():
            yield _file(path, path.relative_to(root).as_posix())
