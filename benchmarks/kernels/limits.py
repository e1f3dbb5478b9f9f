"""What the machine can do at most, measured: copies, matrix products, fused multiply-adds and exponentials."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from pathlib import Path

import torch


def measure(device: str, threads: int) -> dict[str, float]:
    """Rates per second: ``copy_bytes`` (read plus written), ``matmul_flops``, ``fma_flops``, ``exp``.

    Each is the best of many short tries, so that other processes on the machine disturb it little. On a CPU the copy
    is from 128 MiB to another 128 MiB, larger than most caches; on a GPU
    ``matmul_flops`` is that of bfloat16 and ``sgemm_flops`` that of float32 with TF32 allowed as the kernels do.
    """
    torch.set_num_threads(threads)
    found = {"copy_bytes_per_s": _copy(device, 2**25 if device == "cpu" else 2**27), "exp_torch_per_s": _exp(device)}
    if device == "cpu":
        found["copy_small_bytes_per_s"] = _copy(device, 2**16)
        found["matmul_flops_per_s"] = max(_matmul(device, torch.float32, n) for n in (512, 1024))
        native = _native(threads)
        # A matrix product may sustain more than a loop over few registers does, and the other way round.
        found["fma_flops_per_s"] = max(native.pop("fma_flops_per_s", 0.0), found["matmul_flops_per_s"])
        found["exp_per_s"] = max(native.get("exp_native_per_s", 0.0), found["exp_torch_per_s"])
        found |= native
    else:
        found["sgemm_flops_per_s"] = found["fma_flops_per_s"] = _matmul(device, torch.float32, 8192)
        found["matmul_flops_per_s"] = _matmul(device, torch.bfloat16, 8192)
        found["exp_per_s"] = found["exp_torch_per_s"]
    return found


def _best(run: Callable[[], object], device: str, tries: int = 30) -> float:
    seconds = []
    for _ in range(tries + 1):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def _copy(device: str, count: int) -> float:
    source, target = torch.ones(count, device=device), torch.zeros(count, device=device)
    rounds = max(1, 2**22 // count)

    def run() -> None:
        for _ in range(rounds):
            target.copy_(source)

    return 8 * count * rounds / _best(run, device)


def _matmul(device: str, dtype: torch.dtype, size: int) -> float:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / _best(lambda: torch.mm(a, b), device)


def _exp(device: str) -> float:
    count = 2**18 if device == "cpu" else 2**26
    x = torch.linspace(-8, 0, count, device=device)
    out = torch.empty_like(x)

    def run() -> None:
        for _ in range(4):
            torch.exp(x, out=out)

    return 4 * count / _best(run, device)


def _native(threads: int) -> dict[str, float]:
    """Rates in registers by the vector functions of the compiled kernels; empty without a compiler."""
    from xarch.kernels.native.build import library, why_not

    if why_not() is not None:
        return {}
    rates = library("rates", [Path(__file__).with_name("rates.cpp")])
    for name in ("rate_exp", "rate_fma"):
        function = getattr(rates, name)
        function.argtypes, function.restype = [ctypes.c_int64, ctypes.c_int], ctypes.c_float
    lanes, rounds = rates.lanes(), 20_000
    exps = 8 * lanes * rounds * threads / _best(lambda: rates.rate_exp(rounds, threads), "cpu", 200)
    flops = 2 * 16 * lanes * rounds * threads / _best(lambda: rates.rate_fma(rounds, threads), "cpu", 200)
    return {"exp_native_per_s": exps, "fma_flops_per_s": flops}
