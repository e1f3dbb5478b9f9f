"""Digests are remembered while a file stays the same, and only then."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from xarch import UsageError, file_digest, sampled_digest
from xarch.files import digest


def test_follows_the_content(tmp_path: Path) -> None:
    file = tmp_path / "w"
    for content in (b"one", b"other", b""):
        file.write_bytes(content)
        assert file_digest(file) == hashlib.sha256(content).hexdigest()


def test_an_unchanged_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "SETTLED_NS", 0)
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


def test_another_file_of_the_same_size_and_time_has_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "SETTLED_NS", 0)
    file = tmp_path / "w.gguf"
    for content in (b"a" * 1000, b"b" * 1000):
        file.unlink(missing_ok=True)
        file.write_bytes(content)
        os.utime(file, (1_500_000_000,) * 2)
        assert file_digest(file) == hashlib.sha256(content).hexdigest()


def test_a_file_changed_just_now_is_not_remembered(tmp_path: Path, home: Path) -> None:
    (tmp_path / "w").write_bytes(b"x")
    file_digest(tmp_path / "w")
    assert not (home / "cache" / "digests").exists()


@pytest.mark.parametrize("size", [0, 10, 5_000_000])
def test_samples_see_size_name_and_content(size: int, tmp_path: Path) -> None:
    file = tmp_path / "d"
    file.write_bytes(bytes(size))
    seen = {sampled_digest([("d", file)]), sampled_digest([("e", file)])}
    file.write_bytes(bytes(size + 1))
    seen.add(sampled_digest([("d", file)]))
    file.write_bytes(b"x" + bytes(size))
    seen.add(sampled_digest([("d", file)]))
    file.write_bytes(bytes(size) + b"x")
    seen.add(sampled_digest([("d", file)]))
    assert len(seen) == (5 if size else 4)


def test_samples_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "SAMPLES", 4)
    files = [(str(i), tmp_path / str(i)) for i in range(20)]
    for _, file in files:
        file.write_bytes(bytes(100_000))
    assert len(sampled_digest(files)) == 64


def test_a_broken_note_is_ignored(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "SETTLED_NS", 0)
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
