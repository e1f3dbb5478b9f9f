"""Choosing a backend: by priority, on request, and with a reason for everything."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch

from xarch.errors import UsageError
from xarch.kernels import backends, causal_conv1d, describe, dispatch, register, ssd, use_backend
from xarch.kernels.dispatch import select


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No request from the environment, only two backends an operation; nothing registered here survives the test."""
    monkeypatch.delenv(dispatch.ENVIRONMENT, raising=False)
    with dispatch.isolated("naive", "torch"):
        yield


def chosen(op: str = "ssd", **kwargs: object) -> str:
    return select(op, "cpu", torch.float32, **kwargs).name  # type: ignore[arg-type]


def test_highest_priority_that_can_run_wins():
    assert chosen() == "torch"
    register("ssd", "fast", priority=90, available=lambda: "not installed")(lambda: None)
    register("ssd", "other-device", priority=80, devices=["cuda"])(lambda: None)
    register("ssd", "other-dtype", priority=70, dtypes=[torch.bfloat16])(lambda: None)
    assert chosen() == "torch"
    register("ssd", "better", priority=20, lacks=["segment_ids"])(lambda: None)
    assert chosen() == "better"
    assert chosen(features={"segment_ids"}) == "torch"
    assert select("ssd", "cuda:1", torch.float32).name == "other-device"
    assert select("ssd", "cpu", torch.bfloat16).name == "other-dtype"


def test_requests_argument_before_context_before_environment(monkeypatch):
    monkeypatch.setenv(dispatch.ENVIRONMENT, "naive")
    assert chosen() == "naive"
    with use_backend("torch"):
        assert chosen() == "torch"
        assert chosen(backend="naive") == "naive"
        with use_backend("naive"):
            assert chosen() == "naive"
        with use_backend(None):
            assert chosen() == "torch"
        assert chosen() == "torch"
    assert chosen() == "naive"


def test_a_request_reaches_the_operation():
    calls = []

    @register("causal_conv1d", "spy", priority=-1)
    def spy(x, *args, **kwargs):
        calls.append(kwargs)
        return x, None

    x = torch.randn(1, 5, 2)
    with use_backend("spy"):
        assert causal_conv1d(x, torch.randn(2, 4)) is x
    assert len(calls) == 1
    assert causal_conv1d(x, torch.randn(2, 4)) is not x
    assert len(calls) == 1


def test_an_operation_without_the_wished_backend_chooses_freely():
    register("ssd", "special", priority=-1)(lambda: None)
    with use_backend("special"):
        assert chosen("ssd") == "special"
        assert chosen("causal_conv1d") == "torch"
        why = {choice.op: choice.why for choice in describe()}
    assert why["ssd"] == "forced by use_backend()"
    assert why["causal_conv1d"] == "use_backend() names no backend of causal_conv1d"


def test_unknown_names_list_the_choices(monkeypatch):
    with pytest.raises(UsageError, match=r"no kernel backend is called 'tritn'[\s\S]*naive, torch"):
        use_backend("tritn").__enter__()
    with pytest.raises(UsageError, match=r"ssd has no backend 'tritn'[\s\S]*torch, naive"):
        chosen(backend="tritn")
    monkeypatch.setenv(dispatch.ENVIRONMENT, "tritn")
    with pytest.raises(UsageError, match=r"XARCH_KERNELS: no kernel backend is called 'tritn'"):
        ssd(torch.zeros(1, 2, 1, 1), torch.zeros(1, 2, 1), torch.zeros(1, 2, 1, 1), torch.zeros(1, 2, 1, 1))


def test_a_forced_backend_that_cannot_run_is_an_error_not_a_fallback():
    register("ssd", "fast", priority=90, devices=["cuda"])(lambda: None)
    message = r"'fast', forced by use_backend\(\), cannot run.*runs on cuda, not on cpu"
    with use_backend("fast"), pytest.raises(UsageError, match=message):
        chosen()
    register("ssd", "gone", priority=1, available=lambda: "no compiler found")(lambda: None)
    with pytest.raises(UsageError, match="no compiler found"):
        chosen(backend="gone")


def test_no_backend_at_all_says_why_for_each():
    register("only-cuda", "a", priority=2, devices=["cuda"])(lambda: None)
    register("only-cuda", "b", priority=1, available=lambda: "not installed")(lambda: None)
    with pytest.raises(UsageError, match="a: runs on cuda, not on cpu; b: not installed"):
        chosen("only-cuda")


def test_describe_tells_what_runs_and_why():
    register("ssd", "fast", priority=90, available=lambda: "package fast is not installed")(lambda: None)
    choices = {choice.op: choice for choice in describe()}
    assert set(choices) >= {"ssd", "causal_conv1d", "matrix_distance"}
    assert choices["ssd"].backend == "torch"
    assert choices["ssd"].why == "fast: package fast is not installed"
    assert choices["ssd"].refused == {"fast": "package fast is not installed"}
    assert choices["causal_conv1d"].why == "first choice"


def test_every_operation_has_a_truth_and_a_fast_form():
    for op in {backend.op for backend in backends()}:
        assert [backend.name for backend in backends(op)] == ["torch", "naive"]


def failing(device: str) -> None:
    raise RuntimeError(f"wrong digits on {device}\nand a second line")


def test_a_backend_that_fails_its_check_is_skipped_with_one_line(caplog):
    register("ssd", "built", priority=90, check=failing)(lambda: None)
    with caplog.at_level(logging.WARNING):
        assert [chosen() for _ in range(3)] == ["torch"] * 3
    assert [r.getMessage() for r in caplog.records] == [
        "ssd: backend built is not used on cpu: RuntimeError: wrong digits on cpu"
    ]
    assert next(c for c in describe() if c.op == "ssd").refused == {"built": "RuntimeError: wrong digits on cpu"}
    with pytest.raises(
        UsageError, match="'built', forced by backend=, cannot run this call: RuntimeError: wrong digits"
    ):
        chosen(backend="built")


def test_a_check_runs_once_and_as_if_nothing_surrounded_it():
    seen = []

    def check(device: str) -> None:
        x = torch.ones(2, requires_grad=True)
        torch.autograd.grad((x * x).sum(), x)
        product = torch.ones(2, 2) @ torch.ones(2, 2)
        seen.append((device, product.dtype, product.device.type))

    register("ssd", "built", priority=90, check=check)(lambda: None)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
        assert chosen() == "built"
    assert chosen() == "built"
    assert seen == [("cpu", torch.float32, "cpu")]


def test_backends_of_other_devices_are_no_news():
    register("ssd", "elsewhere", priority=90, devices=["cuda"])(lambda: None)
    choice = next(c for c in describe() if c.op == "ssd")
    assert choice.why == "first choice"
    assert choice.refused == {"elsewhere": "runs on cuda, not on cpu"}


def test_a_check_waits_for_a_call_that_needs_it():
    checked: list[str] = []
    register("ssd", "built", priority=5, check=checked.append)(lambda: None)
    assert chosen() == "torch"
    assert next(c for c in describe() if c.op == "ssd").refused == {}
    assert checked == []
    assert chosen(backend="built") == "built"
    assert checked == ["cpu"]


def test_an_exporter_ignores_a_request_it_cannot_record(monkeypatch):
    register("ssd", "built", priority=90, available=lambda: "an exporter records" if dispatch.tracing() else None)(list)
    monkeypatch.setenv(dispatch.ENVIRONMENT, "built")
    assert chosen() == "built"
    monkeypatch.setattr(dispatch, "tracing", lambda: True)
    assert chosen() == "torch"


def test_choosing_is_a_constant_for_torch_compile(monkeypatch):
    monkeypatch.setenv(dispatch.ENVIRONMENT, "naive")
    x, weight = torch.randn(1, 5, 2), torch.randn(2, 4)
    compiled = torch.compile(causal_conv1d, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, weight), causal_conv1d(x, weight))


def test_registering_a_name_again_replaces_it():
    register("ssd", "torch", priority=1)(lambda: "new")
    assert select("ssd", "cpu", torch.float32).run() == "new"
    assert len(backends("ssd")) == 2
