"""Manifests: the sha256 of every file that a later command reads, so that a flipped bit is seen and its file named.

A folder that appears in one step (a student, an export, a checkpoint) gets its manifest once, by :func:`seal`. A run
folder changes, so its manifest holds two digests of a file: a new one is recorded *before* the file is replaced, beside
the one before. A write that was cut short has left one of the two.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xarch.errors import UsageError
from xarch.files.atomic import json_text, write_text
from xarch.files.bounded_json import parse_json, read_bounded
from xarch.files.limits import MAX_JSON_BYTES
from xarch.files.regular import open_regular, refuse_link_out

MANIFEST = "manifest.json"
FORMAT = 1
BLOCK = 1 << 20

RESTORE = "restore it from a copy, or remove it: `xarch convert --resume --out RUN` builds again what it can"

Entry = dict[str, Any]
"""``{"bytes", "sha256"}``, with "grows" for a file that is only appended to: it may be longer than its entry."""


def entry_of(path: Path, size: int | None = None) -> Entry:
    """Return the entry of a file, or of its first ``size`` bytes.

    Raises:
        UsageError: the file cannot be read, or is shorter than ``size``.
    """
    digest, read = hashlib.sha256(), 0
    try:
        with open_regular(path) as file:
            while block := file.read(BLOCK if size is None else min(BLOCK, size - read)):
                digest.update(block)
                read += len(block)
    except OSError as e:
        raise UsageError(f"cannot read {path}: {e.strerror}") from e
    if size is not None and read < size:
        raise UsageError(f"{path} is damaged: it has {read} bytes, {size} were recorded")
    return {"bytes": read, "sha256": digest.hexdigest()}


def seal(folder: Path, leave_out: Collection[str] = (), **facts: Any) -> None:
    """Write ``manifest.json`` over all files of a new folder.

    Args:
        leave_out: names of files that may change later.
        facts: further facts about the folder, returned by :func:`verify`.
    """
    names = [name for name in files_below(folder) if name not in leave_out]
    _write(folder / MANIFEST, {name: entry_of(folder / name) for name in names}, facts)


@dataclass(frozen=True)
class Fault:
    """A recorded file that is not as recorded; ``what`` names it and says why."""

    file: Path
    what: str
    missing: bool


def verify(folder: Path, names: Collection[str] | None = None) -> dict[str, Any]:
    """Check files of a sealed folder; return the facts of its manifest.

    Args:
        names: only these files.

    Raises:
        UsageError: a file is missing or differs from its manifest; it is named.
    """
    entries, facts = _read(folder / MANIFEST)
    chosen = entries if names is None else {name: entries[name] for name in names if name in entries}
    for name in () if names is None else names:
        if name not in entries:
            raise UsageError(f"{folder / name} is not in {folder / MANIFEST}: xarch did not write it", RESTORE)
    raise_first(faults(folder, chosen))
    return facts


def sealed_faults(folder: Path) -> list[Fault]:
    """Return what :func:`verify` would raise, for every file; [] if all is well."""
    try:
        return faults(folder, _read(folder / MANIFEST)[0])
    except UsageError as e:
        return [Fault(folder / MANIFEST, e.what, not (folder / MANIFEST).exists())]


def whole(folder: Path) -> bool:
    """Whether a sealed folder lacks no file; damaged ones count as there."""
    return folder.is_dir() and not any(f.missing for f in sealed_faults(folder))


def faults(folder: Path, entries: Mapping[str, Entry]) -> list[Fault]:
    """Return the files that are missing or differ from their entries."""
    return [f for name, entry in entries.items() if (f := _fault(folder, folder / name, entry)) is not None]


def raise_first(found: Sequence[Fault]) -> None:
    """Raise the first fault, and say how many there are."""
    if found:
        more = f" (and {len(found) - 1} more files)" if len(found) > 1 else ""
        raise UsageError(found[0].what + more, RESTORE)


def files_below(folder: Path, skip: Collection[str] = ()) -> list[str]:
    """Return the plain files below a folder, with "/", except manifests, hidden ones and those below ``skip``."""
    found = []
    for parent, folders, names in os.walk(folder):
        here = Path(parent).relative_to(folder)
        folders[:] = sorted(f for f in folders if not f.startswith(".") and (here / f).as_posix() not in skip)
        for name in sorted(names):
            if name != MANIFEST and not name.startswith(".") and (here / name).as_posix() not in skip:
                found.append((here / name).as_posix())
    return found


class Manifest:
    """The manifest of a folder whose files are replaced one by one.

    Args:
        folder: the folder; without ``manifest.json`` nothing is checked or recorded in it, see :meth:`require`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / MANIFEST

    def require(self) -> None:
        """Check that there is a manifest.

        Raises:
            UsageError: there is none.
        """
        if not self.path.is_file():
            raise UsageError(
                f"{self.path} is missing: it was removed, or another version of xarch made {self.folder}",
                "restore it, or convert again",
            )

    def digest(self, file: Path) -> str | None:
        """Return the recorded sha256 of a file, None if it is not recorded."""
        known = self._entries().get(self._name(file))
        return None if known is None else str(known["sha256"])

    def knows(self, file: Path) -> bool:
        """Return whether a file is recorded."""
        return self._name(file) in self._entries()

    def expect(self, file: Path, text: str) -> None:
        """Record the content that a file is about to get; without a manifest, nothing happens."""
        if not self.path.is_file():
            return
        raw = text.encode("utf-8")
        new: Entry = {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
        entries, name = self._entries(), self._name(file)
        known = entries.get(name)
        new["before"] = None if known is None else {k: known[k] for k in ("bytes", "sha256")}
        _write(self.path, {**entries, name: new}, {})

    def replace(self, files: Collection[Path], growing: Collection[Path] = ()) -> None:
        """Record exactly these files as they are now; ``growing`` ones may be appended to later."""
        entries = {self._name(f): entry_of(f) for f in files}
        entries |= {self._name(f): {**entry_of(f), "grows": True} for f in growing}
        _write(self.path, entries, {})

    def check(self, file: Path) -> None:
        """Check that a file is as recorded.

        Raises:
            UsageError: it differs from the manifest, is not in it, or is missing.
        """
        if not self.path.is_file():
            return
        name, entries = self._name(file), self._entries()
        if name not in entries:
            raise UsageError(f"{file} is not in {self.path}: xarch did not write it", RESTORE)
        raise_first(faults(self.folder, {name: entries[name]}))

    def faults(self) -> list[Fault]:
        """Return all recorded files that are missing or damaged; a file whose first write was cut is neither."""
        try:
            entries = self._entries()
        except UsageError as e:
            return [Fault(self.path, e.what, False)]
        begun = {n for n, e in entries.items() if e.get("before", e) is None and not (self.folder / n).exists()}
        return faults(self.folder, {n: e for n, e in entries.items() if n not in begun})

    def _entries(self) -> dict[str, Entry]:
        return _read(self.path)[0] if self.path.is_file() else {}

    def _name(self, file: Path) -> str:
        return file.relative_to(self.folder).as_posix()


def _fault(folder: Path, file: Path, entry: Entry) -> Fault | None:
    try:
        refuse_link_out(folder, file)
    except UsageError as e:
        return Fault(file, e.what, False)
    if not file.is_file():
        return Fault(file, f"{file} is missing", True)
    for known in (entry, entry.get("before")):
        size = file.stat().st_size
        if known is None or size < known["bytes"] or (size > known["bytes"] and not known.get("grows")):
            continue
        if entry_of(file, known["bytes"])["sha256"] == known["sha256"]:
            return None
    return Fault(file, f"{file} is damaged or was changed: its sha256 is not the one in {MANIFEST}", False)


def _write(path: Path, entries: Mapping[str, Entry], facts: Mapping[str, Any]) -> None:
    body = {"format": FORMAT, "files": dict(entries), **({"facts": dict(facts)} if facts else {})}
    write_text(path, self_sealed(body))


def self_sealed(body: Mapping[str, Any]) -> str:
    """The text of a JSON file with a digest of itself as its last line, where no manifest can hold one."""
    plain = json_text(body).rstrip("\n")
    own = hashlib.sha256(plain.encode("utf-8")).hexdigest()
    return f'{plain[:-2]},\n "sha256": "{own}"\n}}\n'


def read_self_sealed(path: Path) -> dict[str, Any]:
    """Return the content of a file written as :func:`self_sealed`.

    Raises:
        UsageError: it is missing, damaged or changed.
    """
    text = read_bounded(path, MAX_JSON_BYTES)
    data = parse_json(text, str(path))
    body = {k: v for k, v in data.items() if k != "sha256"} if isinstance(data, dict) else {}
    if self_sealed(body).encode() != text:
        raise UsageError(f"{path} is damaged or was changed", RESTORE)
    return body


def _read(path: Path) -> tuple[dict[str, Entry], dict[str, Any]]:
    body = read_self_sealed(path)
    files, facts = body.get("files"), body.get("facts", {})
    if body.get("format", FORMAT) != FORMAT:
        raise UsageError(f"{path} has format {body['format']!r}, this xarch reads {FORMAT}", "convert again")
    if not isinstance(files, dict) or not isinstance(facts, dict):
        raise UsageError(f"{path} is not a manifest", RESTORE)
    return files, facts
