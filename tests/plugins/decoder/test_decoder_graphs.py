"""Exported decoders in onnxruntime: torch's exporter alone, then numpy and a session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from tests.plugins.decoder.decoder_models import EMA, difference, make_student, tiny_facts, tokens
from xarch.config.validation import validated
from xarch.contracts.export import ExportGraph, Profile
from xarch.errors import PlanError, UsageError
from xarch.export.proof import Prover
from xarch_decoder.export import DecoderExport, decoder_graphs
from xarch_decoder.model.attention import Attention
from xarch_decoder.parity import decoder_parity
from xarch_decoder.student import DecoderStudent

FREE = Profile("test-free", "CPUExecutionProvider", 20, 9)
STATIC = Profile("test-static", "CPUExecutionProvider", 20, 9, static=True)


def export(graph: ExportGraph, folder: Path) -> onnx.ModelProto:
    """The plain exporter, without any of xarch's own rewriting."""
    past = torch.export.Dim("past", min=0, max=2**20)
    shapes = tuple({axis: past for axis in graph.dynamic.get(name, {})} or None for name in graph.inputs)
    program = torch.onnx.export(
        graph.module,
        tuple(graph.inputs.values()),
        dynamo=True,
        opset_version=20,
        input_names=list(graph.inputs),
        output_names=list(graph.outputs),
        dynamic_shapes=(shapes,),
        verbose=False,
    )
    program.save(folder / f"{graph.name}.onnx")
    model = onnx.load(folder / f"{graph.name}.onnx")
    onnx.checker.check_model(model, full_check=True)
    return model


class Runtime:
    """Exports every graph and calls them by name."""

    def __init__(self, graphs: list[ExportGraph], folder: Path) -> None:
        self.models = {graph.name: export(graph, folder) for graph in graphs}
        self.sessions = {name: ort.InferenceSession(folder / f"{name}.onnx") for name in self.models}
        self.calls: list[str] = []

    def __call__(self, name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.calls.append(name)
        session = self.sessions[name]
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(None, inputs), strict=True))


def drive(student: DecoderStudent, profile: Profile, folder: Path, **options: Any) -> Runtime:
    """Export, run every parity case, and assert on each of its outputs."""
    graphs = decoder_graphs(student, profile, DecoderExport(**options))
    runtime = Runtime(graphs, folder)
    check(student, graphs, runtime, options["prefill"][0])
    return runtime


def check(student: DecoderStudent, graphs: list[ExportGraph], runtime: Runtime, size: int) -> None:
    seen = []
    prover = Prover(student, graphs, [])
    for own in decoder_parity(student, graphs, [tokens(student.facts, 2, 90)]):
        case = prover.complete(own).case
        got = case.drive(runtime)
        assert got.keys() == case.expected.keys()
        for name, value in case.expected.items():
            assert got[name].shape == value.shape, name
            assert got[name].dtype == value.dtype, name
            assert difference(torch.tensor(got[name]), torch.tensor(value)) <= 1e-5, (case.shape, name)
        assert case.top1 == "logits"
        seen.append((case.graph, case.shape["tokens"], case.shape["calls"]))
    assert seen == [
        ("decode_1", 1, 1),
        ("decode_1", size - 1, size - 1),
        (f"prefill_{size}", size + 13, sum(divmod(size + 13, size))),
        (f"prefill_{size}", 2 * size + 2, 4),
        ("decode_1", 64, 64),
    ]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[DecoderStudent, Runtime]:
    """Attention with caches of any length and a vocabulary that no other size equals, exported once."""
    student = make_student(tiny_facts(vocab=997))
    return student, Runtime(decoder_graphs(student, FREE, DecoderExport(prefill=[16])), tmp_path_factory.mktemp("onnx"))


def operators(runtime: Runtime) -> set[str]:
    return {node.op_type for model in runtime.models.values() for node in model.graph.node}


NEVER = {"Loop", "Scan", "If", "Einsum", "CumSum", "ScatterND", "ScatterElements"}
VARIED = {"windows": (6, None), "softcap": 3.0, "qk_norm": True, "tied": False}


@pytest.mark.slow
def test_attention_student(plain: tuple[DecoderStudent, Runtime]) -> None:
    student, runtime = plain
    check(student, decoder_graphs(student, FREE, DecoderExport(prefill=[16])), runtime, 16)
    assert not operators(runtime) & NEVER


@pytest.mark.slow
def test_attention_student_with_windows(tmp_path: Path) -> None:
    assert not operators(drive(make_student(tiny_facts(**VARIED)), FREE, tmp_path, prefill=[16])) & NEVER


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, VARIED], ids=["plain", "window-softcap"])
def test_attention_student_with_static_shapes(changes: dict[str, Any], tmp_path: Path) -> None:
    runtime = drive(make_student(tiny_facts(**changes)), STATIC, tmp_path, prefill=[16])
    assert not operators(runtime) & (NEVER | {"Range", "Shape"})
    for model in runtime.models.values():
        for value in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
            dims = value.type.tensor_type.shape.dim
            assert len(dims) <= 4, value.name
            assert all(d.HasField("dim_value") for d in dims), value.name


@pytest.mark.slow
@pytest.mark.parametrize("profile", [pytest.param(FREE, id="free"), pytest.param(STATIC, id="static")])
def test_third_party_mixer_gets_states_export_and_parity(profile: Profile, tmp_path: Path) -> None:
    student = make_student(tiny_facts(), EMA, Attention)
    runtime = drive(student, profile, tmp_path, prefill=[8])
    inputs = [value.name for value in runtime.models["decode_1"].graph.input]
    assert inputs == ["input_ids", "position", "average.0", "key_cache.1", "value_cache.1"]
    outputs = [value.name for value in runtime.models["prefill_8"].graph.output]
    assert outputs == ["logits", "present_average.0", "present_key_cache.1", "present_value_cache.1"]


@pytest.mark.slow
def test_student_that_does_not_read_positions_keeps_the_interface(tmp_path: Path) -> None:
    runtime = drive(make_student(tiny_facts(), EMA, EMA), STATIC, tmp_path, prefill=[8])
    inputs = [value.name for value in runtime.models["decode_1"].graph.input]
    assert inputs == ["input_ids", "position", "average.0", "average.1"]


@pytest.mark.slow
@pytest.mark.parametrize("length", [0, 1, 2, 5, 77])
def test_caches_of_any_length(length: int, plain: tuple[DecoderStudent, Runtime]) -> None:
    student, runtime = plain
    ids = tokens(student.facts, 1, length + 16)["input_ids"]
    with torch.no_grad():
        states = student.decoder.initial_states()
        if length:
            _, states = student.decoder.advance(ids[:, :length], 0, states)
        whole = student.decoder(ids)
    names = [name for name in decoder_graphs(student, FREE, DecoderExport(prefill=[16]))[0].inputs if "cache" in name]
    held = dict(zip(names, (t.numpy() for s in states for t in s), strict=True))
    for name, count in (("decode_1", 1), ("prefill_16", 16)):
        window = ids[:, length : length + count].numpy()
        out = runtime(name, {"input_ids": window, "position": np.array([length]), **held})
        last = length + count
        assert difference(torch.tensor(out["logits"]), whole[:, last - 1 : last]) <= 1e-5
        assert out["present_key_cache.0"].shape == (1, 2, length + count, 8)


@pytest.mark.slow
def test_tied_embedding_is_stored_once(plain: tuple[DecoderStudent, Runtime]) -> None:
    for model in plain[1].models.values():
        big = [t for t in model.graph.initializer if 997 in t.dims]
        assert [list(t.dims) for t in big] == [[997, 32]]
        readers = sorted(node.op_type for node in model.graph.node if big[0].name in node.input)
        assert readers == ["Gather", "Gemm"]
        assert not any(len(t.dims) == 2 and 997 in t.dims[1:] for t in model.graph.initializer)


def test_metadata_is_all_a_program_needs() -> None:
    facts = tiny_facts()
    graphs = decoder_graphs(make_student(facts, EMA, Attention), FREE, DecoderExport())
    assert [g.name for g in graphs] == ["decode_1", "prefill_64"]
    data = graphs[1].metadata
    assert (data["tokens"], data["prefill"], data["context"], data["vocab"]) == (64, [64], None, 61)
    assert (data["bos"], data["eos"], data["mixers"]) == (1, [2], ["ema", "attention"])
    assert data["states"][0] == {
        "name": "average.0",
        "present": "present_average.0",
        "shape": [1, 32],
        "fill": 0.0,
        "dtype": "float32",
        "tokens_axis": None,
    }
    assert data["states"][1]["shape"] == [1, 2, 0, 8]
    assert data["states"][1]["tokens_axis"] == 2
    fixed = decoder_graphs(make_student(facts, EMA, Attention), STATIC, DecoderExport(context=96))[0]
    assert fixed.metadata["context"] == 96
    assert fixed.metadata["states"][1]["shape"] == [1, 2, 96, 8]
    assert fixed.dynamic == {}
    assert graphs[0].dynamic == {"key_cache.1": {2: "past"}, "value_cache.1": {2: "past"}}


def test_graphs_can_be_planned_without_weights() -> None:
    student = make_student(tiny_facts(), EMA, Attention, device="meta")
    for profile in (FREE, STATIC):
        for logits in ("last", "all"):
            for graph in decoder_graphs(student, profile, DecoderExport(prefill=[8], logits=logits)):
                assert all(t.is_meta for t in graph.inputs.values())
                outputs = graph.module(*graph.inputs.values())
                assert outputs[0].shape == (1, 1 if logits == "last" else graph.metadata["tokens"], 61)


def test_decode_alone_and_several_sizes() -> None:
    student = make_student(tiny_facts())
    assert [g.name for g in decoder_graphs(student, FREE, DecoderExport(prefill=[]))] == ["decode_1"]
    graphs = decoder_graphs(student, FREE, DecoderExport(prefill=[8, 32]))
    assert [g.name for g in graphs] == ["decode_1", "prefill_32", "prefill_8"]
    cases = [(c.graph, c.shape["tokens"]) for c in decoder_parity(student, graphs, [tokens(student.facts, 1, 50)])]
    assert ("prefill_32", 45) in cases
    assert ("prefill_8", 18) in cases
    only = list(decoder_parity(student, graphs[:1], [tokens(student.facts, 1, 50)]))
    assert {c.graph for c in only} == {"decode_1"}
    assert 64 in {c.shape["tokens"] for c in only}


def test_wrong_options() -> None:
    student = make_student(tiny_facts())
    with pytest.raises(UsageError, match=r"export\.options\.prefil"):
        validated(DecoderExport, {"prefil": [64]}, "export.options")
    with pytest.raises(PlanError, match=r"prefill \[1\]"):
        decoder_graphs(student, FREE, DecoderExport(prefill=[1]))
    with pytest.raises(PlanError, match="between 2 and 32"):
        decoder_graphs(student, STATIC, DecoderExport(prefill=[64], context=32))
    full = decoder_graphs(student, STATIC, DecoderExport(prefill=[32], context=32))[1]
    assert full.inputs["position"].tolist() == [0], "the example must fit the buffer"
