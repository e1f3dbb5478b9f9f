"""Pipes, devices and links in folders that others made."""

from __future__ import annotations

import ast
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
from xarch_hf.gguf_header import gguf_header
from xarch_pvd.data.datasets import colmap_model, nsvf
from xarch_pvd.editing.schema import read_edits
from xarch_pvd.source.formats.plain_yaml import read_plain_yaml
from xarch_pvd.source.formats.recognise import recognise
from xarch_text.kinds import kind_by_content
from xarch_text.reading import Unpacked

PLUGINS = Path(__file__).parents[2] / "plugins"

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
    "GGUF": gguf_header,
    "plain YAML": read_plain_yaml,
    "list of edits": lambda path: read_edits(str(path)),
    "field": recognise,
    "COLMAP": lambda path: list(colmap_model._lines(path)),
    "COLMAP binary": colmap_model.Reader,
    "NSVF": nsvf._numbers,
    "gzip text": Unpacked,
    "kind of text": lambda path: kind_by_content(path, compressed=False),
}

ALLOWED = {
    "xarch_decoder/device/generate.py": "the files beside it, on a device without xarch",
    "xarch_encdec/device/answer.py": "the files beside it, on a device without xarch",
    "xarch_speech/device/transcribe.py": "the files beside it, on a device without xarch",
    "xarch_methods/__init__.py": "the heads of its own package",
}
"""Files of plugins that open something without the guard -> what they open."""


@pytest.mark.parametrize("reader", READERS)
def test_reader_waits_for_no_pipe_and_no_device(reader: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for file in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(UsageError, match="not a regular file"):
            READERS[reader](file)


def test_plugins_open_files_of_others_with_the_guard_only() -> None:
    """A reader that opened a pipe in a folder of pictures waited for ever."""
    found = set()
    for file in sorted(PLUGINS.rglob("*.py")):
        for call in (n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Call)):
            name = ast.unparse(call.func)
            plain = name in ("open", "gzip.open", "io.open") or name.endswith((".read_text", ".read_bytes"))
            if plain and not any(ast.unparse(a).strip("'\"") in ("w", "wb", "a") for a in call.args[1:2]):
                found.add(str(file.relative_to(PLUGINS)))
    assert found <= ALLOWED.keys(), f"use xarch.open_regular or regular_text in {sorted(found - ALLOWED.keys())}"


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
