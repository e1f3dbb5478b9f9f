"""One contender on one case, in a process of its own: peak memory, then the gate, then the time.

Prints a JSON line per pass (forward, then forward and backward), so that what was finished survives a time limit.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.kernels.case import Case
from benchmarks.kernels.contender import Contender, Inputs
from benchmarks.kernels.gate import Verdict, compare, compare_rival, limits_of, row_errors
from benchmarks.kernels.operation import Operation
from benchmarks.kernels.peak import Peak
from benchmarks.kernels.watchdog import at_most

REPEATS = 5
"""Timed runs of a pass, the same for every contender, after the first one, which is not counted."""
WARM_UP = (64, 256)
"""Tokens of the call that loads code and starts threads before memory is counted; the first that a contender takes."""


def measure(
    operation: Operation, contender: Contender, case: Case, budget: float, seconds: float, truths: Path | None = None
) -> None:
    """Print the results of both passes.

    Args:
        budget: seconds of repeats per pass; a longer contender is repeated as often.
        seconds: after so many the first run of a pass ends the process, with what had passed as a lower bound.
        truths: folder that keeps the float64 results of the case for the next contender.
    """
    length = next(n for n in WARM_UP if contender.cannot(case.with_length(n)) is None)
    warm = tensors(operation, case.with_length(length))
    run(operation, contender, warm, backward=True)
    run(operation, contender, warm, backward=False)
    for backward in (False, True):
        name = "forward_backward" if backward else "forward"
        with at_most(seconds, name):
            found, taken, mib = first(operation, contender, case, backward)
        truth = kept_reference(operation, case, backward, truths)
        if contender.ours:
            verdict = compare(found, truth, kept_limits(operation, case, backward, truth, truths))
        else:
            verdict = compare_rival(found, truth, case.dtype)
        del found, truth
        line: dict[str, Any] = {
            "pass": name,
            "peak_mib": round(mib, 1),
            "gate": gate_json(operation, case, verdict),
        }
        if verdict.passed:
            line |= repeat(operation, contender, case, backward, budget, taken[0])
        print(json.dumps(line), flush=True)


def tensors(operation: Operation, case: Case) -> Inputs:
    """Inputs of a case on its device and in its dtype, the same for every contender."""
    made = operation.inputs(case, torch.Generator().manual_seed(0))
    dtype = getattr(torch, case.dtype)
    return {n: t.to(case.device, torch.float32 if n in operation.keeps_float32 else dtype) for n, t in made.items()}


def run(
    operation: Operation, contender: Contender, inputs: Inputs, backward: bool
) -> tuple[dict[str, Tensor], tuple[float, float]]:
    """Result and gradients by name in the layout of the operation, and seconds by the clock and of the CPU."""
    own = contender.arrange(inputs)
    if backward:
        for name in operation.leaves:
            own[name].requires_grad_()
    clock = Clock(next(iter(own.values())).device.type)
    with torch.set_grad_enabled(backward):
        output = contender.call(own)
        if backward:
            output.backward(upstream(output, contender.returns))
    elapsed = clock.seconds()
    found = {"output": contender.result(output.detach())}
    if backward:
        for name in operation.leaves:
            gradient = own[name].grad
            assert gradient is not None, f"{contender.name} gives no gradient for {name}"
            found[name] = contender.restore(name, gradient)
    return found, elapsed


def upstream(output: Tensor, order: tuple[int, ...] | None) -> Tensor:
    """A gradient of the result that is the same for every layout and varies in each dimension."""
    shape = output.shape if order is None else [output.shape[order.index(d)] for d in range(output.dim())]
    weight = torch.ones(tuple(shape), dtype=output.dtype, device=output.device)
    for dim, size in enumerate(shape):
        wave = torch.cos(torch.arange(size, device=output.device, dtype=torch.float32) * (0.7 + 0.1 * dim)) + 1.5
        weight = weight * wave.to(output.dtype).view([-1 if d == dim else 1 for d in range(output.dim())])
    return weight if order is None else weight.permute(order).contiguous()


def first(
    operation: Operation, contender: Contender, case: Case, backward: bool
) -> tuple[dict[str, Tensor], tuple[float, float], float]:
    """The first run: its results, its seconds, and MiB of inputs, results, gradients and workspace."""
    peak = Peak(case.device)
    found, seconds = run(operation, contender, tensors(operation, case), backward)
    return found, seconds, peak.mib()


def reference(operation: Operation, case: Case, backward: bool) -> dict[str, Tensor]:
    """Result and gradients in float64 from the inputs as the contenders get them."""
    backend = truth_backend(operation, case)
    judge = Contender(backend, lambda inputs: operation.ours(inputs, backend))
    return run(operation, judge, {n: t.double() for n, t in tensors(operation, case).items()}, backward)[0]


def kept_reference(operation: Operation, case: Case, backward: bool, folder: Path | None) -> dict[str, Tensor]:
    """:func:`reference`, computed by the first contender of a case and read by the others."""
    if folder is None:
        return reference(operation, case, backward)
    path = folder / ("both.safetensors" if backward else "forward.safetensors")
    if not path.is_file():
        found = reference(operation, case, backward)
        if backward:
            _keep(found, path)
        _keep({"output": found["output"]}, folder / "forward.safetensors")
        return found
    return load_file(path, device=case.device)


def kept_limits(
    operation: Operation, case: Case, backward: bool, truth: dict[str, Tensor], folder: Path | None
) -> dict[str, float]:
    """Limits of our own backends from the plain-PyTorch form, computed by the first of them and read by the others."""
    path = None if folder is None else folder / ("both.json" if backward else "forward.json")
    if path is not None and path.is_file():
        return dict(json.loads(path.read_text()))
    plain = Contender("torch", lambda inputs: operation.ours(inputs, "torch"))
    found, _ = run(operation, plain, tensors(operation, case), backward)
    limits = limits_of(row_errors(found, truth), case.dtype)
    if path is not None:
        path.write_text(json.dumps(limits))
    return limits


def _keep(tensors: dict[str, Tensor], path: Path) -> None:
    """Written under another name first: a process may be ended at any moment."""
    partial = path.with_suffix(".partial")
    save_file({n: t.contiguous() for n, t in tensors.items()}, partial)
    partial.replace(path)


def truth_backend(operation: Operation, case: Case) -> str:
    return "naive" if case.length <= operation.exact_length else "torch"


def gate_json(operation: Operation, case: Case, verdict: Verdict) -> dict[str, Any]:
    return {
        "passed": verdict.passed,
        "truth": f"{truth_backend(operation, case)}, float64",
        "limits": {n: float(f"{e:.1e}") for n, e in verdict.limits.items()},
        "errors": {n: float(f"{e:.1e}") for n, e in verdict.errors.items()},
    }


def repeat(
    operation: Operation, contender: Contender, case: Case, backward: bool, budget: float, first_seconds: float
) -> dict[str, Any]:
    """Least, median and most of :data:`REPEATS` runs; a short run is the mean of several calls, to fill the budget."""
    inputs = tensors(operation, case)
    calls = max(1, min(50, int(budget / REPEATS / first_seconds)))
    times = []
    for _ in range(REPEATS):
        done = [run(operation, contender, inputs, backward)[1] for _ in range(calls)]
        times.append([statistics.fmean(part) for part in zip(*done, strict=True)])
    wall, cpu = (sorted(part) for part in zip(*times, strict=True))
    return {
        "seconds": wall[0],
        "median_seconds": statistics.median(wall),
        "cpu_seconds": cpu[0],
        "median_cpu_seconds": statistics.median(cpu),
        "most_cpu_seconds": cpu[-1],
        "repeats": REPEATS,
        "calls": calls,
    }


class Clock:
    """Time from its creation, with the work of a GPU awaited at both ends."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._wait()
        self.start = (time.perf_counter(), time.process_time())

    def seconds(self) -> tuple[float, float]:
        """By the clock, and of the CPU."""
        self._wait()
        return time.perf_counter() - self.start[0], time.process_time() - self.start[1]

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
