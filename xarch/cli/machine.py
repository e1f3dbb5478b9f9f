"""Facts about this machine and this installation, each as plain data."""

from __future__ import annotations

import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

from xarch.hardware import available_bytes, memory_bytes, memory_limit
from xarch.numbers import size

LIBRARIES = (
    "torch",
    "transformers",
    "accelerate",
    "safetensors",
    "tokenizers",
    "numpy",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "timm",
    "triton",
    "mamba-ssm",
    "causal-conv1d",
)


def versions() -> dict[str, str]:
    """Return the versions of xarch, Python, the system and the main libraries."""
    from xarch._version import __version__

    found = {"xarch": __version__, "python": platform.python_version(), "system": platform.platform()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def devices() -> list[dict[str, Any]]:
    """List the CPU, with its usable cores and threads, and every accelerator visible to torch."""
    import torch

    from xarch.hardware import processor
    from xarch.threads import choose_threads, cores, waiting

    features = torch.backends.cpu.get_cpu_capability()
    found: list[dict[str, Any]] = [
        {
            "device": "cpu",
            "name": processor(),
            "facts": f"{cores()} cores, {choose_threads(None)}, {features}",
            "threads wait": waiting(),
        }
    ]
    for i in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(i)
        facts = f"{size(p.total_memory)}, compute capability {p.major}.{p.minor}"
        found.append({"device": f"cuda:{i}", "name": p.name, "facts": facts})
    if torch.backends.mps.is_available():
        found.append({"device": "mps", "name": "Apple GPU", "facts": ""})
    return found


def memory() -> dict[str, str]:
    """Return total and available memory, and the cgroup limit if there is one."""
    facts = {"total": memory_bytes(), "available": available_bytes(), "cgroup limit": memory_limit()}
    return {name: size(value) for name, value in facts.items() if value is not None}


def folders() -> list[dict[str, str]]:
    """List the folders xarch uses, with their free space."""
    from xarch.files.home import cache_dir, config_dir

    places = {"cache": cache_dir(), "settings": config_dir(), "current": Path.cwd()}
    return [{"folder": name, "path": str(path), "free": size(_free(path))} for name, path in places.items()]


def kernels() -> list[dict[str, Any]]:
    """List the selected backend of each operation on each device, and why the others cannot run."""
    import dataclasses

    import torch

    from xarch.kernels import describe

    kinds = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return [{"device": kind, **dataclasses.asdict(choice)} for kind in kinds for choice in describe(kind)]


def compiler() -> dict[str, str]:
    """Return the compiler of the C++ kernels and the folder of the compiled libraries."""
    from xarch.kernels.native import build

    kept = list(build.folder().glob("*.so"))
    cached = f"{len(kept)}, {size(sum(f.stat().st_size for f in kept))}" if kept else "none"
    return {
        "C++": build.compiler() or str(build.why_not()),
        "cache folder": str(build.folder()),
        "cached libraries": cached,
    }


def onnx_providers() -> dict[str, Any]:
    """Return the execution providers of onnxruntime."""
    import onnxruntime

    return {"providers": onnxruntime.get_available_providers()}


def plugins() -> list[dict[str, str]]:
    """List every plugin with its state."""
    from xarch.registry.loader import get_registry

    return [
        {
            "plugin": p.name,
            "from": f"{p.distribution} {p.version}".strip() or p.origin,
            "state": p.state,
            "detail": p.detail,
        }
        for p in get_registry().plugins()
    ]


def installation() -> dict[str, Any]:
    """Return where xarch is imported from, and whether its entry points match its pyproject.toml."""
    root = Path(__file__).parents[2]
    found: dict[str, Any] = {"path": str(root / "xarch"), "python": sys.executable}
    declared = _declared(root / "pyproject.toml")
    try:
        installed = {e.name: e.value for e in distribution("xarch").entry_points if e.group == "xarch"}
    except PackageNotFoundError:
        return {**found, "plugins": f"xarch is not installed; run `pip install -e {root}`"}
    if declared is None or declared == installed:
        return {**found, "plugins": "as declared"}
    differing = sorted(k for k in declared.keys() | installed.keys() if declared.get(k) != installed.get(k))
    return {**found, "plugins": f"{', '.join(differing)} changed in pyproject.toml; run `pip install -e {root}` again"}


def _declared(pyproject: Path) -> dict[str, str] | None:
    """Entry points of the group ``xarch`` in a pyproject.toml, None outside a source checkout."""
    if sys.version_info < (3, 11) or not pyproject.is_file():
        return None
    import tomllib

    project = tomllib.loads(pyproject.read_text(encoding="utf-8")).get("project", {})
    return dict(project.get("entry-points", {}).get("xarch", {})) if project.get("name") == "xarch" else None


def _free(path: Path) -> int:
    """Return the free bytes at ``path`` or its nearest existing parent."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free
