"""Parallel scans in plain PyTorch from PyPI, each inside the selective scan of Mamba-1.

All materialise the decays and inputs [B, L, D, N], as their own Mamba blocks do; the fastest that passes the gate
counts. ``mambapy``, ``mamba-stock`` and ``mambax`` carry versions of the same Blelloch scan with a hand-written
backward pass.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernels.contender import Contender, Inputs

Scan = Callable[[Tensor, Tensor], Tensor]
"""h_t = a_t h_{t-1} + x_t over the second dimension of [B, L, D, N]."""


def selective(load: Callable[[], Scan]) -> Callable[[Inputs], Tensor]:
    """The selective scan around a scan, tokens second [B, L, D]."""

    def run(i: Inputs) -> Tensor:
        x, dt, B, C, z = (i[n].float() if i[n].dtype.itemsize < 4 else i[n] for n in ("x", "dt", "B", "C", "z"))
        dt = F.softplus(dt + i["dt_bias"])
        decay = torch.exp(dt[..., None] * i["A"])
        entry = dt[..., None] * B[:, :, None] * x[..., None]
        h = load()(decay, entry)
        y = (h @ C[..., None]).squeeze(3) + i["D"] * x
        return (y * F.silu(z)).to(i["x"].dtype)

    return run


def _file(package: str, name: str) -> ModuleType:
    """A module of a package whose __init__ imports more than is installed."""
    found = importlib.util.find_spec(package)
    assert found is not None
    assert found.submodule_search_locations
    path = Path(found.submodule_search_locations[0]) / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"_{package}_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _mambapy() -> Scan:
    return importlib.import_module("mambapy.pscan").pscan


_CACHE: dict[str, ModuleType] = {}


def _pscan(package: str) -> Callable[[], Scan]:
    def load() -> Scan:
        if package not in _CACHE:
            _CACHE[package] = _file(package, "pscan")
        return _CACHE[package].pscan

    return load


def _accelerated() -> Scan:
    from accelerated_scan.ref import scan

    def run(a: Tensor, x: Tensor) -> Tensor:
        flat = [t.flatten(2).transpose(1, 2).contiguous() for t in (a, x)]
        return scan(*flat).transpose(1, 2).reshape(x.shape)

    return run


def _assoc() -> Scan:
    from assoc_scan import AssocScan

    return AssocScan()


def _minimamba() -> Scan:
    from minimamba.s6 import S6

    return S6.__new__(S6)._optimized_parallel_scan


def contenders() -> list[Contender]:
    """One per package."""
    loads = {
        "mambapy": ("mambapy", _mambapy),
        "mamba-stock": ("mamba_stock", _pscan("mamba_stock")),
        "mambax": ("mambax", _pscan("mambax")),
        "accelerated-scan (ref)": ("accelerated_scan", _accelerated),
        "assoc-scan": ("assoc_scan", _assoc),
        "minimamba": ("minimamba", _minimamba),
    }
    return [
        Contender(name, selective(load), family="pure-PyTorch package", packages=(package,))
        for name, (package, load) in loads.items()
    ]
