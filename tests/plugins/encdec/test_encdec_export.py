"""Encoder and decoder as files: parity over 64 steps, one weights file, and the program for a device."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from tests.plugins.encdec.encdec_models import FACTS, decoder, logits, pairs, student_of
from xarch import Profile, graph_metadata, open_session
from xarch.export.check import inspect_onnx
from xarch.export.profiles import cpu, npu
from xarch.export.run import ExportResult, export_profile
from xarch_encdec.bench import answer_cases
from xarch_encdec.driving import DECODER, ENCODER, AnswerGraphs, own_names, source_names
from xarch_encdec.family import PROGRAM
from xarch_encdec.generation import answers, written
from xarch_encdec.target import EncDecTarget

pytestmark = pytest.mark.slow

LETTERS = [chr(0x100 + i) for i in range(FACTS.vocab)]
PROMPT = "".join(LETTERS[i] for i in (17, 3, 140, 8, 99))

KINDS: dict[str, tuple[dict[str, Any], Profile]] = {
    "merged": ({"encoder": 2, "decoder": 3, "share": True}, cpu),
    "own attention": (
        {
            "cross": "self_copy",
            "plan": "copy",
            "norm": "dual",
            "mask": "full",
            "memory": "last",
            "encoder_width": 24,
        },
        cpu,
    ),
    "static shapes": ({"encoder": 2, "decoder": 2, "prompt": 64, "answer": 64}, npu),
}


@pytest.fixture(scope="module", params=KINDS, ids=str)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExportResult, Any]:
    """A run folder with a tokenizer of letters, its export, and the student."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "student").mkdir()
    made = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(LETTERS)}, unk_token=LETTERS[0]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated"), decoders.Fuse()
    made.save(str(folder / "student" / "tokenizer.json"))
    options, profile = KINDS[request.param]
    # scores are capped before they get their bias
    facts = replace(FACTS, softcap=4.0, windows=(5, None, 5)) if request.param == "own attention" else FACTS
    student = student_of(decoder(facts), **options)
    result = export_profile(
        student,
        EncDecTarget(),
        profile,
        options=EncDecTarget.ExportOptions(),
        batches=[pairs(0), pairs(1)],
        out=folder / "export" / "cpu",
        metadata={},
        say=lambda line: None,
    )
    return folder, result, student


def test_answers_over_64_steps_are_the_students(run: tuple[Path, ExportResult, Any]) -> None:
    """E3: unequal lengths and pads beyond the longest source; the engine computes what is expected."""
    parity = run[1].parity
    assert parity["passed"]
    shapes = [case["shape"] for case in parity["graphs"][DECODER]["cases"]]
    assert any(shape["batch"] == 1 and shape["source"] == 11 and shape["tokens"] == 64 for shape in shapes)
    assert any(shape["batch"] == 3 and shape["pads"] for shape in shapes)
    for case in parity["graphs"][DECODER]["cases"]:
        assert case["outputs"]["logits"]["rel_l2"] < 1e-5


def test_the_decoder_reads_the_source_and_never_gives_it_back(run: tuple[Path, ExportResult, Any]) -> None:
    """E4."""
    session = open_session(run[0] / "export" / "cpu" / f"{DECODER}.onnx", "CPUExecutionProvider", threads=1)
    inputs, outputs = ([v.name for v in values] for values in (session.get_inputs(), session.get_outputs()))
    assert "encoder_hidden_states" not in inputs
    assert [name for name in inputs if ".encoder." in name]
    assert not [name for name in outputs if ".encoder." in name]


def test_an_encoder_reads_by_an_operator_of_the_runtime(run: tuple[Path, ExportResult, Any]) -> None:
    """Parity above is then that of this form with torch's."""
    said = inspect_onnx(run[0] / "export" / "cpu" / f"{ENCODER}.onnx")
    assert ("GroupQueryAttention" in str(said["operators"])) == ("xarch.answer" not in said["metadata"])


def test_a_weight_is_stored_once(run: tuple[Path, ExportResult, Any]) -> None:
    """E9: projections of a merged attention are in both graphs, the embedding three times."""
    stored = run[1].profile["weights"]["bytes"]
    parameters = sum(4 * p.numel() for p in run[2].module.parameters())
    large = [p for p in run[2].module.parameters() if 4 * p.numel() >= 1024]
    assert stored <= parameters + 4096 * len(large)
    assert run[1].profile["weights"]["shared_bytes"] >= 4 * run[2].module.embed.weight.numel()


def test_the_program_writes_the_students_answer(run: tuple[Path, ExportResult, Any]) -> None:
    student, ids = run[2], torch.tensor([[LETTERS.index(c) for c in PROMPT]])
    with torch.no_grad():
        steps = written(student.module, ids[:, :-1], torch.ones_like(ids[:, :-1]), ids[:, -1], 64)
        wanted = [int(token) for token in steps]
    wanted = wanted[: wanted.index(258)] if 258 in wanted else wanted
    folder = run[0] / "export" / "cpu"
    (folder / "tokenizer.json").write_bytes((run[0] / "student" / "tokenizer.json").read_bytes())
    script = (
        "import runpy, sys; path = sys.argv.pop(1); runpy.run_path(path, run_name='__main__'); "
        "assert not {'torch', 'xarch', 'transformers'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", script, str(PROGRAM), PROMPT, "--export", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.removesuffix("\n") == "".join(LETTERS[token] for token in wanted)


def test_the_files_are_evaluated_as_the_student_is(run: tuple[Path, ExportResult, Any]) -> None:
    exported = EncDecTarget().exported(run[0] / "export" / "cpu", run[2], threads=1)
    batch = pairs(3).seen_by("student")
    assert torch.allclose(logits(exported, batch), logits(run[2], batch), atol=1e-4)
    assert answers(exported, batch, 12, (258,)) == answers(run[2], batch, 12, (258,))


def test_the_bench_runs_encoder_and_decoder(run: tuple[Path, ExportResult, Any]) -> None:
    """A first token is one call of each, and a measured context is as long as its name says."""
    folder = run[0] / "export" / "cpu"
    cases = {case.name: case for case in answer_cases([ENCODER, DECODER], folder)}
    driven, calls = AnswerGraphs.of(folder), []
    names = [name for side in (source_names, own_names) for name in side(driven.layers, "present")]
    kv = dict.fromkeys(names, np.zeros((1, 2, 1, 8)))

    def call(graph: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        calls.append((graph, inputs))
        return {"logits": np.zeros((1, 1, FACTS.vocab)), **kv}

    cases["first token, prompt of 64"].drive(call)
    shapes = [(name, inputs["input_ids"].shape) for name, inputs in calls]
    assert shapes == [(ENCODER, (1, driven.source or 63)), (DECODER, (1, 1))]
    if driven.source is not None:
        assert list(cases) == ["first token, prompt of 64"], "a prompt that the graphs cannot read"
        return
    calls.clear()
    cases["decode after 256"].drive(call)
    assert {inputs["past_key_values.0.encoder.key"].shape for _, inputs in calls} == {(1, 2, 256, 8)}
    assert len(calls) == cases["decode after 256"].amount
    assert json.loads(graph_metadata(folder / f"{ENCODER}.onnx")["xarch.eos"]) == [258]
