"""Pipes, devices and links in folders that others made."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from xarch.errors import UsageError
from xarch.files.bounded_json import read_json
from xarch.files.digest import file_digest, sampled_digest
from xarch.files.folder_lock import FolderLock
from xarch.files.header import weights_header
from xarch.files.manifest import entry_of, read_self_sealed, seal, verify
from xarch.files.run_dir import PLAN, RunDir

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names on this system"),
    pytest.mark.timeout(20),
]

READERS: dict[str, Callable[[Path], object]] = {
    "JSON": read_json,
    "sealed JSON": read_self_sealed,
    "manifest entry": entry_of,
    "digest": file_digest,
    "sampled digest": lambda path: sampled_digest([("a", path)]),
    "weights": weights_header,
}


@pytest.mark.parametrize("reader", READERS)
def test_reader_waits_for_no_pipe_and_no_device(reader: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for file in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(UsageError, match="not a regular file"):
            READERS[reader](file)


def new_run(folder: Path) -> RunDir:
    return RunDir.create(folder / "run", "a", {PLAN: "{}\n", "config.yaml": "seed: 1\n"})


@pytest.mark.parametrize("name", [PLAN, "status.json", "log.txt", "student"])
@pytest.mark.parametrize("aim", ["/etc/passwd", "/nowhere", "../other", "loop"])
def test_run_with_link_out_is_refused_before_it_is_read_or_written(name: str, aim: str, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("precious")
    run = new_run(tmp_path)
    (run.path / name).unlink(missing_ok=True)
    (run.path / name).symlink_to(name if aim == "loop" else aim)
    with pytest.raises(UsageError, match=r"by a link|no plan\.json"):
        RunDir.open(run.path)
    with pytest.raises(UsageError, match="by a link"), run.held():
        run.say("written")
    assert (tmp_path / "other").read_text() == "precious"


def test_run_may_be_reached_by_a_link_and_may_have_links_inside(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    (run.path / "newest").symlink_to("stages")
    (tmp_path / "link").symlink_to(run.path)
    with RunDir.open(tmp_path / "link").held():
        pass


def test_lock_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("text")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(UsageError, match="cannot lock"):
        FolderLock(tmp_path / "run").acquire()
    assert (tmp_path / "precious").read_text() == "text"


def test_sealed_folder_holds_its_own_files(tmp_path: Path) -> None:
    folder = tmp_path / "student"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"a": 1}))
    seal(folder)
    (folder / "config.json").rename(tmp_path / "elsewhere.json")
    (folder / "config.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(UsageError, match="leads out of"):
        verify(folder)
