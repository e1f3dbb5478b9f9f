"""What decides a student's bits besides its plan: recorded with every checkpoint, compared when a run is resumed."""

from __future__ import annotations

import functools
import hashlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from xarch._version import __version__
from xarch.errors import UsageError
from xarch.files.run_dir import RunDir
from xarch.kernels import dispatch
from xarch.kernels.native import build
from xarch.planning.plan import Plan
from xarch.registry.registry import Registry

LIBRARIES = ("torch", "numpy")
SWITCHES = ("MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""Environment variables by which the mathematical libraries choose their code."""
CODE = (".py", ".cpp", ".h", ".cu", ".yaml")


def deciding(run: RunDir, plan: Plan, registry: Registry, *, data: str, processes: int) -> dict[str, Any]:
    """Return what decides bits, as plain data.

    Args:
        data: digest of the data's content.
        processes: number of processes of the run.
    """
    switches = [f"{name}={os.environ[name]}" for name in SWITCHES if os.environ.get(name)]
    facts = {"xarch": __version__, **{name: _version(name) for name in LIBRARIES}}
    facts["instruction set"] = " ".join([torch.backends.cpu.get_cpu_capability(), *switches])
    facts["device"] = torch.cuda.get_device_name() if plan.device.startswith("cuda") else plan.device
    facts["number of processes"] = str(processes)
    facts["content of the data"] = data
    facts |= {f"code of {name}": _code(folder) for name, folder in _folders(plan, registry)}
    kernels = [asdict(use) for use in dispatch.uses()]
    compiler = build.compiler() if build.loaded() else None
    return {"plan": run.manifest.digest(run.plan), "facts": facts, "kernels": kernels, "compiler": compiler}


def refuse_changes(before: Mapping[str, Any] | None, now: Mapping[str, Any], *, force: bool) -> list[str]:
    """Compare with the facts of the newest checkpoint (None without one); return what differs, in words.

    Raises:
        UsageError: the plan differs, or anything else and ``force`` is not set.
    """
    if before is None:
        return []
    if before["plan"] != now["plan"]:
        raise UsageError(
            "plan.json is not the plan of this run's checkpoints: it was changed after they were written",
            "restore plan.json, or start a new run with the changed plan: `xarch convert plan.json --out NEW`",
        )
    changed = list(_changes(before, now))
    if changed and not force:
        raise UsageError(
            f"resumed here, the run would not give the same bits: {'; '.join(changed)}",
            "resume it where it began, or accept another result with --force",
        )
    return changed


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    facts = before["facts"]
    for name in sorted(facts.keys() | now["facts"].keys()):
        old, new = facts.get(name), now["facts"].get(name)
        if old != new:
            yield f"the {name} is {_shown(new)}, was {_shown(old)}"
    for kept in before["kernels"]:
        use = dispatch.Use(**{**kept, "features": tuple(kept["features"])})
        chosen = dispatch.now(use)
        if chosen not in (None, use.backend):
            yield f"the kernel of {use.op} ({use.dtype}) is {chosen}, was {use.backend}"
    if before["compiler"] not in (None, build.compiler()):
        yield f"the compiler of kernels is {build.compiler() or 'missing'}, was {before['compiler']}"


def _shown(value: str | None) -> str:
    if value is None:
        return "not there"
    return value[:12] if len(value) == hashlib.sha256().digest_size * 2 else value


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _folders(plan: Plan, registry: Registry) -> Sequence[tuple[str, Path]]:
    """Packages whose code runs: the core and the plan's plugins."""
    found = [("xarch", Path(__file__).parents[1])]
    for info in registry.plugins():
        if info.name not in plan.plugins:
            continue
        module = sys.modules.get(info.origin.partition(".")[0])
        file = Path(info.origin) if Path(info.origin).is_file() else Path(getattr(module, "__file__", None) or "")
        if file.is_file() and file.parent != found[0][1]:
            found.append((f"the plugin {info.name}", file.parent if file.name == "__init__.py" else file))
    return found


@functools.cache
def _code(place: Path) -> str:
    """sha256 of the source files of a package, or of one file."""
    found = hashlib.sha256()
    files = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.suffix in CODE and p.is_file())
    for file in files:
        found.update(f"{file.relative_to(place).as_posix()}\n".encode())
        found.update(file.read_bytes())
    return found.hexdigest()
