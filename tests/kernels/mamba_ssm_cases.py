"""SSD on the Triton kernels of ``mamba_ssm``, in the interpreter, against the recurrence.

Some things of the package need a GPU even so: an extension that its import asks for, the timing of kernel variants, the
choice of a current device and its size.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import sys
import types
from collections.abc import Iterator

import pytest
import torch
from agreement import assert_close, compare, results
from test_causal_conv1d import Conv
from test_selective_scan import Scan
from test_ssd import Ssd

from xarch.kernels import backends, dispatch, register


@pytest.fixture(scope="module", autouse=True)
def mamba_ssm_without_a_gpu() -> Iterator[None]:
    from triton.runtime.autotuner import Autotuner

    with dispatch.isolated(), pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "selective_scan_cuda", types.ModuleType("selective_scan_cuda"))
        patch.setattr(Autotuner, "_bench", lambda self, *args, config, **kwargs: [0.0, 0.0, 0.0])
        patch.setattr(torch.cuda, "device", lambda *args: contextlib.nullcontext())
        size = types.SimpleNamespace(multi_processor_count=1)
        patch.setattr(torch.cuda, "get_device_properties", lambda *args: size)
        for b in backends():
            if b.name == "mamba_ssm":
                check = None if b.op == "causal_conv1d" else b.check
                register(b.op, b.name, priority=b.priority, dtypes=b.dtypes, lacks=b.lacks, check=check)(b.run)
        yield


@pytest.mark.parametrize(
    "case",
    [
        Ssd(1, 50, 2, 1, 16, 16, chunk=32),
        Ssd(1, 50, 2, 1, 16, 16, segmented=True, chunk=32),
        Ssd(1, 20, 2, 2, 16, 16, skip=False, initial=False, chunk=16),
    ],
)
def test_agrees_with_the_recurrence(case):
    compare(case, "mamba_ssm", 1e-5)


def test_weak_decays_keep_their_gradient():
    """Dividing x by a step of 1e-6 would leave no digit of it."""
    case = Ssd(1, 20, 1, 1, 16, 16, chunk=16)
    operands = case.operands()
    operands[1] *= 1e-6
    got = results(case.call, "mamba_ssm", operands, torch.float32)
    want = results(case.call, "naive", operands, torch.float64)
    assert_close(got[0] + got[1], want[0] + want[1], 1e-4)


def test_its_reference_agrees_with_ours():
    """The reference takes a step size and a decay rate; a step of one is our operation."""
    from mamba_ssm.modules.ssd_minimal import ssd_minimal_discrete

    x, log_a, B, C, *_ = Ssd(2, 48, 4, 2).operands()
    B_BLHN, C_BLHN = (t.repeat_interleave(2, 2) for t in (B, C))
    want, last = ssd_minimal_discrete(x, log_a, B_BLHN, C_BLHN, 16)
    for backend in ("naive", "torch"):
        y, state = Ssd(2, 48, 4, 2, chunk=16).call(backend, x, log_a, B, C, None, None)
        torch.testing.assert_close(y, want)
        torch.testing.assert_close(state, last)


@pytest.mark.parametrize("groups", [None, 2])
@pytest.mark.parametrize("gated", [False, True])
def test_selective_scan_agrees_with_its_reference(groups, gated, monkeypatch):
    """The CUDA kernel cannot run here; the package's reference of the same arguments stands in for it."""
    from mamba_ssm.ops import selective_scan_interface as package

    assert inspect.signature(package.selective_scan_fn) == inspect.signature(package.selective_scan_ref)
    monkeypatch.setattr(package, "selective_scan_fn", package.selective_scan_ref)
    case = Scan(2, 4, 20, 3, groups, options=("D", "z", "bias") if gated else ("D", "bias"), final=False)
    got = results(case.call, "mamba_ssm", case.operands(), torch.float32)
    want = results(case.call, "naive", case.operands(), torch.float64)
    assert_close(got[0] + got[1], want[0] + want[1], 1e-5)


@pytest.mark.skipif(importlib.util.find_spec("causal_conv1d") is None, reason="causal_conv1d is not installed")
def test_convolution_agrees_with_its_reference(monkeypatch):
    """The reference knows no documents; that the kernel's argument for them exists is all that can be seen here."""
    monkeypatch.setitem(sys.modules, "causal_conv1d_cuda", types.ModuleType("causal_conv1d_cuda"))
    import causal_conv1d as package
    from causal_conv1d.causal_conv1d_interface import causal_conv1d_ref

    assert "seq_idx" in inspect.signature(package.causal_conv1d_fn).parameters
    monkeypatch.setattr(
        package,
        "causal_conv1d_fn",
        lambda x, w, b, seq_idx, activation: causal_conv1d_ref(x, w, b, activation=activation),
    )
    compare(Conv(2, 20, 8, 4, state=False), "mamba_ssm", 1e-6)
