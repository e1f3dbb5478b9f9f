"""Figures of exports and of any ONNX file; nothing here asserts how fast the machine is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from tests.export.decoder_export import FACTS, DecoderTarget, decoder_student
from xarch.bench.cases import cases_of
from xarch.bench.graph import example_inputs
from xarch.bench.latency import bench_export, bench_model
from xarch.bench.timing import measure, timing
from xarch.contracts.batch import Batch
from xarch.contracts.bench import BenchCase
from xarch.contracts.export import ExportGraph, Throughput
from xarch.errors import UsageError
from xarch.export.profiles import cpu
from xarch.export.run import export_profile, export_teacher
from xarch.export.session import open_session
from xarch.files.manifest import seal
from xarch_decoder.bench import language_cases
from xarch_decoder.family import DecoderFamily


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bench") / "cpu"
    batch = Batch({"input_ids": torch.arange(60)[None] % FACTS.vocab}, 60)
    export_profile(
        decoder_student(),
        DecoderTarget(),
        cpu,
        options={"prefill": [8]},
        batches=[batch],
        out=out,
        metadata={},
        say=lambda line: None,
    )
    return out


def as_an_export(folder: Path) -> None:
    """Make a teacher's folder look like an export that passed."""
    profile = {"profile": {"name": "cpu", "provider": cpu.provider}, "graphs": {}}
    for name, content in (("parity.json", {"passed": True, "graphs": {}}), ("profile.json", profile)):
        (folder / name).write_text(json.dumps(content))
    seal(folder)


def test_bench_of_a_language_export(export: Path, tmp_path: Path) -> None:
    said: list[str] = []
    result = bench_export(export, threads=1, say=said.append, cases=language_cases)
    assert (result["provider"], result["threads"]) == ("CPUExecutionProvider", 1)
    assert result["machine"]["versions"].keys() == {"xarch", "onnxruntime", "numpy", "python"}
    assert result["graphs"].keys() == {"decode_1", "prefill_8"}
    for figures in result["graphs"].values():
        assert 0 < figures["min_ms"] <= figures["p50_ms"] <= figures["p90_ms"] <= figures["p99_ms"]
        assert figures["nodes_per_provider"].keys() == {"CPUExecutionProvider"}
        assert figures["nodes_per_provider"]["CPUExecutionProvider"] > 20
        assert 0.5 < sum(figures["time_per_operator"].values()) <= 1.001
        # The example of the export, not zeros: five tokens lie in the cache.
        assert figures["inputs"]["key_cache.1"] == [1, 2, 5, 8]
    assert result["graphs"]["decode_1"]["prepacked"] is False
    assert result["graphs"]["prefill_8"]["prepacked"] is True
    cases = result["cases"]
    first = {n: cases[f"first token, prompt of {n}"] for n in (1, 64, 256)}
    assert {n: case["figures"]["calls"] for n, case in first.items()} == {1: 1, 64: 8, 256: 32}
    assert len(DecoderFamily.bench_calls) == len(cases)
    for name, entry in cases.items():
        tokens = 32 if name.startswith("decode") else entry["amount"]
        assert (entry["unit"], entry["amount"]) == ("token", tokens)
        assert entry["per_second"] == pytest.approx(1e3 * tokens / entry["p50_ms"], rel=1e-2)
    per_token = 2 * 2 * 8 * 4
    held = {n: cases[f"decode after {n}"]["figures"]["state_bytes"] for n in (0, 256, 1024, 4096)}
    assert held == {n: 32 * 4 + per_token * n for n in (0, 256, 1024, 4096)}
    assert any("token/s" in line for line in said)


@pytest.mark.slow
def test_procedures_of_student_and_teacher_are_compared_by_name(tmp_path: Path) -> None:
    """encdec W10: a procedure over several graphs (an encoder, then a loop) is timed, and beside the teacher's."""
    for name, times in (("cpu", 1), ("teacher", 60)):
        export_teacher([worked(times, 500)], cpu, tmp_path / name, print)
    as_an_export(tmp_path / "cpu")
    x = np.ones((500, 64), np.float32)

    def cases(graphs: Sequence[str], folder: Path) -> Iterator[BenchCase]:
        assert list(graphs) == ["double"]
        yield BenchCase("twice", "row", 1000, ("double",), lambda call: [call("double", {"x": x}) for _ in range(2)])
        yield BenchCase(f"only {folder.name}", "row", 500, ("double",), lambda call: call("double", {"x": x}))

    result = bench_export(
        tmp_path / "cpu",
        threads=1,
        say=print,
        cases=cases,
        teacher=tmp_path / "teacher",
        teacher_cases=cases,
    )
    assert result["cases"].keys() == {"twice", "only cpu"}
    assert result["teacher"]["cases"].keys() == {"twice"}
    assert result["teacher"]["speed_up"]["twice"] > 2
    assert (result["dtype"], result["teacher"]["dtype"]) == ("float32", "float32")


def test_cases_of_a_target_come_before_those_of_its_family() -> None:
    class Own:
        def bench_cases(self, graphs: Sequence[str], folder: Path) -> list[BenchCase] | None:
            return None if folder.name == "family" else [BenchCase("own", "row", 1, (), lambda call: None)]

    class Family(Own):
        def bench_cases(self, graphs: Sequence[str], folder: Path) -> list[BenchCase]:
            return [BenchCase("of the family", "row", 1, (), lambda call: None)]

    class Registry:
        def get(self, kind: str, name: str) -> str:
            return kind

        def create(self, kind: str, name: str) -> Any:
            return {"target": Own, "family": Family}[kind]()

        def guard(self, spec: str, during: str) -> Any:
            return nullcontext()

    cases = cases_of(Registry(), "rows", "plugin:mine")  # type: ignore[arg-type]
    assert [case.name for case in cases([], Path("target"))] == ["own"]
    assert [case.name for case in cases([], Path("family"))] == ["of the family"]


class Doubling(nn.Module):
    def __init__(self, times: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(64), requires_grad=False)
        self.times = times

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(self.times):
            x = torch.relu(x @ self.weight)
        return x


def worked(times: int, rows: int) -> ExportGraph:
    return ExportGraph(
        "double",
        Doubling(times),
        {"x": torch.ones(3, 64)},
        ["y"],
        {"x": {0: "rows"}},
        throughput=Throughput("rows", rows, {"rows": rows}),
    )


def test_speeds_are_told_by_the_unit_and_beside_the_teachers(tmp_path: Path) -> None:
    """The teacher does forty times the arithmetic on half the rows a call."""
    export_teacher([worked(1, 2000)], cpu, tmp_path / "cpu", print)
    as_an_export(tmp_path / "cpu")
    export_teacher([worked(40, 1000)], cpu, tmp_path / "teacher", print)
    said: list[str] = []
    result = bench_export(tmp_path / "cpu", threads=1, say=said.append, teacher=tmp_path / "teacher")
    own, other = result["graphs"]["double"], result["teacher"]["graphs"]["double"]
    assert (own["inputs"], other["inputs"]) == ({"x": [2000, 64]}, {"x": [1000, 64]})
    for figures, rows in ((own, 2000), (other, 1000)):
        rate = figures["throughput"]
        assert (rate["unit"], rate["per_call"]) == ("rows", rows)
        assert rate["per_second"] == pytest.approx(1e3 * rows / figures["p50_ms"], rel=1e-3)
    expected = own["throughput"]["per_second"] / other["throughput"]["per_second"]
    assert result["teacher"]["speed_up"] == {"double": pytest.approx(expected, rel=1e-2)}
    assert any("rows/s" in line for line in said)


def test_a_teacher_without_graphs_says_why(export: Path, tmp_path: Path) -> None:
    (tmp_path / "absent.json").write_text('{"reason": "it needs BitwiseXor"}')
    seal(tmp_path)
    result = bench_export(export, threads=1, say=print, teacher=tmp_path)
    assert result["teacher"] == {"absent": "it needs BitwiseXor"}


def test_bench_refuses_a_rejected_export(export: Path, tmp_path: Path) -> None:
    (tmp_path / "parity.json").write_text('{"passed": false, "graphs": {}}')
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UsageError, match="no export that passed"):
            bench_export(folder, threads=1, say=print)


@pytest.mark.parametrize("name", ["decode_1.onnx", "student.onnx.data", "profile.json", "examples/decode_1.npz"])
def test_bench_names_a_file_with_a_flipped_bit(name: str, export: Path, tmp_path: Path) -> None:
    shutil.copytree(export, tmp_path / "cpu")
    file = tmp_path / "cpu" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    with pytest.raises(UsageError, match=f"{name} is damaged"):
        bench_export(tmp_path / "cpu", threads=1, say=print)


@pytest.mark.slow
def test_bench_of_any_file(product: Path) -> None:
    result = bench_model(product, threads=1)
    figures = result["graphs"]["product"]
    assert figures["inputs"] == {"x": [1, 8]}
    assert figures["nodes_per_provider"] == {"CPUExecutionProvider": 2}
    assert figures["p50_ms"] > 0


def test_a_file_that_takes_too_long_is_stopped(product: Path) -> None:
    with pytest.raises(UsageError, match="exceeded its time limit"):
        bench_model(product, threads=1, seconds=0.01)


@pytest.mark.slow
def test_a_file_the_runtime_cannot_run(tmp_path: Path) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy")
    graph = helper.make_graph([helper.make_node("NoSuchOperator", ["x"], ["y"])], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UsageError, match=r"m\.onnx cannot be measured: .*NoSuchOperator"):
        bench_model(tmp_path / "m.onnx")


def test_a_file_with_data_outside_its_folder_is_not_opened(product: Path, tmp_path: Path) -> None:
    model = onnx.load(product)
    (tmp_path / "secret").write_bytes(b"\0" * 128)
    (tmp_path / "inside").mkdir()
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "../secret", "offset": "0", "length": "128"}.items():
        weight.external_data.add(key=key, value=value)
    (tmp_path / "inside" / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UsageError, match="outside the folder"):
        bench_model(tmp_path / "inside" / "m.onnx")


def test_example_inputs_use_what_is_given(product: Path) -> None:
    session = open_session(product, "CPUExecutionProvider", threads=1)
    given = np.ones((5, 8), np.float32)
    assert example_inputs(session, {"x": given, "other": given}).keys() == {"x"}
    assert example_inputs(session, {"x": given})["x"] is given
    first, second = (example_inputs(session, {})["x"] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_measure_warms_up_and_counts() -> None:
    calls: list[int] = []
    found = measure(lambda: calls.append(1), warm_up=2, runs=7)
    assert (found.runs, len(calls)) == (7, 9)
    assert measure(lambda: None, runs=50, seconds=0).runs == 3


def test_percentiles() -> None:
    found = timing([float(i) for i in range(1, 102)], [2.0, 3.0, 4.0])
    assert (found.p50_ms, found.p90_ms, found.p99_ms, found.min_ms, found.runs) == (51, 91, 100, 1, 101)
    assert found.cpu_ms == 3
