"""Digests are remembered while a file stays the same, and only then."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from xarch import UsageError, file_digest
from xarch.files import digest


def test_follows_the_content(tmp_path: Path) -> None:
    file = tmp_path / "w"
    for content in (b"one", b"other", b""):
        file.write_bytes(content)
        assert file_digest(file) == hashlib.sha256(content).hexdigest()


def test_an_unchanged_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, link = tmp_path / "w", tmp_path / "link"
    file.write_bytes(b"x" * 100)
    link.symlink_to(file)
    first = file_digest(file)
    reads: list[Path] = []

    def counted(path: Path) -> str:
        reads.append(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(digest, "sha256", counted)
    assert file_digest(link) == first
    assert reads == []
    os.utime(file, ns=(1, 1))
    assert file_digest(file) == first
    assert len(reads) == 1


def test_a_broken_note_is_ignored(tmp_path: Path, home: Path) -> None:
    file = tmp_path / "w"
    file.write_bytes(b"x")
    value = file_digest(file)
    (note,) = (home / "cache" / "digests").iterdir()
    for content in ("{", "[]", '{"sha256": 3}'):
        note.write_text(content, encoding="utf-8")
        assert file_digest(file) == value


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        file_digest(tmp_path / "no")
