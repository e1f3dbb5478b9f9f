"""What every backend of every operation must do, over the registry: a new operation must be added to ``OPS``."""

from __future__ import annotations

import itertools
import logging
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from agreement import INTERPRETED, assert_close, needs_compiler, results, slow, source
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from xarch.errors import UsageError
from xarch.kernels import (
    FoldedLayout,
    FoldedRanges,
    HashConfig,
    MemoryLayout,
    Rotary,
    backends,
    causal_conv1d,
    causal_conv1d_step,
    describe,
    dispatch,
    folded_memory,
    gated_delta,
    gated_delta_step,
    grid_encode,
    hash_encode,
    matrix_distance,
    mixing_matrix,
    prefix_mlp,
    selective_scan,
    selective_scan_step,
    slot_memory,
    ssd,
    ssd_step,
)
from xarch.kernels.dispatch import select
from xarch.kernels.native import build, forget

LENGTH = 37
BATCH, CHANNELS = (1, 2) if INTERPRETED else (2, 4)
HALF = {torch.float16: 5e-4, torch.bfloat16: 4e-3}
"""Decays, prefix sums, exponentials and states are float32, so what is left is the rounding of results and gradients: a
relative norm near 2^-12 in float16 and 2^-9 in bfloat16 (1e-2 to 1e-1 if everything were bfloat16)."""
LEVELS = HashConfig(levels=3, log2_size=9, base=4, finest=40)
KERNELS = Path(build.__file__).parents[1]


@dataclass(frozen=True)
class Op:
    """An operation as a function of its operands, in float64."""

    call: Callable[..., Any]
    operands: list[Tensor]
    tokens: dict[int, int]
    """Operands with a token (or point) dimension, and which one it is."""
    wide: tuple[int, ...] = ()
    """Operands that stay float32 beside half precision."""
    fixed: int = 0
    """The first operands are not differentiated."""
    state: int | None = None
    step: Callable[..., Any] | None = None

    def cut(self, start: int, stop: int, operands: list[Tensor] | None = None) -> list[Tensor]:
        found = list(operands or self.operands)
        for place, dim in self.tokens.items():
            found[place] = found[place].narrow(dim, start, stop - start)
        return found

    def dtypes(self, dtype: torch.dtype) -> list[torch.dtype]:
        wide = torch.promote_types(dtype, torch.float32)
        return [wide if i in self.wide else dtype for i in range(len(self.operands))]


def _ssd() -> Op:
    draw = source()
    x, log_a = draw(BATCH, LENGTH, 2, 5), -F.softplus(2 * draw(BATCH, LENGTH, 2))
    B, C, D, state = draw(BATCH, LENGTH, 1, 3), draw(BATCH, LENGTH, 1, 3), draw(2), draw(BATCH, 2, 5, 3)

    def call(backend: str | None, *t: Tensor, **options: Any) -> Any:
        return ssd(*t[:5], initial_state_BHPN=t[5], return_final_state=True, backend=backend, **options)

    return Op(call, [x, log_a, B, C, D, state], dict.fromkeys(range(4), 1), (1, 4, 5), state=5, step=ssd_step)


def _gated_delta() -> Op:
    draw = source()
    q, k = draw(BATCH, LENGTH, 2, 3), F.normalize(draw(BATCH, LENGTH, 1, 3), dim=-1)
    v, log_a = draw(BATCH, LENGTH, 1, 5), -F.softplus(2 * draw(BATCH, LENGTH, 1))
    beta, state = torch.sigmoid(draw(BATCH, LENGTH, 1)), draw(BATCH, 1, 5, 3)

    def call(backend: str | None, *t: Tensor, **options: Any) -> Any:
        return gated_delta(*t[:5], initial_state_BKPN=t[5], return_final_state=True, backend=backend, **options)

    operands = [q, k, v, log_a, beta, state]
    return Op(call, operands, dict.fromkeys(range(5), 1), (3, 4, 5), state=5, step=gated_delta_step)


def _selective_scan() -> Op:
    draw = source()
    x, dt, z = draw(BATCH, CHANNELS, LENGTH), draw(BATCH, CHANNELS, LENGTH), draw(BATCH, CHANNELS, LENGTH)
    A, B, C = -draw(CHANNELS, 3).exp(), draw(BATCH, 1, 3, LENGTH), draw(BATCH, 1, 3, LENGTH)

    def call(backend: str | None, *t: Tensor, **options: Any) -> Any:
        options |= {"dt_bias_D": t[7], "initial_state_BDN": t[8]}
        return selective_scan(*t[:7], dt_softplus=True, return_final_state=True, backend=backend, **options)

    def step(*t: Tensor) -> Any:
        return selective_scan_step(*t[:7], t[8], dt_bias_D=t[7], dt_softplus=True)

    tokens = {0: 2, 1: 2, 3: 3, 4: 3, 6: 2}
    return Op(
        call,
        [x, dt, A, B, C, draw(CHANNELS), z, draw(CHANNELS), draw(BATCH, CHANNELS, 3)],
        tokens,
        (2, 5, 7, 8),
        state=8,
        step=step,
    )


def _causal_conv1d() -> Op:
    draw = source()

    def call(backend: str | None, *t: Tensor, **options: Any) -> Any:
        return causal_conv1d(*t[:3], initial_state_BCJ=t[3], return_final_state=True, backend=backend, **options)

    operands = [draw(BATCH, LENGTH, 6), draw(6, 4), draw(6), draw(BATCH, 6, 3)]
    return Op(call, operands, {0: 1}, state=3, step=causal_conv1d_step)


def _matrix_distance() -> Op:
    draw = source()
    q, k = draw(BATCH, LENGTH, 2, 5), draw(BATCH, LENGTH, 1, 5)
    C, B, log_a = draw(BATCH, LENGTH, 1, 3) / 2, draw(BATCH, LENGTH, 1, 3), -F.softplus(draw(BATCH, LENGTH, 2) - 2)

    def call(backend: str | None, *t: Tensor, **options: Any) -> Any:
        return matrix_distance(*t, scale=0.4, backend=backend, **options)

    return Op(call, [q, k, C, B, log_a, draw(2)], dict.fromkeys(range(5), 1), (4, 5), fixed=2)


def _mixing_matrix() -> Op:
    draw = source()
    operands = [draw(BATCH, LENGTH, 1, 3), draw(BATCH, LENGTH, 1, 3), -F.softplus(draw(BATCH, LENGTH, 2)), draw(2)]
    return Op(
        lambda backend, *t, **options: mixing_matrix(*t, backend=backend, **options),
        operands, dict.fromkeys(range(3), 1), (2, 3),
    )  # fmt: skip


def _points() -> Tensor:
    """Multiples of 1/64 are exact in every dtype."""
    return torch.randint(1, 64, (LENGTH, 3), generator=torch.Generator().manual_seed(0)).double() / 64


def _hash_encode() -> Op:
    def call(backend: str | None, u: Tensor, table: Tensor) -> Tensor:
        return hash_encode(u, table, LEVELS, backend=backend)

    return Op(call, [_points(), source()(LEVELS.rows, LEVELS.features)], {0: 0}, fixed=1)


def _grid_encode() -> Op:
    draw = source()

    def call(backend: str | None, u: Tensor, plane: Tensor, line: Tensor, volume: Tensor) -> Tensor:
        groups = [[(plane, (2, 0)), (line, (1,))], [(volume, (0, 1, 2))]]
        return grid_encode(u, groups, backend=backend)

    return Op(call, [_points(), draw(5, 6, 9), draw(7, 9), draw(4, 5, 3, 2)], {0: 0}, fixed=1)


def _slot_memory() -> Op:
    """Without gradients, which only the plain form has, and short, as exporters record every token; the rest is in
    test_slot_memory.py."""
    draw = source()
    layout, rotary, length = MemoryLayout(1, 1, 1), Rotary((1.0, 0.2), scale=0.5), 5

    def call(backend: str | None, *t: Tensor, **options: Any) -> Any:
        positions = torch.arange(t[0].shape[1], device=t[0].device).expand(t[0].shape[:2])
        return slot_memory(*t, positions, layout, rotary, backend=backend, **options)

    operands = [draw(BATCH, length, 2, 6), draw(BATCH, length, 1, 6), draw(BATCH, length, 1, 6)]
    return Op(call, operands, dict.fromkeys(range(3), 1), fixed=3)


def _folded_memory() -> Op:
    """Without gradients, which only the plain form has, and short, as exporters record every token; the rest is in
    test_folded_memory.py."""
    draw = source()
    layout, rotary = FoldedLayout((2,), (2,), fold=2, sinks=1, precision="float32"), Rotary((1.0, 0.2), scale=0.5)
    ones = torch.ones(1, 6, dtype=torch.float64)
    ranges = FoldedRanges(ones, ones, 3.0 * ones[:, :2])

    def call(backend: str | None, *t: Tensor, **options: Any) -> Any:
        positions = torch.arange(t[0].shape[1], device=t[0].device).expand(t[0].shape[:2])
        own = FoldedRanges(*(x.to(t[0]) for x in ranges))
        return folded_memory(*t, positions, layout, rotary, own, backend=backend, **options)

    operands = [draw(BATCH, 9, 2, 6), draw(BATCH, 9, 1, 6), draw(BATCH, 9, 1, 6)]
    return Op(call, operands, dict.fromkeys(range(3), 1), fixed=3)


def _prefix_mlp() -> Op:
    draw = source()

    def call(backend: str | None, x: Tensor, *w: Tensor) -> Tensor:
        count = torch.arange(len(x), device=x.device) * 3 % 4
        layers = ((w[0], w[1]), (w[2], None)), (w[3], w[4])
        return prefix_mlp(x, count, *layers, (0, 2, 5, 7), activation="silu", backend=backend)

    operands = [draw(LENGTH, 5), draw(7, 5), draw(7), draw(7, 5), draw(3, 7), draw(3)]
    return Op(call, operands, {0: 0})


OPS = {
    "folded_memory": _folded_memory(),
    "ssd": _ssd(),
    "gated_delta": _gated_delta(),
    "selective_scan": _selective_scan(),
    "causal_conv1d": _causal_conv1d(),
    "matrix_distance": _matrix_distance(),
    "mixing_matrix": _mixing_matrix(),
    "prefix_mlp": _prefix_mlp(),
    "hash_encode": _hash_encode(),
    "grid_encode": _grid_encode(),
    "slot_memory": _slot_memory(),
}
TRUTH = {op: results(o.call, "naive", o.operands, torch.float64, o.fixed) for op, o in OPS.items()}
FOUND = [
    pytest.param(b.op, b.name, marks=needs_compiler if b.name == "cpp" else ())
    for b in backends()
    if b.name != "mamba_ssm"
]
FAST = [p for p in FOUND if p.values[1] != "naive"]
SLOW_TRITON = [pytest.param(*p.values, marks=[*p.marks, slow] if p.values[1] == "triton" else p.marks) for p in FAST]
GRADED = [p for p in SLOW_TRITON if p.values[0] not in ("slot_memory", "folded_memory")]
"""The others choose entries, and leave gradients to the plain form."""
CPP = [pytest.param(p.values[0], marks=needs_compiler) for p in FOUND if p.values[1] == "cpp"]
TRACED = [p for p in GRADED if p.values[1] != "torch"]
STATES = [p for p in FOUND if OPS[p.values[0]].state is not None]


def takes(op: str, backend: str, dtype: torch.dtype) -> bool:
    found = next(b for b in backends(op) if b.name == backend)
    return found.dtypes is None or dtype in found.dtypes


def test_every_operation_has_a_truth_and_a_plain_form() -> None:
    assert set(OPS) == {b.op for b in backends()}
    for op in OPS:
        assert {"torch", "naive"} <= {b.name for b in backends(op)}
        assert all((KERNELS / folder / "plain.py").exists() for folder in _folders())


def _folders() -> set[str]:
    return {path.parent.name for path in KERNELS.glob("*/naive.py")}


@pytest.mark.parametrize(("op", "backend"), FAST)
def test_odd_lengths(op: str, backend: str) -> None:
    o = OPS[op]
    for dtype, limit in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        if dtype == torch.float32 or backend == "torch":
            values, grads = results(o.call, backend, o.operands, dtype, o.fixed)
            assert {t.dtype for t in values} == {dtype}
            assert_close(values + grads, TRUTH[op][0] + TRUTH[op][1], limit)


@pytest.mark.parametrize(("op", "backend"), FOUND)
def test_no_tokens(op: str, backend: str) -> None:
    o = OPS[op]
    values, _ = results(o.call, backend, o.cut(0, 0), torch.float32, o.fixed)
    wanted, _ = results(o.call, "naive", o.cut(0, 0), torch.float32, o.fixed)
    assert all(torch.equal(a, b) for a, b in zip(values, wanted, strict=True))
    if o.state is not None:
        assert torch.equal(values[1], o.operands[o.state].float())


@pytest.mark.parametrize(
    ("op", "backend", "dtype"),
    [
        pytest.param(*p.values, d, marks=[*p.marks, slow] if (p.values[1], d) == ("triton", torch.float16) else p.marks)
        for p in FOUND
        for d in HALF
    ],
)
def test_only_results_of_half_precision_are_rounded(op: str, backend: str, dtype: torch.dtype) -> None:
    # Triton's interpreter cuts bfloat16 off instead of rounding it.
    o, limit = OPS[op], 5e-3 if (backend, dtype) == ("triton", torch.bfloat16) else HALF[dtype]
    dtypes = o.dtypes(dtype)
    rounded = [t.to(d).double() for t, d in zip(o.operands, dtypes, strict=True)]
    values, grads = results(o.call, backend, o.operands, dtypes, o.fixed)
    wanted, slopes = results(o.call, "naive", rounded, torch.float64, o.fixed)
    assert_close(values + grads, wanted + slopes, limit)
    assert [g.dtype for g in grads] == dtypes[o.fixed :]
    # States and distances are float32, what has the shape of a half-precision input is of its dtype.
    naive, _ = results(o.call, "naive", o.operands, dtypes, o.fixed)
    assert [t.dtype for t in values] == [t.dtype for t in naive]


@pytest.mark.parametrize(("op", "backend"), STATES)
def test_a_carried_state_continues_the_sequence(op: str, backend: str) -> None:
    """Pieces of several lengths, an empty one too, then single tokens; in float64 to its last digits."""
    for dtype, limit in ((torch.float32, 1.5e-6), (torch.float64, 1e-14)):
        if dtype == torch.float32 or backend in ("torch", "naive"):
            _carry(op, backend, dtype, limit)


def _carry(op: str, backend: str, dtype: torch.dtype, limit: float) -> None:
    o = OPS[op]
    assert o.state is not None
    assert o.step is not None
    operands = [t.to(dtype) for t in o.operands]
    dim, ys = o.tokens[0], []
    for start, stop in ((0, 1), (1, 18), (18, 18), (18, 33)):
        y, operands[o.state] = o.call(backend, *o.cut(start, stop, operands))
        ys.append(y)
    for t in range(33, LENGTH):
        token = [x.select(o.tokens[i], 0) if i in o.tokens else x for i, x in enumerate(o.cut(t, t + 1, operands))]
        y, operands[o.state] = o.step(*token)
        ys.append(y.unsqueeze(dim))
    assert_close([torch.cat(ys, dim), operands[o.state]], TRUTH[op][0], limit)


@pytest.mark.parametrize(("op", "backend"), STATES)
def test_packed_documents_equal_separate_calls(op: str, backend: str) -> None:
    """Ids are compared by run: one that comes back is a new document."""
    o, edges = OPS[op], [0, 1, 2, 11, 30, LENGTH]
    assert o.state is not None
    operands = [t.float() for t in o.operands]
    zero = [t if i != o.state else torch.zeros_like(t) for i, t in enumerate(operands)]
    lengths = torch.tensor(edges).diff()
    ids = torch.repeat_interleave(torch.tensor([7, 0, 7, 0, 1]), lengths).expand(BATCH, -1)
    packed, last = o.call(backend, *operands, segment_ids_BL=ids)
    ys = []
    for i, (start, stop) in enumerate(itertools.pairwise(edges)):
        # The state before the first token belongs to the first document.
        y, state = o.call("naive", *o.cut(start, stop, zero if i else operands))
        ys.append(y)
    assert_close([packed, last], [torch.cat(ys, o.tokens[0]), state], 6e-6)


@pytest.mark.parametrize(
    ("op", "backend", "used"),
    [
        pytest.param(*p.values, used, marks=[*p.marks, slow] if (p.values[1], used) == ("triton", 0) else p.marks)
        for p in FAST
        for used in (0, 1)
        if OPS[p.values[0]].state is not None
    ],
)
def test_only_one_of_the_outputs_is_used(op: str, backend: str, used: int) -> None:
    o = OPS[op]

    def call(backend: str | None, *t: Tensor) -> Any:
        return o.call(backend, *t)[used]

    got, want = (results(call, b, o.operands, torch.float32) for b in (backend, "naive"))
    assert_close(got[0] + got[1], want[0] + want[1], 1e-5)


@pytest.mark.parametrize(("op", "backend"), FAST)
def test_strides_do_not_matter(op: str, backend: str) -> None:
    """Operands and upstream gradients in any memory; compiled kernels give the same to the last bit."""
    o, limit = OPS[op], 0.0 if backend == "cpp" else 1e-5

    def call(backend: str | None, *t: Tensor) -> Any:
        found = o.call(backend, *t)
        return [t.transpose(0, -1) for t in ([found] if isinstance(found, Tensor) else found)]

    operands = [t.float() for t in o.operands]
    want = results(call, backend, operands, torch.float32, o.fixed)
    turned = [t.transpose(0, -1).contiguous().transpose(0, -1) for t in operands]
    sliced = [torch.cat([t, t + 1], -1)[..., : t.shape[-1]] for t in operands]
    gaps = [torch.stack([t, t], -1)[..., 0] for t in operands]
    mixed = [t[2 if t[0].dim() == 1 else i % 3] for i, t in enumerate(zip(sliced, turned, gaps, strict=True))]
    for moved in [mixed] if INTERPRETED else [turned, sliced, gaps]:
        assert not moved[0].is_contiguous()
        got = results(call, backend, moved, torch.float32, o.fixed)
        assert_close(got[0] + got[1], want[0] + want[1], limit)


@pytest.mark.parametrize(("op", "backend"), GRADED)
def test_backward_twice_gives_the_same(op: str, backend: str) -> None:
    o = OPS[op]
    leaves = [t.float() if i < o.fixed else t.float().requires_grad_() for i, t in enumerate(o.operands)]
    found = o.call(backend, *leaves)
    loss = (found if isinstance(found, Tensor) else found[0]).sum()
    first = torch.autograd.grad(loss, leaves[o.fixed :], retain_graph=True, allow_unused=True, materialize_grads=True)
    second = torch.autograd.grad(loss, leaves[o.fixed :], allow_unused=True, materialize_grads=True)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(("op", "backend"), [p for p in FAST if p.values[1] != "triton"])
def test_autocast_does_not_reach_the_islands(op: str, backend: str) -> None:
    o = OPS[op]
    want = results(o.call, backend, o.operands, torch.float32, o.fixed)
    with torch.autocast("cpu", torch.bfloat16):
        got = results(o.call, backend, o.operands, torch.float32, o.fixed)
    for a, b in zip(*(t[0] + t[1] for t in (got, want)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("op", OPS)
def test_shapes_without_memory(op: str) -> None:
    found = OPS[op].call(None, *(t.to("meta") for t in OPS[op].operands))
    found = [found] if isinstance(found, Tensor) else found
    assert [t.shape for t in found] == [t.shape for t in TRUTH[op][0]]
    assert all(t.is_meta for t in found)


@pytest.mark.parametrize(
    "op", [pytest.param(op, marks=slow) if op in ("slot_memory", "folded_memory") else op for op in OPS]
)
def test_an_export_records_plain_operators(op: str) -> None:
    class Module(torch.nn.Module):
        def forward(self, *t: Tensor) -> Any:
            found = OPS[op].call(None, *t)
            return found if isinstance(found, Tensor) else tuple(found)

    operands = tuple(t.float() for t in OPS[op].operands)
    with torch.no_grad():
        program = torch.export.export(Module(), operands)
        got = program.module()(*operands)
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert names
    assert not any("xarch" in name for name in names)
    assert_close([got] if isinstance(got, Tensor) else got, TRUTH[op][0], 1e-5)


class Recorded(TorchDispatchMode):
    """Calls of our own operators."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[Any, tuple[Any, ...]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "xarch":
            self.calls[func] = args
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("op", "backend"), [p for p in TRACED if "encode" not in p.values[0]])
def test_operators_keep_their_contract(op: str, backend: str) -> None:
    """As PyTorch's own checks see them; the encodings call theirs under a compiler only (see their tests)."""
    o = OPS[op]
    with Recorded() as recorded:
        results(o.call, backend, o.operands, torch.float32, o.fixed)
    assert {str(f).split(".")[1].rsplit("_", 1)[1] for f in recorded.calls} == {"forward", "backward"}
    for function, args in recorded.calls.items():
        checks: tuple[str, ...] = ("test_schema", "test_faketensor")
        values: list[Any] = [_detached(a) for a in args]
        if "forward" in str(function):
            checks += ("test_autograd_registration",)
            leaves: Any = range(len(values))
            if op == "matrix_distance":
                # The teacher has no gradient.
                leaves = range(2, 6) if backend == "cpp" else range(4)
            elif op != "selective_scan":
                checks += ("test_aot_dispatch_dynamic",)
            for i in leaves:
                if isinstance(values[i], Tensor) and values[i].is_floating_point():
                    values[i].requires_grad_()
        torch.library.opcheck(function, tuple(values), test_utils=checks)


def _detached(value: Any) -> Any:
    if isinstance(value, list):
        return [_detached(v) for v in value]
    return value.detach().clone(memory_format=torch.preserve_format) if isinstance(value, Tensor) else value


@pytest.mark.parametrize(
    ("op", "backend", "dynamic"),
    [pytest.param(*p.values, False, marks=p.marks) for p in TRACED]
    + [pytest.param("ssd", "cpp", True, marks=needs_compiler)]
    + [pytest.param("matrix_distance", "cpp", True, marks=[needs_compiler, slow])],
)
def test_compilers_of_models_see_one_graph(op: str, backend: str, dynamic: bool) -> None:
    o = OPS[op]
    options = {"segment_ids_BL": torch.arange(LENGTH).expand(BATCH, -1) // 20} if o.state is not None else {}

    def call(name: str | None, *t: Tensor) -> Any:
        found = o.call(name, *t, **options)
        return found if isinstance(found, Tensor) else tuple(found)

    # Graphs of one function are counted over all tests, and refused beyond eight.
    torch._dynamo.reset()
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    want, got = (results(f, backend, o.operands, torch.float32, o.fixed) for f in (call, compiled))
    assert all(torch.equal(a, b) for a, b in zip(want[0] + want[1], got[0] + got[1], strict=True))


@pytest.mark.parametrize("op", CPP)
def test_the_compiled_form_runs_by_default_on_cpus_in_float32_only(op: str) -> None:
    cpp = next(b for b in backends(op) if b.name == "cpp")
    assert cpp.refusal("cuda", torch.float32) == "runs on cpu, not on cuda"
    assert select(op, "cpu", torch.float32).name == "cpp"
    assert select(op, "cpu", torch.float64).name == "torch"
    mixed = [t if i else t.float() for i, t in enumerate(OPS[op].operands)]
    values, _ = results(OPS[op].call, None, mixed, [t.dtype for t in mixed], OPS[op].fixed)
    assert values[-1].dtype == (
        torch.float32 if op in ("causal_conv1d", "slot_memory", "folded_memory", "prefix_mlp") else torch.float64
    )
    assert_close(values, TRUTH[op][0], 1e-5)


@pytest.mark.parametrize("op", CPP)
def test_without_a_compiler_the_plain_form_runs(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    choice = next(c for c in describe() if c.op == op)
    assert choice.backend == "torch"
    assert "no-such-compiler" in choice.refused["cpp"]
    with pytest.raises(UsageError, match="no-such-compiler"):
        select(op, "cpu", torch.float32, backend="cpp")
    assert_close(results(OPS[op].call, None, OPS[op].operands, torch.float32, OPS[op].fixed)[0], TRUTH[op][0], 1e-5)


def compiler(folder: Path, functions: str | None) -> str:
    """A compiler that fails, or makes a library of these functions whatever the source."""
    path = folder / "compiler"
    body = "echo 'kernel.cpp:1: error: no such thing' >&2; exit 1"
    if functions is not None:
        (folder / "stub.cpp").write_text(f'extern "C" {{ {functions} }}')
        body = f'for out; do :; done; {shutil.which("g++") or "clang++"} -shared -fPIC {folder}/stub.cpp -o "$out"'
    path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo 1.0 && exit\n{body}\n')
    path.chmod(0o755)
    return str(path)


def functions_of(op: str, value: int) -> str:
    """Stubs of all functions in the source of an operation; they write nothing."""
    folder = {"hash_encode": "hash_encoding", "grid_encode": "grid_encoding"}.get(op, op)
    text = (KERNELS / folder / "kernel.cpp").read_text()
    names = set(re.findall(r"^(?:extern \"C\" )?(?:void|int|int64_t) (\w+)\(", text, re.M))
    # Sizes of blocks must be numbers a caller can divide by.
    return " ".join(f"long {n}() {{ return {8 if n.endswith(('lanes', 'chunk')) else value}; }}" for n in sorted(names))


@pytest.fixture
def other_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def choose(functions: str | None) -> None:
        monkeypatch.setenv("CXX", compiler(tmp_path, functions))
        monkeypatch.setenv(build.CACHE, str(tmp_path / "cache"))
        forget()

    yield choose
    forget()


@pytest.mark.parametrize("fault", ["wrong", "broken"])
@pytest.mark.parametrize("op", CPP)
def test_a_library_that_fails_its_check_is_left_out_with_one_line(op: str, fault: str, other_compiler, caplog) -> None:
    other_compiler(functions_of(op, 0) if fault == "wrong" else None)
    caplog.set_level(logging.WARNING)
    with dispatch.isolated():
        for _ in range(3):
            assert select(op, "cpu", torch.float32).name == "torch"
        (line,) = [r.getMessage() for r in caplog.records]
        assert line.startswith(f"{op}: backend cpp is not used on cpu: ")
        assert ("self-check failed" if fault == "wrong" else "error: no such thing") in line
        with pytest.raises(UsageError, match="cannot run this call"):
            select(op, "cpu", torch.float32, backend="cpp")


@needs_compiler
@pytest.mark.parametrize("op", CPP)
def test_memory_that_runs_out_is_an_error(op: str, other_compiler) -> None:
    assert select(op, "cpu", torch.float32).name == "cpp"
    other_compiler(functions_of(op, 1))
    with pytest.raises(MemoryError, match=r"kernel \w+: no memory"):
        results(OPS[op].call, "cpp", OPS[op].operands, torch.float32, max(2, OPS[op].fixed))


@needs_compiler
def test_memory_that_runs_out_in_a_check_chooses_no_other_backend(monkeypatch) -> None:
    """Another backend gives other bits, and a run would not know why."""

    def check(device: str) -> None:
        raise MemoryError("planted")

    with dispatch.isolated():
        dispatch.register("ssd", "greedy", priority=1000, check=check)(lambda: None)
        with pytest.raises(MemoryError, match="planted"):
            select("ssd", "cpu", torch.float32)


def test_no_exception_leaves_a_function_that_c_calls() -> None:
    """Each returns the status of its work, or a constant; an exception would end the process."""
    for file in sorted(KERNELS.glob("*/kernel.cpp")):
        text = file.read_text()
        exported = text[text.index('extern "C"') :]
        bodies = re.findall(r"^(?:extern \"C\" )?(\w+) (\w+)\([^)]*\) \{(.*?)\}$", exported, re.M | re.S)
        assert bodies, file
        for kind, name, body in bodies:
            guarded = kind == "int" and body.strip().startswith("return parallel::status_of(")
            assert guarded or re.fullmatch(r" return [\w:]+; ", body), f"{file.parent.name}: {name}"
