"""Rough estimates of time and memory, from counts and a short measurement of this machine's matrix rate."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable, Mapping

import torch

from xarch.contracts.model import Student
from xarch.contracts.tap import Tap
from xarch.planning.plan import CachePlan

EFFICIENCY = 0.5
"""Share of the matrix rate that a forward pass reaches; the rest is memory traffic."""


def matrix_rate(device: torch.device, seconds: float = 0.15) -> float:
    """Multiply-adds per second of a square float32 product, measured for a moment."""
    n = 512
    a = torch.randn(n, n, device=device)
    a @ a
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        a @ a
        done += 1
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return done * n**3 / (time.perf_counter() - start)


def tap_bytes(taps: Iterable[Tap]) -> int | None:
    """float32 bytes of one unit's values at these taps; None when one of them is factored or unsized."""
    total = 0
    for tap in taps:
        sizes = [tap.shape.get(letter) for letter in tap.layout[2:]]
        if not tap.layout.isupper() or not tap.shape or None in sizes:
            return None
        total += 4 * math.prod(s for s in sizes if s is not None)
    return total


def plan_cache(mode: str, passes: int, units_per_pass: int, taps: Collection[Tap], limit_gb: float) -> CachePlan:
    """Whether keeping the teacher's outputs pays: only if they are read again, are plain tensors and fit."""
    each = tap_bytes(taps)
    size = (each or 0) * units_per_pass
    if mode == "off":
        return CachePlan(use=False, bytes=size, why="switched off")
    if not taps:
        return CachePlan(use=False, bytes=0, why="the stage reads no teacher taps")
    if each is None:
        return CachePlan(use=False, bytes=0, why="factored values are cheaper to compute than to store")
    if passes < 2 and mode != "disk":
        return CachePlan(use=False, bytes=size, why="every batch is read once")
    if size > limit_gb * 1e9:
        return CachePlan(use=False, bytes=size, why=f"{size / 1e9:.1f} GB would exceed the limit of {limit_gb:g} GB")
    return CachePlan(use=True, bytes=size, why=f"{passes} passes over {size / 1e9:.2f} GB")


def trained_parameters(student: Student, groups: Mapping[str, object]) -> dict[str, int]:
    """Group -> number of parameters."""
    sizes = {n: p.numel() for n, p in student.module.named_parameters()}
    known = student.param_groups()
    return {g: sum(sizes[n] for n in known.get(g, [])) for g in groups}


def stage_memory(
    *, teacher: int, student: int, trained: int, width: int, batch_units: int, sites: int, scope: str
) -> int:
    """Bytes: both models in float32, gradients and two moments of what trains, and one graph of activations.

    A local stage holds one site's graph, a global one the whole student's.
    """
    graph = batch_units * width * 4 * 40
    return 4 * (teacher + student) + 12 * trained + graph * (1 if scope == "local" else max(sites, 1))
