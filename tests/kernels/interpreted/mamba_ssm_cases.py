"""SSD on the Triton kernels of ``mamba_ssm``, in the interpreter, against the recurrence.

Some things of the package need a GPU even so: an extension that its import asks for, the timing of kernel variants, the
choice of a current device and its size.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import inspect
import sys
import types
from collections.abc import Iterator

import pytest
import torch
from agreement import relative_errors
from selective_scan_cases import make as make_scan
from ssd_cases import documents, make, run

from xarch.kernels import causal_conv1d, dispatch, selective_scan


@pytest.fixture(scope="module", autouse=True)
def mamba_ssm_without_a_gpu() -> Iterator[None]:
    from triton.runtime.autotuner import Autotuner

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "selective_scan_cuda", types.ModuleType("selective_scan_cuda"))
        patch.setattr(Autotuner, "_bench", lambda self, *args, config, **kwargs: [0.0, 0.0, 0.0])
        patch.setattr(torch.cuda, "device", lambda *args: contextlib.nullcontext())
        size = types.SimpleNamespace(multi_processor_count=1)
        patch.setattr(torch.cuda, "get_device_properties", lambda *args: size)
        for op in ("ssd", "selective_scan"):
            table = dispatch._REGISTRY[op]
            free = dataclasses.replace(table["mamba_ssm"], devices=None, available=lambda: None)
            patch.setitem(table, "mamba_ssm", free)
        yield


@pytest.mark.parametrize("segmented", [False, True])
def test_agrees_with_the_recurrence(segmented):
    segments = documents(1, 50) if segmented else None
    assert max(relative_errors(run(segments, 32), make(1, 50, 2, 1, 16, 16), backend="mamba_ssm")) <= 1e-5


def test_without_skip_and_initial_state():
    assert max(relative_errors(run(chunk=16), make(1, 20, 2, 2, 16, 16)[:4], backend="mamba_ssm")) <= 1e-5


def test_weak_decays_keep_their_gradient():
    """Dividing x by a step of 1e-6 would leave no digit of it."""
    operands = make(1, 20, 1, 1, 16, 16)
    operands[1] *= 1e-6
    assert max(relative_errors(run(chunk=16), operands, backend="mamba_ssm")) <= 1e-4


def test_its_reference_agrees_with_ours():
    """The reference takes a step size and a decay rate; a step of one is our operation."""
    from mamba_ssm.modules.ssd_minimal import ssd_minimal_discrete

    x, log_a, B, C, _, _ = (t.double() for t in make(2, 48, 4, 2, 5, 3))
    B_BLHN, C_BLHN = (t.repeat_interleave(2, 2) for t in (B, C))
    want, last = ssd_minimal_discrete(x, log_a, B_BLHN, C_BLHN, 16)
    for backend in ("naive", "torch"):
        y, state = run(chunk=16)(backend, x, log_a, B, C)
        torch.testing.assert_close(y, want)
        torch.testing.assert_close(state, last)


@pytest.mark.parametrize("groups", [None, 2])
@pytest.mark.parametrize("gated", [False, True])
def test_selective_scan_agrees_with_its_reference(groups, gated, monkeypatch):
    """The CUDA kernel cannot run here; the package's reference of the same arguments stands in for it."""
    from mamba_ssm.ops import selective_scan_interface as package

    assert inspect.signature(package.selective_scan_fn) == inspect.signature(package.selective_scan_ref)
    monkeypatch.setattr(package, "selective_scan_fn", package.selective_scan_ref)
    operands = make_scan(2, 4, 20, 3, groups)[:8]
    operands[6] = operands[6] if gated else None

    def call(backend, x, dt, A, B, C, D, z, bias):
        return selective_scan(x, dt, A, B, C, D, z, dt_bias_D=bias, dt_softplus=True, backend=backend)

    assert max(relative_errors(call, operands, backend="mamba_ssm")) <= 1e-5


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
    free = dataclasses.replace(
        dispatch._REGISTRY["causal_conv1d"]["mamba_ssm"], devices=None, available=lambda: None, check=None
    )
    monkeypatch.setitem(dispatch._REGISTRY["causal_conv1d"], "mamba_ssm", free)
    generator = torch.Generator().manual_seed(0)
    operands = [torch.randn(shape, generator=generator) for shape in ((2, 20, 8), (8, 4), (8,))]

    def call(backend, x, weight, bias):
        return causal_conv1d(x, weight, bias, return_final_state=True, backend=backend)

    assert max(relative_errors(call, operands, backend="mamba_ssm")) <= 1e-6
