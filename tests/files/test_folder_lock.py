"""The lock of a folder belongs to one living process."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from xarch.errors import BusyError, StorageError, UsageError
from xarch.files import folder_lock as room
from xarch.files.folder_lock import LOCK, FolderLock

HOLD = """
import sys, time
from pathlib import Path
from xarch.files.folder_lock import FolderLock
FolderLock(Path(sys.argv[1])).acquire()
print("held", flush=True)
time.sleep(60)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    """A process that holds the lock."""
    found = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert found.stdout is not None
    assert found.stdout.readline() == "held\n"
    return found


def test_a_living_process_keeps_it_and_its_death_releases_it(tmp_path: Path) -> None:
    other = holder(tmp_path)
    try:
        with pytest.raises(BusyError, match=rf"is in use: process {other.pid} on \S+ since 20") as caught:
            FolderLock(tmp_path).acquire()
        assert caught.value.exit_code == 8
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    lock = FolderLock(tmp_path)
    lock.acquire()
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    lock.release()
    FolderLock(tmp_path).acquire()


def test_one_process_holds_it_once(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    lock.acquire()
    with pytest.raises(BusyError, match=str(os.getpid())):
        FolderLock(tmp_path).acquire()
    lock.release()
    assert not lock.held


def test_a_forked_worker_does_not_keep_it(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    lock.acquire()
    (read, write), (ready, started) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write)
        os.write(started, b"x")
        os.read(read, 1)
        os._exit(1 if lock.held else 0)
    os.read(ready, 1)
    lock.forget()  # as the system does when this process dies
    again = FolderLock(tmp_path)
    again.acquire()
    os.write(write, b"x")
    assert os.waitpid(child, 0)[1] == 0
    again.release()


@pytest.mark.parametrize("replaced", [False, True])
def test_a_folder_that_was_removed_is_noticed(replaced: bool, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    lock = FolderLock(folder)
    lock.acquire()
    lock.check()
    shutil.rmtree(folder)
    if replaced:
        folder.mkdir()
        FolderLock(folder).acquire()
    with pytest.raises(StorageError, match="removed or replaced"):
        lock.check()


def test_without_locks_the_named_process_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(room.fcntl, "flock", none)
    own = FolderLock(tmp_path)
    own.acquire()
    with pytest.raises(BusyError, match=str(os.getpid())):
        FolderLock(tmp_path).acquire()
    own.release()
    FolderLock(tmp_path).acquire()
    known = json.loads((tmp_path / LOCK).read_text())
    (tmp_path / LOCK).write_text(json.dumps({**known, "born": "1"}))
    FolderLock(tmp_path).acquire()  # the number belongs to another process now
    (tmp_path / LOCK).write_text(json.dumps({**known, "host": "elsewhere"}))
    with pytest.raises(BusyError, match="elsewhere") as caught:
        FolderLock(tmp_path).acquire()
    assert f"remove {tmp_path / LOCK}" in str(caught.value.hint)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot lock"):
        FolderLock(tmp_path / "missing").acquire()
