"""The kernel benchmark times nothing that is wrong, compares like with like, and resumes where it was stopped."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from benchmarks import conversion_speed
from benchmarks.kernels import code, fresh, point, table
from benchmarks.kernels.bars import bars
from benchmarks.kernels.case import Case
from benchmarks.kernels.contender import Contender
from benchmarks.kernels.gate import MOST, compare, compare_rival, limits_of, row_errors
from benchmarks.kernels.ops import operations
from benchmarks.kernels.sweep import cases, given_up
from benchmarks.kernels.work import Work, floor
from benchmarks.store import Store

SMALL = {
    "selective_scan": {"B": 2, "D": 6, "N": 4},
    "ssd": {"B": 2, "H": 4, "P": 8, "G": 2, "N": 8},
    "gated_delta": {"B": 2, "H": 4, "K": 2, "P": 8, "N": 8},
    "causal_conv1d": {"B": 2, "C": 10, "K": 4},
    "matrix_distance": {"B": 2, "H": 4, "K": 2, "E": 8, "G": 4, "N": 8},
}
HEADER: dict[str, Any] = {
    "settings": {"lengths": [8]},
    "code": {"ssd": "a", "causal_conv1d": "b"},
    "machine": {"threads": 1},
    "versions": {"torch": "2"},
}
OPERATIONS = operations()


def small(op: str, length: int = 64) -> Case:
    return Case(op, "small", SMALL[op], length)


def peers(op: str) -> list[Contender]:
    return [c for c in OPERATIONS[op].contenders(small(op)) if c.absent(small(op)) is None]


@pytest.mark.parametrize("op", list(SMALL))
def test_every_contender_that_can_run_here_gives_the_true_result_and_gradients(op: str) -> None:
    """Each in its own layout, so a wrong permutation of inputs, result or gradients would show."""
    operation, case = OPERATIONS[op], small(op, 256)
    truth = point.reference(operation, case, backward=True)
    limits = point.kept_limits(operation, case, True, truth, None)
    assert max(limits.values()) < 1e-4
    for contender in peers(op):
        found, seconds = point.run(operation, contender, point.tensors(operation, case), backward=True)
        verdict = compare(found, truth, limits) if contender.ours else compare_rival(found, truth, "float32")
        # A peer whose gradients overflow is shut out by the gate; a wrong layout would be wrong without overflowing.
        known = verdict.errors if contender.ours else {n: e for n, e in verdict.errors.items() if math.isfinite(e)}
        assert "output" in known, contender.name
        assert all(e <= verdict.limits[n] for n, e in known.items()), (contender.name, verdict.errors)
        assert set(found) == {"output", *operation.leaves}
        assert all(found[n].shape == truth[n].shape for n in truth)
        assert seconds[0] > 0


@pytest.mark.slow
@pytest.mark.parametrize("op", list(SMALL))
def test_a_point_prints_peak_gate_and_time_of_both_passes(op: str, capsys: pytest.CaptureFixture[str]) -> None:
    operation, case = OPERATIONS[op], small(op)
    torch_backend = next(c for c in operation.contenders(case) if c.name == "torch")
    point.measure(operation, torch_backend, case, budget=0.01, seconds=60)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["pass"] for line in lines] == ["forward", "forward_backward"]
    assert set(lines[1]["gate"]["errors"]) == {"output", *operation.leaves}
    for line in lines:
        assert line["gate"]["passed"]
        assert line["gate"]["truth"] == "naive, float64"
        assert 0 < line["cpu_seconds"] <= line["median_cpu_seconds"] <= line["most_cpu_seconds"]
        assert line["repeats"] == point.REPEATS >= 3
        assert line["peak_mib"] >= 0


def test_a_wrong_result_gets_no_time(capsys: pytest.CaptureFixture[str]) -> None:
    operation, case = OPERATIONS["causal_conv1d"], small("causal_conv1d")
    wrong = Contender("wrong", lambda i: operation.ours(i, "torch") * 1.01)
    point.measure(operation, wrong, case, budget=0.01, seconds=60)
    for line in map(json.loads, capsys.readouterr().out.splitlines()):
        assert not line["gate"]["passed"]
        assert "seconds" not in line


def test_a_gradient_that_is_wrong_or_not_a_number_closes_the_gate() -> None:
    truth = {"output": torch.ones(3).double(), "x": torch.ones(3).double()}
    limits = dict.fromkeys(truth, MOST["float32"])
    assert compare({n: t.float() for n, t in truth.items()}, truth, limits).passed
    for bad in (torch.tensor([1.0, 1.0, 1.1]), torch.tensor([1.0, float("nan"), 1.0])):
        assert not compare({"output": torch.ones(3), "x": bad}, truth, limits).passed
        assert not compare_rival({"output": torch.ones(3), "x": bad}, truth, "float32").passed


def test_one_wrong_head_of_one_token_among_thousands_closes_the_gate() -> None:
    truth = {"output": torch.randn(1, 1000, 24, 64, generator=torch.Generator().manual_seed(0)).double()}
    wrong = {"output": truth["output"].float()}
    limits = limits_of(row_errors(wrong, truth), "float32")
    assert limits == {"output": 1e-6}
    wrong["output"][0, 700, 3] *= 1.0001
    assert compare_rival(wrong, truth, "float32").passed
    assert not compare(wrong, truth, limits).passed


def test_a_limit_is_ten_times_the_plain_error_between_two_bounds() -> None:
    assert limits_of({"a": 3e-6, "b": 1e-9, "c": 1.0}, "float32") == {"a": pytest.approx(3e-5), "b": 1e-6, "c": 1e-3}


@pytest.mark.slow
def test_memory_of_a_run_is_seen(capsys: pytest.CaptureFixture[str]) -> None:
    operation, case = OPERATIONS["causal_conv1d"], small("causal_conv1d")

    def greedy(inputs: dict[str, Tensor]) -> Tensor:
        held = torch.ones(64 * 2**18)
        return operation.ours(inputs, "torch") + 0 * held[0]

    point.measure(operation, Contender("greedy", greedy), case, budget=0.01, seconds=60)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(60 <= line["peak_mib"] < 100 for line in lines), lines


def test_the_floor_is_the_slowest_of_the_limits() -> None:
    limits = {
        "copy_bytes_per_s": 10.0,
        "matmul_flops_per_s": 100.0,
        "fma_flops_per_s": 1000.0,
        "exp_per_s": 5.0,
    }
    assert floor(Work(bytes=20, flops=100, exps=1, matmul=True), limits).seconds == 2
    assert floor(Work(bytes=20, flops=100, exps=1, matmul=True), limits).bound == "memory"
    assert floor(Work(bytes=1, flops=400, exps=1, matmul=True), limits).bound == "matmul"
    assert floor(Work(bytes=1, flops=400, exps=1, matmul=False), limits).bound == "fma"
    assert floor(Work(bytes=1, flops=1, exps=50, matmul=False), limits).seconds == 10


@pytest.mark.parametrize("op", list(SMALL))
def test_work_grows_with_length_and_with_the_backward_pass(op: str) -> None:
    works = [
        dataclasses.astuple(OPERATIONS[op].work(small(op, n), backward))[:3]
        for n, backward in ((64, False), (64, True), (128, True))
    ]
    for less, more in itertools.pairwise(works):
        assert all(a <= b for a, b in zip(less, more, strict=True))
        assert less != more


def test_gpu_shapes_are_measured_on_a_gpu_or_when_named() -> None:
    chosen = list(OPERATIONS.values())

    def shapes(device: str, named: list[str]) -> set[str]:
        return {c.shape for _, c in cases(chosen, [64], device, "float32", named)}

    scan = [OPERATIONS["selective_scan"]]
    assert [c.length for _, c in cases(scan, [256, 1024], "cpu", "float32", [], also=True)] == [256, 512, 1024]
    assert {"phi-1.5", "llama-3.2-1b"} <= shapes("cuda", [])
    assert not {"phi-1.5", "llama-3.2-1b"} & shapes("cpu", [])
    assert shapes("cpu", ["phi-1.5"]) == {"phi-1.5"}
    for operation, case in cases(chosen, [8], "cuda", "bfloat16", []):
        made = operation.inputs(case, torch.Generator().manual_seed(0))
        assert set(operation.leaves) <= set(made)
        assert set(operation.keeps_float32) <= set(made)
        assert operation.work(case, True).flops > 0


def find(store: Store, case: Case, contender: str) -> dict[str, Any] | None:
    return store.find(**case.as_json(), contender=contender)


def test_an_interrupted_run_resumes_and_a_foreign_one_does_not(tmp_path: Path) -> None:
    path, case = tmp_path / "r.json", small("ssd", 8)
    store = Store(path, HEADER)
    store.add(case.as_json() | {"contender": "torch", "status": "done"})
    again = Store(path, HEADER)
    assert again.continued
    assert find(again, case, "torch") is not None
    assert find(again, case, "naive") is None
    assert find(again, case.with_length(16), "torch") is None
    assert not Store(path, HEADER, fresh=True).continued
    assert not Store(path, HEADER | {"versions": {"torch": "3"}}).continued


@pytest.mark.parametrize("finished", [False, True])
def test_only_operations_whose_code_changed_are_measured_again(tmp_path: Path, finished: bool) -> None:
    path = tmp_path / "r.json"
    store = Store(path, HEADER)
    for op in ("ssd", "causal_conv1d"):
        store.add(small(op, 8).as_json() | {"contender": "torch", "status": "done"})
    if finished:
        store.finish()
    changed = Store(path, HEADER | {"code": {"ssd": "a", "causal_conv1d": "c"}})
    assert changed.continued
    assert changed.result.header["code"]["causal_conv1d"] == "c"
    assert not changed.result.header["finished"]
    assert find(changed, small("ssd", 8), "torch") is not None
    assert find(changed, small("causal_conv1d", 8), "torch") is None
    assert not Store(path, HEADER | {"code": {"ssd": "x", "causal_conv1d": "y"}}).continued


def test_the_digest_of_an_operation_covers_what_it_runs_and_nothing_of_its_neighbours() -> None:
    files = {op: {str(p) for p in code.files(op)} for op in SMALL}
    for op, found in files.items():
        assert {f"xarch/kernels/{op}/cpp.py", "xarch/kernels/dispatch.py", "xarch/kernels/native/simd.h"} <= found
        assert f"benchmarks/kernels/ops/{op}.py" in found
        assert "benchmarks/kernels/point.py" in found
        assert not any("_encoding" in f or f.endswith(("table.py", "bars.py", "kernels/__init__.py")) for f in found)
    assert "xarch/kernels/matrix_distance/teacher.h" in files["matrix_distance"]
    assert "xarch/kernels/native/gemm.h" in files["ssd"]
    assert "xarch/kernels/native/gemm.h" not in files["causal_conv1d"]
    assert not any("kernels/ssd/" in f for f in files["selective_scan"])
    assert len({code.digest(op) for op in SMALL}) == len(SMALL)


def test_a_contender_over_its_limit_is_not_tried_on_more_tokens(tmp_path: Path) -> None:
    store, case = Store(tmp_path / "r.json", HEADER), small("ssd", 8)
    ended = {"forward_backward": {"at_least": {"seconds": 1.0, "cpu_seconds": 1.0}}}
    store.add(case.as_json() | {"contender": "slow", "status": "over the time limit of 1 s", **ended})
    store.add(case.as_json() | {"contender": "fast", "status": "done", "forward_backward": {"seconds": 1}})
    operation = OPERATIONS["ssd"]
    assert "time limit" in (given_up(operation, store, case.with_length(16), "slow") or "")
    assert given_up(operation, store, case.with_length(4), "slow") is None
    assert given_up(operation, store, case.with_length(16), "fast") is None
    assert given_up(operation, store, case.with_length(operation.promised[0]), "slow") is None


@pytest.mark.slow
def test_a_point_in_its_own_process_reports_a_memory_limit_and_a_time_limit(tmp_path: Path) -> None:
    case = Case("matrix_distance", "small", SMALL["matrix_distance"] | {"H": 64, "G": 64}, 2048)
    tight = fresh.point(case, "naive", fresh.Limits(seconds=60, memory_gib=1, budget=0.01, threads=1), tmp_path)
    assert tight["status"] == "out of memory (limit 1.0 GiB)"
    slow = Case("selective_scan", "small", SMALL["selective_scan"], 8192)
    hasty = fresh.point(slow, "naive", fresh.Limits(seconds=0.05, memory_gib=4, budget=0.01, threads=1), tmp_path)
    assert hasty["status"] == "over the time limit of 0.05 s"
    (ended,) = (v for v in hasty.values() if isinstance(v, dict))
    assert ended["at_least"]["seconds"] >= 0.05
    assert "seconds" not in ended


@pytest.mark.slow
def test_the_truth_of_a_case_is_computed_once_for_all_its_contenders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    operation, case = OPERATIONS["causal_conv1d"], small("causal_conv1d")
    by_name = {c.name: c for c in operation.contenders(case)}
    point.measure(operation, by_name["torch"], case, budget=0.01, seconds=60, truths=tmp_path)
    capsys.readouterr()
    monkeypatch.setattr(point, "reference", lambda *_: pytest.fail("computed again"))
    point.measure(operation, by_name["naive"], case, budget=0.01, seconds=60, truths=tmp_path)
    wrong = Contender("wrong", lambda i: operation.ours(i, "torch") * 1.01)
    point.measure(operation, wrong, case, budget=0.01, seconds=60, truths=tmp_path)
    gates = [json.loads(line)["gate"]["passed"] for line in capsys.readouterr().out.splitlines()]
    assert gates == [True, True, False, False]


def made_point(op: str, shape: str, length: int, seconds: float | None, **more: Any) -> dict[str, Any]:
    both = (
        {}
        if seconds is None
        else {"forward_backward": {"seconds": seconds, "cpu_seconds": seconds, "peak_mib": 10 * seconds}}
    )
    plain = {"contender": "x", "default": False, "ours": False, "family": "", "device": "cpu", "status": "done"}
    return plain | {"op": op, "shape": shape, "length": length, "ours": more.get("default", False)} | more | both


def test_bars_are_ratios_against_the_best_of_each_kind() -> None:
    points = [
        made_point("selective_scan", "mamba1", 2048, 0.5, default=True),
        made_point("selective_scan", "mamba1", 2048, 20.0, family="step by step"),
        made_point("selective_scan", "mamba1", 2048, 2.0, family="pure-PyTorch package", contender="a"),
        made_point("selective_scan", "mamba1", 2048, 1.0, family="pure-PyTorch package", contender="b"),
        made_point("matrix_distance", "smollm2-135m", 4096, 1.0, default=True),
        made_point("matrix_distance", "smollm2-135m", 8192, 2.0, default=True),
        made_point("matrix_distance", "smollm2-135m", 4096, None, family="materialised"),
    ]
    found = bars(points, {})
    # The fastest peer of any kind first; the promised kind second.
    assert [(b.value, b.met) for b in found[:2]] == [(2.0, False), (40.0, True)]
    assert found[0].against == "b"
    assert [(b.value, b.met) for b in found[2:]] == [(None, None), (None, None), (2.0, True)]


def test_a_run_that_was_ended_gives_a_lower_bound_and_never_a_figure() -> None:
    ended = {"status": "over the time limit", "family": "step by step", "contender": "ref"}
    points = [
        made_point("selective_scan", "mamba1", 512, 0.1, default=True),
        made_point("selective_scan", "mamba1", 512, 9.0, family="step by step", contender="ref"),
        made_point("selective_scan", "mamba1", 1024, 0.2, default=True),
        made_point("selective_scan", "mamba1", 1024, 40.0, family="step by step", contender="ref"),
        made_point("selective_scan", "mamba1", 2048, 0.5, default=True),
        made_point("selective_scan", "mamba1", 2048, None, **ended)
        | {"forward_backward": {"at_least": {"seconds": 60.0, "cpu_seconds": 50.0}}},
    ]
    fastest, bound, exact = bars(points, {})
    assert (fastest.value, fastest.at_least, fastest.met) == (None, 100, True)
    assert (bound.value, bound.at_least, bound.met) == (None, 100, True)
    assert (exact.value, exact.met, exact.at_least) == (200, True, None)
    assert "1024 tokens" in exact.what
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table.promises([bound, exact]))
    console.print(table.points("selective_scan", "mamba1", points[-2:]))
    shown = console.export_text()
    assert ">= 100 (did not finish in 50 s)" in shown
    assert "> 50000" in shown
    points[-1]["forward_backward"]["at_least"]["cpu_seconds"] = 5.0
    assert bars(points, {})[1].met is None


def test_a_figure_taken_beside_other_work_is_marked() -> None:
    slow = made_point("ssd", "s", 8, 1.0)
    slow["forward_backward"] |= {"seconds": 1.2, "bound": "matmul"}
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table.points("ssd", "s", [slow, made_point("ssd", "s", 16, 2.0)]))
    shown = console.export_text()
    assert "1000.00*" in shown
    assert "2000.00*" not in shown


def test_conversion_ratios_compare_medians_of_finished_runs_of_one_length() -> None:
    def row(way: str, length: int, speed: float) -> dict[str, Any]:
        stages = {n: {"tokens_per_s": speed, "tokens_per_cpu_s": 2 * speed} for n in conversion_speed.STAGES}
        return {"way": way, "length": length, "status": "done", "peak_mib": 100 * speed} | stages

    rows = [row("xarch", 8, speed) for speed in (10, 1, 12)]
    rows += [row("published recipe", 8, 5), row("published recipe", 16, 1)]
    rows.append({"way": "xarch, plain PyTorch", "length": 8, "status": "failed: x"})
    found = conversion_speed.summary(rows)
    assert [(f["way"], f["length"], f["runs"]) for f in found] == [
        ("xarch", 8, 3),
        ("published recipe", 8, 1),
        ("published recipe", 16, 1),
    ]
    assert found[0]["matrix"]["tokens_per_s"] == {"median": 10, "min": 1, "max": 12}
    (ratio,) = conversion_speed.ratios(found)
    assert ratio["matrix_times_faster"] == ratio["hidden_times_faster_by_cpu_time"] == 2
    assert ratio["times_leaner"] == 0.5


def test_the_conversion_that_is_timed_is_a_valid_configuration() -> None:
    from xarch.config.schema import RunConfig

    config = RunConfig.model_validate(conversion_speed.configuration(512, 4))
    assert list(config.stages) == list(conversion_speed.STAGES)
    assert all(s.units == 2048 for s in config.stages.values())


@pytest.mark.skipif(importlib.util.find_spec("mamba_ssm") is None, reason="a peer of the benchmark is not installed")
def test_the_published_recipe_computes_the_losses_of_xarch_and_moves_every_layer() -> None:
    from benchmarks import published_recipe
    from xarch import Batch
    from xarch.planning.resolve import resolve_target
    from xarch.registry.loader import get_registry
    from xarch_decoder.facts import DecoderFacts
    from xarch_decoder.model.attention import Attention
    from xarch_decoder.student import DecoderStudent

    torch.manual_seed(0)
    facts = DecoderFacts(
        layers=2,
        width=32,
        vocab=64,
        heads=4,
        kv_heads=2,
        head_dim=8,
        mlp_width=48,
        inverse_frequencies=tuple(1e4 ** (-i / 4) for i in range(4)),
        max_positions=128,
    )
    teacher = DecoderStudent(facts, [[Attention]] * 2).as_teacher("made", "made")
    target = resolve_target(get_registry(), "dm2", {})
    student = target.adapter.build(facts, target.options, {}, device=torch.device("cpu"))
    target.adapter.initialise(student, teacher)
    student.module.requires_grad_(False)
    trained = {n: student.module.get_parameter(n).requires_grad_(True) for n in student.param_groups()["mixers"]}
    batch = Batch({"input_ids": torch.randint(0, 64, (1, 64))}, 64)
    assert published_recipe.disagreement(teacher, student, batch) < conversion_speed.AGREEMENT
    adam = torch.optim.AdamW(list(trained.values()), lr=1e-3)
    before = {n: t.detach().clone() for n, t in trained.items()}
    for stage in conversion_speed.STAGES:
        published_recipe.step(teacher, student, adam, batch, stage, 1.0)
    assert all(not torch.equal(before[n], t) for n, t in trained.items())
