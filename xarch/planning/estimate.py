"""Estimates of time and memory: counts from the actual step on the meta device, and rates measured on this machine."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from xarch.contracts.tap import Tap
from xarch.planning.plan import CachePlan
from xarch.planning.trace import Cost, Trace

EFFICIENCY = 0.85
"""Fraction of the peak matrix-product rate that a model reaches."""
STEP_OPERATORS, MATCH_OPERATORS = 120, 20
"""What a step and each of its matches cost besides models and objectives (a batch is read, figures are logged), as a
number of operators: it is the same kind of overhead, so it grows and shrinks with theirs on a machine. A plan opens no
data, so batches that are costly to prepare are not counted."""
FLOAT = 4
WINDOWS = 10
"""Number of windows per measurement; the fastest counts."""


@dataclass(frozen=True)
class Rates:
    """Compute rates of this machine.

    Attributes:
        products: multiply-adds of large float32 matrix products.
        traffic: bytes that simple operators read and write.
        operator: overhead of an operator in seconds.
    """

    products: float
    traffic: float
    operator: float

    def seconds(self, cost: Cost) -> float:
        """Return the time of a computation."""
        return cost.products / self.products + cost.traffic / self.traffic + cost.operators * self.operator

    def of_work(self, work: float) -> float:
        """Return the time of a number of multiply-adds."""
        return work / self.products


@functools.cache
def measure_rates(device: torch.device, dtype: torch.dtype, threads: int, seconds: float = 0.2) -> Rates:
    """Measure the rates of a device briefly, once per process; matrix products in ``dtype``, on a CPU ``threads``."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        a = torch.randn(512, 512, device=device).to(dtype)
        long = torch.randn(1 << 22, device=device)
        made, scaled = torch.empty_like(a), torch.empty_like(long)
        products = _per_second(lambda: torch.mm(a, a, out=made), device, seconds, threads) * 512**3
        numbers = _per_second(lambda: torch.mul(long, 2.0, out=scaled), device, seconds, threads) * long.numel()
        return Rates(products * EFFICIENCY, 2 * FLOAT * numbers, _operator(device, seconds))
    finally:
        torch.set_num_threads(before)


def _operator(device: torch.device, seconds: float) -> float:
    """Return the overhead of an operator in seconds: that of a small network's forward and backward pass."""
    layers = [nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.LayerNorm(8)) for _ in range(8)]
    model = nn.Sequential(*layers).to(device)
    x = torch.randn(2, 8, device=device)
    trace = Trace([*model.parameters(), x], seconds=math.inf)
    with trace.recording():
        model(x).sum().backward()
    return 1.0 / (_per_second(lambda: model(x).sum().backward(), device, seconds) * trace.cost.operators)


def _per_second(run: Callable[[], object], device: torch.device, seconds: float, threads: int = 1) -> float:
    """Return how often something runs per second on an idle machine, from the best of several short windows.

    On a CPU the seconds are those of the processor, divided by the threads that share the work: a busy machine
    lengthens the others.
    """
    run()
    best = 0.0
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        done, start, spent = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - start < seconds / WINDOWS:
            run()
            done += 1
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        cpu = (time.process_time() - spent) / threads
        best = max(best, done / (cpu if device.type == "cpu" and cpu > 0 else time.perf_counter() - start))
    return best


def value_bytes(taps: Iterable[Tap], sizes: Mapping[str, int]) -> int | None:
    """Return the float32 bytes of one sample's values at these taps; None if a size or a structured form is unknown."""
    total = 0
    for tap in taps:
        numbers = tap.elements(sizes)
        if numbers is None:
            return None
        total += FLOAT * numbers
    return total


def plan_cache(
    mode: str, passes: int, samples_per_pass: int, taps: Collection[Tap], sizes: Mapping[str, int], limit_gb: float
) -> CachePlan:
    """Decide whether to cache the teacher's values: only if they are read again, have a known size and fit."""
    each = value_bytes(taps, sizes)
    size = (each or 0) * samples_per_pass
    if mode == "off":
        return CachePlan(use=False, bytes=size, why="switched off")
    if not taps:
        return CachePlan(use=False, bytes=0, why="the stage reads no teacher taps")
    if each is None:
        return CachePlan(use=False, bytes=0, why="structured values are cheaper to compute than to store")
    if passes < 2 and mode != "disk":
        return CachePlan(use=False, bytes=size, why="every batch is read once")
    if size > limit_gb * 1e9:
        return CachePlan(use=False, bytes=size, why=f"{size / 1e9:.1f} GB would exceed the limit of {limit_gb:g} GB")
    return CachePlan(use=True, bytes=size, why=f"{passes} passes over {size / 1e9:.2f} GB")


def weight_bytes(module: nn.Module) -> int:
    """Return the bytes of parameters and buffers in their dtypes, counting shared ones once."""
    return sum(t.numel() * t.element_size() for t in {id(t): t for t in _all(module)}.values())


def _all(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def formula_cost(samples: int, per_sample: float, width: int, units: int, graphs: int, trained_share: float) -> Cost:
    """Estimate the cost of a step whose model cannot run on the meta device: 40 numbers of its width are kept per unit
    and layer, and the backward pass costs one forward pass plus one more for the trained share.

    Args:
        samples: samples per micro-batch.
        per_sample: multiply-adds of a forward pass over a sample.
        width: width of the widest tap.
        units: units per micro-batch.
        graphs: number of layers whose graphs exist at the same time.
        trained_share: trained fraction of the parameters.
    """
    kept = 40 * FLOAT * units * width * max(graphs, 1)
    return Cost(saved=kept, products=samples * per_sample * (2 + trained_share))
