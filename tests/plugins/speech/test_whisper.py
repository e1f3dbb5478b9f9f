"""Whisper is read as transformers computes it, from both forms of folder, and damaged files are named errors."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import xarch
from tests.plugins.speech.speech_models import FACTS, student_of, whisper
from xarch import PlanError, UsageError
from xarch_speech.checkpoint import stored_facts, tensors
from xarch_speech.controls import CUT, cut_controls
from xarch_speech.generation import transcripts, written
from xarch_speech.testing import noise_batch, tiny_whisper


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Whisper as transformers writes it."""
    return Path(tiny_whisper(tmp_path_factory.mktemp("whisper")).removeprefix("whisper:"))


def as_ctranslate2(folder: Path, out: Path, *, kind: int = 0, drop: str = "") -> Path:
    """The same model in CTranslate2's form."""
    own, facts = tensors(folder, "test"), stored_facts(folder, "test")
    found: dict[str, np.ndarray] = {
        "decoder/embeddings/weight": own["embed.weight"].numpy(),
        "encoder/position_encodings/encodings": own["encoder_places"].numpy(),
        "decoder/position_encodings/encodings": own["places"].numpy(),
        "decoder/num_heads": np.array(facts.heads, "<i2"),
    }
    for theirs, ours in (("conv1", "hear1"), ("conv2", "hear2")):
        found |= {f"encoder/{theirs}/{leaf}": own[f"{ours}.{leaf}"].numpy() for leaf in ("weight", "bias")}
    for side, count in (("encoder", facts.encoder), ("decoder", facts.decoder)):
        norms = {f"{side}/layer_norm": "encoder_norm" if side == "encoder" else "norm"}
        for i in range(count):
            at, ours = f"{side}/layer_{i}", f"{side}.{i}"
            norms |= {f"{at}/self_attention/layer_norm": f"{ours}.norm1", f"{at}/ffn/layer_norm": f"{ours}.norm2"}
            linear = {
                f"{at}/self_attention/linear_0": [f"{ours}.attention.{x}" for x in "qkv"],
                f"{at}/self_attention/linear_1": [f"{ours}.attention.o"],
                f"{at}/ffn/linear_0": [f"{ours}.mlp.up"],
                f"{at}/ffn/linear_1": [f"{ours}.mlp.down"],
            }
            if side == "decoder":
                norms[f"{at}/attention/layer_norm"] = f"{ours}.norm_cross"
                linear[f"{at}/attention/linear_0"] = [f"{ours}.cross.q"]
                linear[f"{at}/attention/linear_1"] = [f"{ours}.cross.{x}" for x in "kv"]
                linear[f"{at}/attention/linear_2"] = [f"{ours}.cross.o"]
            for name, parts in linear.items():
                found[f"{name}/weight"] = np.concatenate([own[f"{p}.weight"].numpy() for p in parts])
                biases = [own.get(f"{p}.bias", torch.zeros(len(own[f"{p}.weight"]))).numpy() for p in parts]
                found[f"{name}/bias"] = np.concatenate(biases)
        for name, ours in norms.items():
            found |= {f"{name}/gamma": own[f"{ours}.weight"].numpy(), f"{name}/beta": own[f"{ours}.bias"].numpy()}
    found.pop(drop, None)

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    parts = [struct.pack("<I", 6), text("WhisperSpec"), struct.pack("<II", 3, len(found))]
    for name, value in found.items():
        stored = value if value.dtype == np.dtype("<i2") else value.astype("<f4")
        number = 2 if value.dtype == np.dtype("<i2") else kind
        parts += [text(name), struct.pack(f"<B{stored.ndim}I", stored.ndim, *stored.shape)]
        parts += [struct.pack("<BI", number, stored.nbytes), stored.tobytes()]
    out.mkdir(parents=True)
    (out / "model.bin").write_bytes(b"".join(parts))
    (out / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    return out


def test_it_computes_what_transformers_computes(folder: Path) -> None:
    from transformers import WhisperForConditionalGeneration

    theirs = WhisperForConditionalGeneration.from_pretrained(folder).eval()
    teacher = xarch.load_teacher(f"whisper:{folder}")
    batch = noise_batch(teacher.facts, samples=3)
    with torch.no_grad():
        wanted = theirs(
            input_features=batch["input_features"], decoder_input_ids=batch["decoder_input_ids"]
        ).logits.float()
        found = teacher.collect(batch, ["logits"])["logits"].full()
    assert (found - wanted).abs().max() < 1e-5
    assert found.std() > 0.1


def test_both_forms_of_folder_are_one_model(folder: Path, tmp_path: Path) -> None:
    other = as_ctranslate2(folder, tmp_path / "ct2")
    assert stored_facts(other, "test") == stored_facts(folder, "test")
    one, two = tensors(folder, "test"), tensors(other, "test")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert xarch.load_teacher(f"whisper:{other}").facts.start == (257, 258, 259, 260)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"kind": 1}, "does not have"),
        ({"drop": "decoder/layer_norm/beta"}, r"norm.bias \(16,\) is missing"),
        ({"drop": "decoder/num_heads"}, "how many heads"),
        ({"cut": 900}, "does not have|ends too early"),
        ({"cut": 6}, "ends too early"),
    ],
)
def test_a_damaged_binary_is_a_named_error(damage: dict[str, Any], message: str, folder: Path, tmp_path: Path) -> None:
    cut = damage.pop("cut", None)
    other = as_ctranslate2(folder, tmp_path / "ct2", **damage)
    if cut is not None:
        (other / "model.bin").write_bytes((other / "model.bin").read_bytes()[:cut])
    with pytest.raises(UsageError, match=message):
        xarch.load_teacher(f"whisper:{other}")


def test_a_folder_without_a_model_or_tokenizer_says_so(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"neither model\.safetensors nor model\.bin"):
        xarch.load_teacher(f"whisper:{tmp_path}")
    other = as_ctranslate2(folder, tmp_path / "ct2")
    (other / "tokenizer.json").unlink()
    with pytest.raises(UsageError, match=r"has no tokenizer\.json"):
        xarch.load_teacher(f"whisper:{other}")


def test_a_step_with_caches_is_the_whole_pass() -> None:
    model = whisper().module
    batch = noise_batch(model.facts, samples=2)
    with torch.no_grad():
        heard = model.read(model.encode(batch["input_features"]))
        whole, _ = model.decode(batch["decoder_input_ids"], heard)
        past, steps = None, []
        for t in range(batch["decoder_input_ids"].shape[1]):
            final, past = model.decode(batch["decoder_input_ids"][:, t : t + 1], heard, past)
            steps.append(final)
    assert (torch.cat(steps, 1) - whole).abs().max() < 1e-5


def test_transcripts_end_with_the_end_token() -> None:
    teacher = whisper()
    batch = noise_batch(teacher.facts, samples=3, seed=2)
    with torch.no_grad():
        rows = torch.stack(list(written(teacher.module, teacher.module.encode(batch["input_features"]), 90)), 1)
        texts = transcripts(teacher, batch, 90)
    for row, text in zip(rows.tolist(), texts, strict=True):
        assert teacher.facts.eos[0] not in text
        assert row[: len(text)] == text


def test_a_student_of_all_layers_is_the_teacher_and_half_has_its_layers() -> None:
    teacher = whisper()
    batch = noise_batch(teacher.facts)
    whole, half = student_of(teacher, decoder=4), student_of(teacher)
    assert half.decoder == (0, 3)
    assert student_of(teacher, decoder=3, keep="last").decoder == (1, 2, 3)
    assert half.counterparts()["decoder.1.heard"] == "decoder.3.heard"
    with torch.no_grad():
        wanted = teacher.collect(batch, ["logits"])["logits"].full()
        assert torch.equal(whole.collect(batch, ["logits"])["logits"].full(), wanted)
        cut = cut_controls(teacher, half)[CUT].model
        found = half.collect(batch, ["logits"])["logits"].full()
        assert torch.equal(cut.collect(batch, ["logits"])["logits"].full(), found)
    assert not torch.allclose(found, wanted)
    assert cut_controls(teacher, whole) == {}
    with pytest.raises(PlanError, match="5 layers of a teacher that has 4"):
        student_of(teacher, decoder=5)


def test_what_was_heard_is_read_in_place_of_the_encoder() -> None:
    from xarch import Options, StepContext
    from xarch_speech.hear_once import HearOnce

    teacher, batch = whisper(), noise_batch(FACTS)
    student = student_of(teacher)
    step = HearOnce(Options(), {})
    with torch.no_grad():
        made = step(batch, StepContext(student, teacher))
        silent = made.replace(input_features=torch.zeros_like(batch["input_features"]))
        wanted = student.collect(batch, ["logits", "decoder.0.heard"])
        found = student.collect(silent, ["logits", "decoder.0.heard"])
        assert torch.equal(found["logits"].full(), wanted["logits"].full())
        assert torch.equal(found["decoder.0.heard"], wanted["decoder.0.heard"])
        student.module.hear1.bias.add_(1)
        with pytest.raises(PlanError, match="encoder is not the teacher's"):
            step(batch, StepContext(student, teacher))
