"""The whole export of a student: files, sharing, metadata, and what is left after a failure."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from tests.export.export_models import (
    VOCAB,
    WIDTH,
    Recurrent,
    RecurrentTarget,
    WrongWhenExported,
    graph,
    held_out,
    make_student,
)
from xarch.contracts.export import Profile
from xarch.engine.signals import StopRequest
from xarch.errors import ParityError, PlanError, StopSignal
from xarch.export.profiles import cpu
from xarch.export.run import ExportResult, export_profile

Exported = tuple[Path, ExportResult]


def export(student: Any, out: Path, profile: Profile = cpu, **options: Any) -> ExportResult:
    return export_profile(
        student,
        RecurrentTarget(),
        profile,
        options=options,
        batches=held_out(),
        out=out,
        metadata={},
        say=lambda line: None,
    )


def test_files_of_an_export(exported: Exported) -> None:
    out, result = exported
    assert {path.name for path in out.iterdir()} == {
        "step_1.onnx",
        "step_4.onnx",
        "student.onnx.data",
        "parity.json",
        "profile.json",
        "manifest.json",
        "examples",
    }
    assert result.graphs == ["step_1", "step_4"]
    assert json.loads((out / "parity.json").read_text()) == result.parity
    assert json.loads((out / "profile.json").read_text()) == result.profile
    assert not [path for path in out.parent.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("step", ["trace", "externalise", "check_file", "measure_parity"])
def test_a_signal_stops_an_export_in_the_middle_and_leaves_nothing(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the tracing of torch's exporter too, where a library's own handlers are on the way up."""
    student = make_student()

    def stopped(*_: Any, **__: Any) -> None:
        signal.raise_signal(signal.SIGTERM)

    if step == "trace":
        forward = torch.nn.Embedding.forward
        monkeypatch.setattr(torch.nn.Embedding, "forward", lambda *given: (stopped(), forward(*given))[1])
    else:
        monkeypatch.setattr(f"xarch.export.run.{step}", stopped)
    with StopRequest(), pytest.raises(StopSignal):
        export(student, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_graphs_share_one_copy_of_the_weights_and_the_tied_embedding(exported: Exported) -> None:
    out, result = exported
    embedding, mix = 4 * VOCAB * WIDTH, 4 * WIDTH * WIDTH
    size = (out / "student.onnx.data").stat().st_size
    assert embedding + mix <= size <= embedding + mix + 2 * 4096
    assert result.profile["weights"] == {"file": "student.onnx.data", "bytes": size, "shared_bytes": embedding + mix}
    assert all((out / f"{name}.onnx").stat().st_size < 20_000 for name in result.graphs)


def test_parity_json_has_the_contract_shape(exported: Exported) -> None:
    parity = exported[1].parity
    assert parity["passed"] is True
    assert parity["limits"]["rel_l2"] == 1e-4
    for entry in parity["graphs"].values():
        assert {(case["shape"]["past"], case["optimised"]) for case in entry["cases"]} == {
            (past, optimised) for past in (5, 13) for optimised in (True, False)
        }
        assert entry["samples"] == [1]
        assert entry["proof"]["present_h"] == {"tap": "h", "by": "held-out batches"}
        assert entry["top1_agreement"] == 1.0
        for case in entry["cases"]:
            assert case["outputs"].keys() == {"logits", "present_h", "present_cache"}
            for figures in case["outputs"].values():
                assert figures.keys() == {"max_abs", "rel_l2", "cosine"}
                assert figures["rel_l2"] < 1e-5


def test_profile_json_says_what_the_graphs_need(exported: Exported) -> None:
    profile = exported[1].profile
    assert profile["profile"]["name"] == "cpu"
    for entry in profile["graphs"].values():
        assert (entry["opset"], entry["ir"]) == (18, 8)
        assert entry["ops"]["Gemm"] == 2
        assert "MatMul" in entry["ops"]
    assert profile["bytes"] == sum(p.stat().st_size for p in exported[0].iterdir() if ".onnx" in p.name)


def test_metadata_is_enough_to_run_a_graph(exported: Exported) -> None:
    session = ort.InferenceSession(exported[0] / "step_1.onnx")
    facts = session.get_modelmeta().custom_metadata_map
    assert facts["xarch.graph"] == "step_1"
    assert facts["xarch.tokens"] == "1"
    assert facts["xarch.teacher"] == "hf:tiny"
    assert json.loads(facts["xarch.normalisation"]) == {"mean": 0.5}
    held = {"h": np.zeros((1, WIDTH), np.float32), "cache": np.zeros((1, 0, WIDTH), np.float32)}
    logits, h, cache = session.run(None, {"input_ids": np.array([[7]]), **held})
    assert logits.shape == (1, 1, VOCAB)
    assert h.shape == (1, WIDTH)
    assert cache.shape == (1, 1, WIDTH)


def test_steps_of_one_equal_a_step_of_four(exported: Exported) -> None:
    one, four = (ort.InferenceSession(exported[0] / f"step_{n}.onnx") for n in (1, 4))
    ids = np.array([[3, 1, 4, 1]])
    h, cache = np.zeros((1, WIDTH), np.float32), np.zeros((1, 0, WIDTH), np.float32)
    *_, whole = four.run(None, {"input_ids": ids, "h": h, "cache": cache})
    for t in range(4):
        _, h, cache = one.run(None, {"input_ids": ids[:, t : t + 1], "h": h, "cache": cache})
    np.testing.assert_allclose(cache, whole, rtol=1e-5, atol=1e-6)


def test_no_path_of_the_machine_in_the_graphs(exported: Exported) -> None:
    for path in exported[0].glob("*.onnx"):
        assert str(Path(__file__).parents[2]).encode() not in path.read_bytes()


def test_planted_mismatch_is_rejected(tmp_path: Path) -> None:
    out = tmp_path / "cpu"
    student = make_student(WrongWhenExported(lambda logits: logits * 1.001))
    with pytest.raises(ParityError) as caught:
        export(student, out, tokens=(1,))
    assert caught.value.exit_code == 6
    for part in ("'step_1'", "'past': 13", "'logits'", "rel_l2", "0.001", "limit 0.0001"):
        assert part in caught.value.what
    assert {path.name for path in out.iterdir()} == {
        "step_1.onnx.rejected",
        "examples",
        "student.onnx.data",
        "parity.json",
        "profile.json",
        "manifest.json",
    }
    parity = json.loads((out / "parity.json").read_text())
    assert parity["passed"] is False
    assert {f["output"] for f in parity["failures"]} == {"logits"}
    assert parity["graphs"]["step_1"]["cases"][0]["outputs"]["logits"]["rel_l2"] == pytest.approx(1e-3, rel=1e-2)


def test_nan_in_the_export_is_rejected(tmp_path: Path) -> None:
    student = make_student(WrongWhenExported(lambda logits: logits + torch.log(-logits.abs() - 1)))
    with pytest.raises(ParityError, match="NaN or infinity in the export"):
        export(student, tmp_path / "cpu", tokens=(1,))
    assert (tmp_path / "cpu" / "step_1.onnx.rejected").is_file()


def test_failed_gate_replaces_an_older_export(tmp_path: Path) -> None:
    out = tmp_path / "cpu"
    export(make_student(), out, tokens=(1,))
    assert (out / "step_1.onnx").is_file()
    with pytest.raises(ParityError):
        export(make_student(WrongWhenExported(torch.neg)), out, tokens=(1,))
    assert not (out / "step_1.onnx").exists()


def test_forbidden_operator_leaves_nothing(tmp_path: Path) -> None:
    strict = replace(cpu, name="strict", forbidden_ops=frozenset({"Softmax"}))
    with pytest.raises(PlanError, match=r"'strict'.*Softmax is forbidden") as caught:
        export(make_student(), tmp_path / "strict", strict, tokens=(1,))
    assert caught.value.exit_code == 3
    assert list(tmp_path.iterdir()) == []


def test_broken_export_keeps_the_older_one(tmp_path: Path) -> None:
    out = tmp_path / "cpu"
    export(make_student(), out, tokens=(1,))
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}

    class Untraceable(Recurrent):
        def forward(self, ids: torch.Tensor, h: torch.Tensor, cache: torch.Tensor) -> Any:
            return super().forward(ids, h, -cache if h.sum() > 0 else cache)

    with pytest.raises(PlanError, match="'step_1' cannot be exported"):
        export(make_student(Untraceable()), out, tokens=(1,))
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before


def test_graph_names_are_file_stems(tmp_path: Path) -> None:
    class Escaping(RecurrentTarget):
        def export_graphs(self, student: Any, profile: Profile, options: Any) -> Any:
            made = graph(student.module, 1)
            made.name = "../step"
            return [made]

    with pytest.raises(PlanError, match="unique file stems"):
        export_profile(
            make_student(), Escaping(), cpu, options={}, batches=held_out(), out=tmp_path / "x", metadata={}, say=print
        )


def test_same_student_gives_the_same_weights_file(tmp_path: Path, exported: Exported) -> None:
    export(make_student(), tmp_path / "cpu")
    assert (tmp_path / "cpu/student.onnx.data").read_bytes() == (exported[0] / "student.onnx.data").read_bytes()
    onnx.checker.check_model(str(tmp_path / "cpu/step_4.onnx"), full_check=True)
