"""Memory students: budgets, allocation, what they compute, and parity of their graphs over many steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.plugins.mohawk.mohawk_models import make_teacher, tiny_facts
from xarch import PlanError, UsageError
from xarch.export import onnx_export
from xarch.export.onnx_export import to_onnx
from xarch.export.profiles import cpu, openvino
from xarch_decoder.bench import LanguageGraphs
from xarch_decoder.export import DecoderExport
from xarch_decoder.model.mixer import Mixer
from xarch_decoder.testing import token_batch
from xarch_memory.allocate import allocated, predicted
from xarch_memory.options import MemoryOptions, Sizes
from xarch_memory.parity import memory_parity
from xarch_memory.student import MemoryStudent
from xarch_memory.target import MemoryTarget

CPU = torch.device("cpu")
FACTS = tiny_facts()


def build(decisions: Any = None, **options: Any) -> MemoryStudent:
    return MemoryTarget().build(FACTS, MemoryOptions(**options), decisions or {}, device=CPU)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_the_state_stays_within_its_budget(precision, share):
    student = build(bytes_a_layer=9000, precision=precision, window_share=share, fold=16)
    used = student.state_bytes()
    assert set(used) == {0, 1, 2}
    assert all(8700 < n <= 9000 for n in used.values())
    states = student.decoder.initial_states()
    assert [sum(t.numel() * t.element_size() for t in state) for state in states] == list(used.values())


def test_budgets_for_all_layers_together_and_by_default():
    assert build(bytes_in_all=18000, layers={"replace": [0, 2]}).state_bytes().keys() == {0, 2}
    assert sum(build(bytes_in_all=18000, layers={"replace": [0, 2]}).state_bytes().values()) <= 18000
    # 109 tokens of two key/value heads of 8 in float32.
    assert build().budget == 3 * 109 * 2 * 64
    with pytest.raises(ValueError, match="only one of"):
        MemoryOptions(bytes_a_layer=1, bytes_in_all=2)
    with pytest.raises(PlanError, match="a window of one fold and one slot need"):
        build(bytes_a_layer=100)


def test_the_plan_says_what_the_state_costs():
    traits = build(bytes_a_layer=9000, layers={"replace": [0, 2]}).traits()
    assert traits["state"].endswith("kB a layer in 2 of 3 layers, at any context")
    # Two key/value heads of 8: 64 bytes a token in float16.
    assert 100 < int(traits["break-even"].split()[0]) <= 9000 // 64


def test_a_memory_that_holds_every_token_is_the_teacher():
    teacher, student = make_teacher(FACTS), build(bytes_a_layer=60_000, precision="float32")
    MemoryTarget().initialise(student, teacher)
    batch = token_batch(FACTS.vocab, 2, 60)
    wanted, found = (m.collect(batch, ["logits"])["logits"].full() for m in (teacher, student))
    assert torch.allclose(wanted, found, atol=1e-5)


def test_a_memory_student_is_a_teacher_with_an_attentions_weights():
    teacher, student = make_teacher(FACTS), build(bytes_a_layer=9000)
    MemoryTarget().initialise(student, teacher)
    again = student.as_teacher("run:here", "0")
    assert again.weights().keys() == teacher.weights().keys()
    other = build(bytes_a_layer=12000)
    MemoryTarget().initialise(other, again)
    assert all(torch.equal(a, b) for a, b in zip(teacher.weights().values(), again.weights().values(), strict=True))


def test_decisions_are_those_of_the_built_student():
    entries = {"0": [40, 50], "1": [37, 37], "2": [38, 60]}
    later, built = build(bytes_a_layer=9000), build({"entries": entries}, bytes_a_layer=9000)
    later.decide({"entries": entries})
    assert later.layouts() == built.layouts()
    assert [w + m for w, m in zip(built.layouts()[2].windows, built.layouts()[2].slots, strict=True)] == [38, 60]
    with pytest.raises(PlanError, match="names layers"):
        later.decide({"entries": {"0": [40, 50]}})
    with pytest.raises(ValueError, match="about layers and entries only"):
        later.decide({"heads": [0]})


def test_layers_left_to_a_probe_keep_attention_and_the_budget_is_that_of_the_chosen():
    student = build(bytes_a_layer=9000, layers={"choose": "kl", "count": 1})
    MemoryTarget().initialise(student, make_teacher(FACTS))
    assert student.open_layers == (0, 1, 2)
    with pytest.raises(PlanError, match="no stage chose"):
        student.finish()
    decisions = {"layers": [1], "entries": {"1": [40, 45]}}
    student.decide({"layers": [1]})
    assert (student.replaced, student.open_layers, student.budget) == ((1,), (), 9000)
    student.decide({"entries": decisions["entries"]})
    student.finish()
    again = build(decisions, bytes_a_layer=9000, layers={"choose": "kl", "count": 1})
    assert (again.layouts(), again.budget) == (student.layouts(), student.budget)
    again.module.load_state_dict(student.module.state_dict())


def test_bytes_go_where_the_error_falls():
    sizes = Sizes(MemoryOptions(sinks=0, fold=1), FACTS)
    measured = [4, 8, 16, 32]
    flat, steep = np.full((1, 4), 1e-4), np.array([[1.0, 0.5, 0.1, 0.01]])
    budget = 2 * sizes.bytes(16)
    entries = allocated({0: flat, 1: steep}, measured, sizes, budget)
    assert entries[0][0] == 4
    assert entries[1][0] > 20
    assert sizes.bytes(entries[0][0]) + sizes.bytes(entries[1][0]) <= budget
    uniform = {0: [16], 1: [16]}
    table = {0: flat, 1: steep}
    assert predicted(table, measured, entries) < predicted(table, measured, uniform)


def parity(student: MemoryStudent, folder: Path, steps: int, prefill: list[int]) -> None:
    import onnx_ir
    import onnxruntime

    batches = [token_batch(FACTS.vocab, 2, 300)]
    graphs = MemoryTarget().export_graphs(student, cpu, DecoderExport(prefill=prefill))
    sessions = {}
    for graph in graphs:
        onnx_ir.save(to_onnx(graph, cpu), folder / f"{graph.name}.onnx")
        session = onnxruntime.InferenceSession(folder / f"{graph.name}.onnx")
        sessions[graph.name] = (session, list(graph.inputs), graph.outputs)

    def call(name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        session, names, outputs = sessions[name]
        given = {i.name: inputs[n] for i, n in zip(session.get_inputs(), names, strict=True)}
        return dict(zip(outputs, session.run(None, given), strict=True))

    cases = list(memory_parity(student, graphs, batches, steps))
    assert {case.shape["past"] > 0 for case in cases} == {True, False}
    for case in cases:
        found = case.drive(call)
        if "logits" not in found:
            assert "tokens" in case.expected
            for name, wanted in case.expected.items():
                assert np.abs(found[name] - wanted).max() < 0.02 * np.abs(wanted).max()
            continue
        found = found["logits"]
        wanted = case.expected.get("logits")
        if wanted is None:
            wanted = student.decoder(case.batch["input_ids"])[:, case.positions["logits"][1]].detach().numpy()
        assert case.measures[0].holds(case.measures[0].value({"logits": found}, {"logits": wanted})), case.shape
        assert np.abs(found - wanted).max() < 0.02 * np.abs(wanted).max()


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "prefill"), [(24, [8]), (2048, [])])
def test_graphs_step_as_the_student_reads(tmp_path, monkeypatch, steps, prefill):
    translated, before = [], onnx_export._translate
    monkeypatch.setattr(onnx_export, "_recent", {})
    monkeypatch.setattr(
        onnx_export, "_translate", lambda graph, profile: (translated.append(graph.name), before(graph, profile))[1]
    )
    facts = tiny_facts(layers=2)
    entries = {"entries": {"0": [19, 24], "1": [30, 16]}}
    student = MemoryTarget().build(facts, MemoryOptions(bytes_a_layer=4000, fold=8), entries, device=CPU)
    MemoryTarget().initialise(student, make_teacher(facts))
    student.module.eval().requires_grad_(False)
    parity(student, tmp_path, steps, prefill)
    # Embedding, one layer for both, head; and the fold of one layer for both.
    assert len(translated) == 3 * (1 + len(prefill)) + 1


def test_every_profile_has_a_prefill_graph_of_whole_folds():
    student = build(bytes_a_layer=9000)
    for profile in (cpu, openvino):
        names = [g.name for g in MemoryTarget().export_graphs(student, profile, DecoderExport())]
        assert names == ["decode_1", "prefill_32", "fold"]
    with pytest.raises(PlanError, match=r"prefill \[64, 48\], but this student folds its memory after 32 tokens"):
        MemoryTarget().export_graphs(student, cpu, DecoderExport(prefill=[48, 64]))


def test_too_few_entries_are_refused():
    with pytest.raises(UsageError, match="windows >= fold"):
        build({"entries": {"0": [40, 20], "1": [40, 40], "2": [40, 40]}}, bytes_a_layer=9000)


def test_graphs_of_another_version_are_named():
    student = build(bytes_a_layer=9000)
    graphs = MemoryTarget().export_graphs(student, cpu, DecoderExport(prefill=[]))
    for graph in graphs:
        graph.metadata.pop("reads")
    with pytest.raises(UsageError, match="'decode_1' does not say which states it reads"):
        LanguageGraphs.of(graphs)


def test_a_mixer_that_announces_folds_has_to_make_them():
    mixer = build(bytes_a_layer=9000).memory(0)
    with pytest.raises(PlanError, match="needs folds every 32 tokens, and makes none"):
        Mixer.fold(mixer, torch.zeros(1), ())


def test_other_students_are_refused():
    from xarch_memory.allocate import Allocate

    class Context:
        student = None

    with pytest.raises(UsageError, match="only students of target memory"):
        Allocate().run(Context())  # type: ignore[arg-type]


def test_sequences_read_together_are_read_alone():
    student = build({"entries": {"0": [40, 48], "1": [37, 40], "2": [60, 40]}}, bytes_a_layer=9000)
    ids = token_batch(FACTS.vocab, 2, 130)["input_ids"]
    with torch.no_grad():
        together, _ = student.decoder.advance(ids, 0, student.decoder.initial_states(2))
        alone = [student.decoder.advance(row[None], 0, student.decoder.initial_states())[0] for row in ids]
    assert torch.allclose(together, torch.cat(alone), rtol=0, atol=1e-4)
