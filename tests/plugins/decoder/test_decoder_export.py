"""A decoder student through the whole export: files, gate, and a program that knows the files alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

from tests.plugins.decoder.decoder_models import EMA, make_student, tiny_facts, tokens
from xarch.contracts.adapters import TargetAdapter
from xarch.contracts.batch import Batch
from xarch.contracts.export import ExportGraph, ParityCase, Profile
from xarch.contracts.model import Initialisation, Student, Teacher
from xarch.export.run import export_profile
from xarch_decoder.export import DecoderExport, decoder_graphs
from xarch_decoder.facts import DecoderFacts
from xarch_decoder.model.attention import Attention
from xarch_decoder.parity import decoder_parity
from xarch_decoder.student import DecoderStudent

PROFILES = {
    "free": Profile("free", "CPUExecutionProvider", 18, 8),
    "static": Profile("static", "CPUExecutionProvider", 18, 8, static=True, max_rank=4),
}


class EMATarget(TargetAdapter):
    """A target as a plugin would write it: only the layers are its own."""

    Facts = DecoderFacts

    def build(self, facts: Any, options: Any, decisions: Mapping[str, Any], *, device: torch.device) -> Student:
        return DecoderStudent(facts, [(EMA,)] * facts.layers, device=device)

    def initialise(self, student: Student, teacher: Teacher) -> Initialisation:
        raise AssertionError("not used")

    def initialisation(self, facts: Any, student: Student) -> Initialisation:
        raise AssertionError("not used")

    def recipe(self, facts: Any, options: Any) -> str:
        return "none"

    def export_graphs(self, student: Student, profile: Profile, options: Mapping[str, Any]) -> Sequence[ExportGraph]:
        assert isinstance(student, DecoderStudent)
        return decoder_graphs(student, profile, DecoderExport.model_validate(options))

    def parity_cases(
        self, student: Student, graphs: Sequence[ExportGraph], batches: Sequence[Batch], profile: Profile
    ) -> Iterable[ParityCase]:
        assert isinstance(student, DecoderStudent)
        return decoder_parity(student, graphs, batches)


def continue_text(folder: Path, prompt: list[int], count: int) -> list[int]:
    """Greedy continuation with numpy and onnxruntime; everything else comes from the files."""
    sessions = {path.stem: ort.InferenceSession(path) for path in folder.glob("*.onnx")}
    facts = sessions["decode_1"].get_modelmeta().custom_metadata_map
    states, sizes = json.loads(facts["xarch.states"]), json.loads(facts["xarch.prefill"])
    held = {s["name"]: np.full(s["shape"], s["fill"], s["dtype"]) for s in states}
    out, position, text = [], 0, list(prompt)
    while len(out) < count:
        left = len(text) - position
        size = next((n for n in sizes if n <= left), 1)
        session = sessions["decode_1" if size == 1 else f"prefill_{size}"]
        inputs = {"input_ids": np.array([text[position : position + size]]), "position": np.array([position]), **held}
        known = {i.name for i in session.get_inputs()}
        values = session.run(None, {k: v for k, v in inputs.items() if k in known})
        named = dict(zip([o.name for o in session.get_outputs()], values, strict=True))
        held = {s["name"]: named[s["present"]] for s in states}
        position += size
        if position == len(text):
            text.append(int(named["logits"][0, -1].argmax()))
            out.append(text[-1])
    return out


@pytest.mark.slow
@pytest.mark.parametrize("profile", list(PROFILES.values()), ids=list(PROFILES))
def test_files_are_enough_to_generate(profile: Profile, tmp_path: Path) -> None:
    student = make_student(tiny_facts(vocab=997), EMA, Attention)
    batches = [tokens(student.facts, 2, 80)]
    options = {"prefill": [16], "context": 96}
    result = export_profile(
        student, EMATarget(), profile, options=options, batches=batches, out=tmp_path / "x", metadata={}, say=print
    )
    assert result.graphs == ["decode_1", "prefill_16"]
    assert set(result.parity["graphs"]) == {"decode_1", "prefill_16"}
    parameters = sum(p.numel() for p in student.module.parameters())
    weights = next((tmp_path / "x").glob("*.data")).stat().st_size
    assert 4 * parameters <= weights < 4 * (parameters + 997 * 32), "the tied embedding is stored once for both graphs"
    prompt = tokens(student.facts, 1, 37, seed=4)["input_ids"]
    got = continue_text(tmp_path / "x", prompt[0].tolist(), 20)
    with torch.no_grad():
        ids = prompt
        for _ in range(20):
            ids = torch.cat([ids, student.decoder(ids)[:, -1:].argmax(-1)], 1)
    assert got == ids[0, 37:].tolist()
