"""Manifests: a flipped bit anywhere is seen and its file named; a write that was cut short is no damage."""

from __future__ import annotations

from pathlib import Path

import pytest

from xarch.errors import UsageError
from xarch.files import manifest as room
from xarch.files.manifest import MANIFEST, Manifest, seal, sealed_faults, verify, whole


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    folder = tmp_path / "student"
    (folder / "inner").mkdir(parents=True)
    for name in ("a.json", "inner/b.bin", "README.md"):
        (folder / name).write_bytes(name.encode() * 9)
    seal(folder, leave_out=("README.md",), step=3)
    return folder


def test_every_bit_of_a_sealed_folder_counts(sealed: Path) -> None:
    assert verify(sealed) == {"step": 3}
    for name in ("a.json", "inner/b.bin", MANIFEST):
        content = (sealed / name).read_bytes()
        for place in range(0, len(content), 7):
            for bit in (1, 32, 128):
                (sealed / name).write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
                with pytest.raises(UsageError) as caught:
                    verify(sealed)
                assert str(sealed / name) in caught.value.what
                assert [f.file for f in sealed_faults(sealed)] == [sealed / name]
        (sealed / name).write_bytes(content)
    (sealed / "README.md").write_text("edited by its owner")
    verify(sealed)


def test_what_is_missing_is_named_and_what_is_unknown_refused(sealed: Path) -> None:
    assert whole(sealed)
    (sealed / "inner" / "b.bin").unlink()
    assert not whole(sealed)
    assert [(f.file.name, f.missing) for f in sealed_faults(sealed)] == [("b.bin", True)]
    verify(sealed, ["a.json"])
    (sealed / "new.json").write_text("{}")
    with pytest.raises(UsageError, match=r"new\.json is not in"):
        verify(sealed, ["new.json"])
    (sealed / MANIFEST).unlink()
    assert not whole(sealed)


def changing(folder: Path) -> Manifest:
    manifest = Manifest(folder)
    manifest.replace([])
    return manifest


def test_a_cut_write_is_no_damage(tmp_path: Path) -> None:
    """Killed between the record and the file: the file is the one before, or is not there yet."""
    manifest, file = changing(tmp_path), tmp_path / "eval.json"
    manifest.expect(file, "one")
    assert manifest.faults() == []
    file.write_text("one")
    manifest.check(file)
    manifest.expect(file, "two")
    manifest.check(file)
    file.write_text("two")
    manifest.check(file)
    assert manifest.faults() == []
    file.write_text("three")
    with pytest.raises(UsageError, match=r"eval\.json is damaged"):
        manifest.check(file)
    file.unlink()
    assert [f.missing for f in manifest.faults()] == [True]


def test_a_file_that_grows_is_checked_up_to_what_was_recorded(tmp_path: Path) -> None:
    manifest, log = changing(tmp_path), tmp_path / "log.txt"
    log.write_text("one\n")
    manifest.replace([], growing=[log])
    log.write_text("one\ntwo\n")
    manifest.check(log)
    log.write_text("ane\ntwo\n")
    with pytest.raises(UsageError, match=r"log\.txt is damaged"):
        manifest.check(log)
    log.write_text("on")
    assert [f.file for f in manifest.faults()] == [log]


def test_without_a_manifest_nothing_is_checked_but_it_can_be_required(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path)
    manifest.check(tmp_path / "any")
    manifest.expect(tmp_path / "any", "x")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match=r"manifest\.json is missing"):
        manifest.require()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": 3}', "[" * 100_000, '{"format": 9, "files": {}}', "\xff"])
def test_a_manifest_that_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(text, encoding="latin-1")
    with pytest.raises(UsageError, match=MANIFEST):
        room.verify(tmp_path)
