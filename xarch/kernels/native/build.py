"""Compile C++ sources into a shared library on first use and load it.

The sources use no header of torch, so a library takes seconds to compile; tensors are passed as addresses and sizes.
It is kept in the user's cache (or in the folder ``XARCH_KERNELS_CACHE``) under a key made of everything it depends on:
sources, headers, compiler, flags and processor. Sources include the headers of this folder and of their own by name:
``#include "simd.h"``.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from xarch.errors import XarchError
from xarch.kernels.precision import tracing
from xarch.printable import say

FLAGS = (
    "-O3",
    "-march=native",
    "-std=c++17",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-shared",
    "-fPIC",
    "-pthread",
)
"""No -ffast-math: infinities and NaN must be preserved."""

COMPILERS = ("g++", "clang++")
HEADERS = Path(__file__).parent
CACHE = "XARCH_KERNELS_CACHE"

_LOADED: dict[str, ctypes.CDLL] = {}
_DECLARED: dict[str, ctypes.CDLL] = {}


class BuildError(XarchError):
    """A kernel library could not be compiled or loaded."""


def why_not() -> str | None:
    """Why no compiled kernel can run now, or None if one can; only checks for a compiler."""
    if tracing():
        return "an exporter records plain operators"
    return _no_compiler()


def compiler() -> str | None:
    """Version line of the compiler that kernels are compiled with, None without one."""
    found = _compiler(os.environ.get("CXX", ""), os.environ.get("PATH", ""))
    return None if found is None else next(iter(_version(found).splitlines()), found)


def folder() -> Path:
    """Where compiled libraries are kept; not created here."""
    from xarch.files.home import cache_dir

    chosen = os.environ.get(CACHE)
    return Path(chosen).expanduser() if chosen else cache_dir() / "kernels"


def _no_compiler() -> str | None:
    wanted = os.environ.get("CXX", "")
    if _compiler(wanted, os.environ.get("PATH", "")) is not None:
        return None
    if wanted:
        return f"the C++ compiler in the environment variable CXX, {wanted!r}, was not found"
    return f"no C++ compiler was found ({' or '.join(COMPILERS)})"


def library(name: str, sources: Sequence[Path]) -> ctypes.CDLL:
    """The library ``name`` made of ``sources``; compiled, with a line on stderr, unless the cache has it.

    Processes that need the same library at once compile it once. Functions must be declared ``extern "C"``, let no
    exception out (``parallel::status_of``), and be passed to :func:`declare` before they are called.

    Raises:
        BuildError: no compiler, a compiler error, a cache that cannot be written, or a library that cannot be loaded.
    """
    reason = _no_compiler()
    if reason is not None:
        raise BuildError(f"kernel {name}: {reason}", "install a C++ compiler, for example `apt install g++`")
    command = _compiler(os.environ.get("CXX", ""), os.environ.get("PATH", ""))
    assert command is not None
    full_name = f"{name}-{_key(command, sources)}"
    if full_name in _LOADED:
        return _LOADED[full_name]
    path = folder() / f"{full_name}.so"
    if not path.exists():
        _build(name, command, sources, path)
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as e:
        raise BuildError(f"kernel {name}: cannot load {path}: {e}", f"delete {path} to compile it again") from e
    _LOADED[full_name] = loaded
    return loaded


def loaded() -> bool:
    """Whether this process has loaded a compiled library."""
    return bool(_LOADED)


def kernel(name: str, source: Path) -> Callable[[Callable[[ctypes.CDLL], None]], Callable[[], ctypes.CDLL]]:
    """Decorator that turns a function which declares argument types into one that returns the library.

    The library is compiled or loaded on the first call and kept until :func:`forget`.
    """

    def decorate(declare: Callable[[ctypes.CDLL], None]) -> Callable[[], ctypes.CDLL]:
        def load() -> ctypes.CDLL:
            if name not in _DECLARED:
                loaded = library(name, [source])
                declare(loaded)
                _DECLARED[name] = loaded
            return _DECLARED[name]

        return load

    return decorate


def declare(function: Any, *argtypes: Any) -> None:
    """Declare a function of a library that returns 0, or another number if memory ran out, which raises MemoryError."""
    function.argtypes, function.restype, function.errcheck = list(argtypes), ctypes.c_int, _raise_if_failed


def _raise_if_failed(status: int, function: Any, arguments: Any) -> int:
    if status != 0:
        raise MemoryError(f"kernel {function.__name__}: no memory")
    return status


def forget() -> None:
    """Drop every loaded library: the next use looks for compiler and cache again."""
    _LOADED.clear()
    _DECLARED.clear()


def _build(name: str, compiler: str, sources: Sequence[Path], path: Path) -> None:
    from filelock import FileLock

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                _compile(name, compiler, sources, path)
    except OSError as e:
        raise BuildError(
            f"kernel {name}: cannot write {path.parent}: {e.strerror}",
            f"set XARCH_HOME or {CACHE} to a folder you may write",
        ) from e


def _compile(name: str, compiler: str, sources: Sequence[Path], path: Path) -> None:
    fresh = path.with_suffix(f".{os.getpid()}.so")
    command = [compiler, *FLAGS, f"-I{HEADERS}", *map(str, sources), "-o", str(fresh)]
    say(f"compiling the kernel {name} with {Path(compiler).name} (once) ...", end="")
    begin = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    say(f" {time.perf_counter() - begin:.0f} s" if done.returncode == 0 else " failed")
    if done.returncode != 0:
        fresh.unlink(missing_ok=True)
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        error = next((line for line in lines if "error:" in line), lines[-1])
        raise BuildError(f"kernel {name}: {Path(compiler).name} failed: {error.strip()}", f"try `{' '.join(command)}`")
    os.replace(fresh, path)


def _key(compiler: str, sources: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    beside = {header for source in sources for header in source.parent.glob("*.h")}
    for file in [*sources, *sorted(beside | set(HEADERS.glob("*.h")))]:
        content = file.read_bytes()
        digest.update(f"{file.name}:{len(content)}\n".encode())
        digest.update(content)
    for fact in (compiler, _version(compiler), *FLAGS, _processor()):
        digest.update(f"{fact}\n".encode())
    return digest.hexdigest()[:16]


@lru_cache
def _compiler(wanted: str, path: str) -> str | None:
    names = (wanted,) if wanted else COMPILERS
    return next((found for name in names if (found := shutil.which(name, path=path)) is not None), None)


@lru_cache
def _version(compiler: str) -> str:
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True, errors="replace")
    return done.stdout


@lru_cache
def _processor() -> str:
    """Model and instruction sets, which -march=native depends on."""
    facts = [platform.machine(), platform.processor()]
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            wanted = {"model name", "flags", "Features"}
            found = {key: value.strip() for key, _, value in (x.partition(":") for x in lines) if key.strip() in wanted}
            facts.extend(found.values())
    except OSError:
        facts.append(platform.platform())
    return "\n".join(facts)
