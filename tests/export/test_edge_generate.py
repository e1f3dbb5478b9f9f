"""A decoder student all the way to text on a device: export, parity on a prompt, and the program beside the graphs."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.export.decoder_export import FACTS, LETTERS, DecoderTarget, decoder_student, letters_tokenizer
from xarch import GraphCalls, graph_metadata, read_json
from xarch.contracts.batch import Batch
from xarch.export.profiles import cpu
from xarch.export.run import ExportResult, export_profile
from xarch.run.standalone import copy_runner
from xarch_decoder.bench import LanguageGraphs
from xarch_decoder.exported import ExportedDecoder
from xarch_decoder.family import DecoderFamily


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExportResult]:
    """A run folder with a student's tokenizer and its export for ``cpu`` in a dynamic and a static form."""
    folder = tmp_path_factory.mktemp("run")
    student = folder / "student"
    student.mkdir()
    letters_tokenizer(student / "tokenizer.json")
    (student / "tokenizer_config.json").write_text('{"bos_token": "a", "eos_token": {"content": "<|im_end|>"}}')
    (student / "chat_template.jinja").write_text(
        "{% for m in messages %}\n{{ bos_token }}b{{ m.content }}{% endfor %}{% if add_generation_prompt %}c{% endif %}"
    )

    def complete(out: Path, graphs: Sequence[str]) -> None:
        runner = DecoderFamily().runner(graphs, student)
        assert runner is not None
        copy_runner(runner, student, out)

    text = torch.randint(FACTS.vocab, (2, 50), generator=torch.Generator().manual_seed(1))
    results = [
        export_profile(
            decoder_student(),
            DecoderTarget(),
            profile,
            options={"prefill": [8], "context": 24} if profile.static else {"prefill": [8]},
            batches=[Batch({"input_ids": text}, 100)],
            out=folder / "export" / profile.name,
            metadata={},
            say=lambda line: None,
            complete=complete,
        )
        for profile in (cpu, replace(cpu, name="fixed", static=True))
    ]
    return folder, results[0]


def test_the_files_are_evaluated_as_the_student_is(run: tuple[Path, ExportResult]) -> None:
    student = decoder_student()
    ids = torch.randint(FACTS.vocab, (2, 12), generator=torch.Generator().manual_seed(2))
    parts = torch.tensor([[0] * 12, [0] * 5 + [1] * 7])
    exported = ExportedDecoder(run[0] / "export" / "cpu", student, threads=1)
    batch = Batch({"input_ids": ids, "segment_ids": parts}, 24)
    found = exported.collect(batch, {"logits"})["logits"]
    documents = torch.cat([student.decoder(ids[1:, :5]), student.decoder(ids[1:, 5:])], 1)
    wanted = torch.cat([student.decoder(ids[:1]), documents])
    torch.testing.assert_close(found.full(), wanted, rtol=1e-4, atol=1e-4)
    where, chunk = list(found.chunks(7))[1]
    torch.testing.assert_close(chunk, wanted.flatten(0, 1)[where], rtol=1e-4, atol=1e-4)


def generate(run: Path, prompt: str, *arguments: str, export: str = "cpu") -> str:
    """Text of the program in the folder of an export, moved elsewhere; fails if it imported torch or xarch."""
    script = (
        "import runpy, sys; path = sys.argv.pop(1); runpy.run_path(path, run_name='__main__'); "
        "assert not {'torch', 'xarch', 'transformers'} & set(sys.modules)"
    )
    moved = run / "device" / export
    if not moved.exists():
        shutil.copytree(run / "export" / export, moved)
    command = [sys.executable, "-c", script, str(moved / "generate.py"), prompt, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.removesuffix("\n")


def test_a_cache_is_written_in_place_and_grows_when_its_room_is_used_up(run: tuple[Path, ExportResult]) -> None:
    folder, student = run[0] / "export" / "cpu", decoder_student()
    described = read_json(folder / "profile.json")["graphs"]
    assert all(set(graph["in_place"].values()) == {"key_cache.1", "value_cache.1"} for graph in described.values())
    ids = torch.randint(FACTS.vocab, (90,), generator=torch.Generator().manual_seed(3))
    driven = LanguageGraphs({name: graph_metadata(folder / f"{name}.onnx") for name in described})
    call = GraphCalls(folder, cpu.provider, threads=1)
    held, found, caches = driven.initial(room=20), [], []
    for place, token in enumerate(ids.numpy()):
        logits, held = driven.step(call, token[None], place, held)
        found.append(logits[0, -1])
        caches.append(held["key_cache.1"])
    # one with room for 20 tokens, then for 64 and 128
    assert [caches[0].shape[2], caches[20].shape[2], caches[64].shape[2]] == [20, 64, 128]
    assert all(one is other for one, other in itertools.pairwise(caches[:20]))
    wanted = student.decoder(ids[None])[0]
    torch.testing.assert_close(torch.from_numpy(np.stack(found)), wanted, rtol=1e-4, atol=1e-4)


def greedy(prompt: str, tokens: int) -> str:
    """The student's own greedy continuation, whole sequence every time."""
    ids = [LETTERS.index(c) for c in prompt]
    student = decoder_student()
    for _ in range(tokens):
        ids.append(int(student.decoder(torch.tensor([ids]))[0, -1].argmax()))
    return "".join(LETTERS[i] for i in ids[len(prompt) :])


def test_prompts_in_every_cut_reproduce_the_student(run: tuple[Path, ExportResult]) -> None:
    parity = run[1].parity
    assert parity["passed"]
    assert parity["graphs"].keys() == {"decode_1", "prefill_8"}
    for entry in parity["graphs"].values():
        assert entry["top1_agreement"] == 1.0
        assert max(c["outputs"]["logits"]["rel_l2"] for c in entry["cases"]) < 1e-5


def test_graphs_of_a_decoder_share_their_weights(run: tuple[Path, ExportResult]) -> None:
    weights = run[1].profile["weights"]
    parameters = sum(4 * p.numel() for p in decoder_student().module.parameters() if 4 * p.numel() >= 1024)
    assert parameters <= weights["bytes"] <= parameters + 4096 * 20
    assert weights["shared_bytes"] >= parameters


@pytest.mark.parametrize("prompt", ["a", "hello", "the cat, the dog and the tree."])
def test_example_writes_the_students_own_text(prompt: str, run: tuple[Path, ExportResult]) -> None:
    assert generate(run[0], prompt, "--temperature", "0", "--tokens", "20") == greedy(prompt, 20)


def test_example_samples_by_seed(run: tuple[Path, ExportResult]) -> None:
    sampled = [generate(run[0], "hello", "--temperature", "5", "--tokens", "30", "--seed", s) for s in ("1", "1", "2")]
    assert sampled[0] == sampled[1] != sampled[2]
    best_only = generate(run[0], "hello", "--temperature", "5", "--top-k", "1", "--tokens", "12")
    assert best_only == greedy("hello", 12)


def test_a_question_is_put_in_the_chat_template(run: tuple[Path, ExportResult]) -> None:
    asked = generate(run[0], "hi", "--chat", "--temperature", "0", "--tokens", "5")
    assert asked == greedy("abhic", 5) != greedy("hi", 5)


def test_no_program_without_a_tokenizer(tmp_path: Path) -> None:
    assert DecoderFamily().runner(["decode_1"], tmp_path) is None


def test_example_stops_when_fixed_buffers_are_full(run: tuple[Path, ExportResult]) -> None:
    text = generate(run[0], "the cat.", "--temperature", "0", "--tokens", "60", export="fixed")
    assert text == greedy("the cat.", 24 - 8 + 1)
    assert generate(run[0], "a" * 40, "--tokens", "5", export="fixed") == ""


@pytest.mark.parametrize(
    "program", sorted(Path(__file__).parents[2].glob("plugins/*/device/*.py")), ids=lambda p: p.name
)
def test_programs_are_short_and_need_little(program: Path) -> None:
    lines = program.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 60
    modules = {line.split()[1].partition(".")[0] for line in lines if line.startswith(("import ", "from "))}
    assert modules <= {*sys.stdlib_module_names, "numpy", "onnxruntime", "tokenizers", "PIL"}
