"""Exported encoder-decoders against their teacher: first token and tokens a second by prompt and answer, bytes, memory.

    python benchmarks/encdec_speed.py
    python benchmarks/encdec_speed.py --arms 15+12 --prompts 512

Students are SmolLM2-135M's layers right after initialisation, which take as long as trained ones: so many layers of
encoder and decoder, with the teacher's number of parameters; cross-attention is random, for files would store copies
once. The teacher is exported by the same exporter, its prompt as one call whose logits are those of the last position,
its caches written in place; and by the builder of onnxruntime-genai, where that is installed. One thread; CPU
milliseconds are medians of interleaved repeats: ten of a first token up to prompts of 512 tokens, then five and three,
and three of answers, whose tokens a second are those after the first 32 and after all 128. Resident memory is the peak
of a process that answers a prompt of 512 tokens, above that of one that has loaded the runtime. An interrupted
measurement resumes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks import page
from benchmarks.sessions import Sessions
from benchmarks.store import SCRATCH, Store, add_options, header

TEACHER = "zoo:smollm2-135m"
PROMPTS = (64, 256, 512, 1024, 2048)
ANSWERS = (32, 128)
"""Tokens after the first; speed at the lesser one is that of the beginning of the longer answer."""
REPEATS = {512: 10, 1024: 5, 2048: 3}
"""Longest prompt -> repeats of a first token."""
WRITTEN = 3
"""Repeats of answers."""
RESIDENT = 512
TEACHER_FOLDER = "teacher"
RIVAL = "onnxruntime-genai"


@dataclass(frozen=True)
class Arm:
    """A student: layers of the encoder and of the decoder, and how the decoder reads the source."""

    encoder: int
    decoder: int
    cross: str = "random"


ARMS = {
    "13+13": Arm(13, 13),
    "15+12": Arm(15, 12),
    "18+9": Arm(18, 9),
    "24+5": Arm(24, 5),
    "20+10 merged": Arm(20, 10, "merged"),
}
EQUAL = tuple(name for name, arm in ARMS.items() if arm.cross == "random")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", default=list(EQUAL), choices=list(ARMS))
    parser.add_argument("--prompts", type=int, nargs="+", default=list(PROMPTS))
    parser.add_argument("--work", type=Path, default=SCRATCH / "encdec_speed", help="folder for graphs")
    parser.add_argument("--resident", type=Path, help=argparse.SUPPRESS)
    add_options(parser, "encdec_speed")
    chosen = parser.parse_args()
    if chosen.resident is not None:
        print(resident(chosen.resident))
        return
    settings = {"teacher": TEACHER, "answers": ANSWERS, "repeats": [*REPEATS.values(), WRITTEN]}
    store = Store(chosen.out, header("encdec_speed", settings, threads=1), chosen.fresh)
    work = chosen.work / store.key
    write_all(work, chosen.arms, sorted({*chosen.prompts, RESIDENT}))
    for prompt in chosen.prompts:
        measure(store, work, [arm for arm in chosen.arms if store.find(arm=arm, prompt=prompt) is None], prompt)
    for arm in chosen.arms:
        if store.find(arm=arm, what="memory") is None:
            store.add({"what": "memory", "arm": arm, **memory(work, arm)})
            print(store.points[-1], file=sys.stderr)
    page.show(store.finish())


def write_all(work: Path, arms: Sequence[str], prompts: Sequence[int]) -> None:
    """Write the graphs of teacher and students that are not there yet."""
    missing = [name for name in (TEACHER_FOLDER, *arms) if not (work / name / "facts.json").is_file()]
    if not missing:
        return
    import torch

    import xarch
    from xarch.registry.loader import get_registry
    from xarch_decoder.controls import bounded_teacher
    from xarch_decoder.export import DecoderExport, decoder_graphs
    from xarch_encdec.export import encdec_graphs
    from xarch_encdec.options import EncDecOptions
    from xarch_encdec.target import EncDecTarget

    torch.set_num_threads(1)
    teacher, target = xarch.load_teacher(TEACHER), EncDecTarget()
    cpu = get_registry().create("export", "cpu")
    count = sum(tensor.numel() for tensor in teacher.weights().values())
    for name in missing:
        if name == TEACHER_FOLDER:
            graphs = decoder_graphs(bounded_teacher(teacher, {}), cpu, DecoderExport(prefill=list(prompts)))
            write(work / name, graphs, cpu, {"parameters": 1.0, "facts": teacher.facts.to_json()})
            continue
        options = EncDecOptions(**asdict(ARMS[name]), mask="full", memory="last")
        student = target.build(teacher.facts, options, {}, device=torch.device("cpu"))
        target.initialise(student, teacher)
        student.module.eval().requires_grad_(False)
        own = sum(parameter.numel() for parameter in student.module.parameters())
        write(work / name, encdec_graphs(student, cpu, target.ExportOptions()), cpu, {"parameters": own / count})


def write(folder: Path, graphs: Sequence[Any], profile: Any, facts: Mapping[str, Any]) -> None:
    """Write graphs as their export does, without parity."""
    import onnx_ir as ir

    from xarch.export.onnx_export import to_onnx
    from xarch.export.weights import WeightStore, externalise

    folder.mkdir(parents=True, exist_ok=True)
    with WeightStore(folder / "student.onnx.data") as weights:
        for graph in graphs:
            model = to_onnx(graph, profile)
            externalise(model, weights)
            model.metadata_props.update(
                {f"xarch.{k}": v if isinstance(v, str) else json.dumps(v) for k, v in graph.metadata.items()}
            )
            ir.save(model, folder / f"{graph.name}.onnx")
    (folder / "facts.json").write_text(json.dumps({"graphs": [graph.name for graph in graphs], **facts}))


Answer = Callable[[], Iterator[None]]
"""Reads a prompt and gives its first token, then those of the longest of :data:`ANSWERS`, each before it yields."""


def answers(folder: Path, prompt: int) -> Answer:
    """Return how a folder answers, its sessions open."""
    call = Sessions(folder)
    ids = np.random.default_rng(0).integers(5, 40_000, prompt)
    return _teacher(folder, call, ids) if folder.name == TEACHER_FOLDER else _student(folder, call, ids)


def _student(folder: Path, call: Sessions, ids: np.ndarray) -> Answer:
    from xarch_encdec.driving import AnswerGraphs

    driven = AnswerGraphs.of(folder)

    def answer() -> Iterator[None]:
        fixed, held = driven.read(call, ids[None, :-1], np.ones((1, len(ids) - 1), np.int64)), driven.empty()
        token_11 = ids[None, -1:]
        for place in range(1 + max(ANSWERS)):
            logits_11V, held = driven.step(call, token_11, place, fixed, held)
            token_11 = logits_11V[:, -1].argmax(-1)[:, None]
            yield

    return answer


def _teacher(folder: Path, call: Sessions, ids: np.ndarray) -> Answer:
    from xarch import graph_metadata
    from xarch_decoder.bench import LanguageGraphs

    names = [f"prefill_{len(ids)}", "decode_1"]
    driven = LanguageGraphs({name: graph_metadata(folder / f"{name}.onnx") for name in names})

    def answer() -> Iterator[None]:
        logits, held = driven.step(call, ids, 0, driven.initial(room=len(ids) + max(ANSWERS)))
        for place in range(1 + max(ANSWERS)):
            token = logits[0, -1:].argmax(-1)
            yield
            if place < max(ANSWERS):
                logits, held = driven.step(call, token, len(ids) + place, held)

    return answer


def rival(work: Path, prompt: int) -> Answer | None:
    """Return how the teacher answers as onnxruntime-genai builds and runs it, if it is installed."""
    try:
        import onnxruntime_genai as genai
    except ImportError:
        return None
    from benchmarks.edge_speed import built

    folder = work / "genai" / "fp32"
    if not (folder / "genai_config.json").is_file():
        built(work / "checkpoint", folder, "fp32")
    settings = json.loads((folder / "genai_config.json").read_text())
    settings["model"]["decoder"].setdefault("session_options", {})["intra_op_num_threads"] = 1
    (folder / "genai_config.json").write_text(json.dumps(settings))
    model = genai.Model(str(folder))
    ids = np.random.default_rng(0).integers(5, 40_000, prompt).astype(np.int32)

    def answer() -> Iterator[None]:
        options = genai.GeneratorParams(model)
        length = prompt + max(ANSWERS) + 2
        options.set_search_options(max_length=length, min_length=length, do_sample=False)
        generator = genai.Generator(model, options)
        generator.append_tokens(ids)
        for _ in range(1 + max(ANSWERS)):
            generator.generate_next_token()
            yield

    return answer


def first_token(answer: Answer) -> float:
    """CPU milliseconds of a first token."""
    began = time.process_time()
    next(answer())
    return 1e3 * (time.process_time() - began)


def tokens_after(answer: Answer) -> list[float]:
    """CPU milliseconds of each token after the first, for every one of :data:`ANSWERS`."""
    steps = answer()
    next(steps)
    began, found = time.process_time(), []
    for count, _ in enumerate(steps, 1):
        if count in ANSWERS:
            found.append(1e3 * (time.process_time() - began) / count)
    return found


def measure(store: Store, work: Path, arms: Sequence[str], prompt: int) -> None:
    """Add students beside their teacher at one prompt length, all interleaved."""
    if not arms:
        return
    from xarch_decoder.facts import DecoderFacts
    from xarch_encdec.predict import predict

    made = {name: answers(work / name, prompt) for name in (TEACHER_FOLDER, *arms)}
    other = rival(work, prompt)
    if other is not None:
        made[RIVAL] = other
    for answer in made.values():
        next(answer())
    firsts: dict[str, list[float]] = {name: [] for name in made}
    steps: dict[str, list[list[float]]] = {name: [] for name in made}
    for number in range(next((count for most, count in REPEATS.items() if prompt <= most), WRITTEN)):
        for name, answer in made.items():
            firsts[name].append(first_token(answer))
            if number < WRITTEN:
                steps[name].append(tokens_after(answer))
    first = {name: statistics.median(found) for name, found in firsts.items()}
    step = {name: [statistics.median(each) for each in zip(*found, strict=True)] for name, found in steps.items()}
    described = json.loads((work / TEACHER_FOLDER / "facts.json").read_text())
    facts = DecoderFacts.from_json(described["facts"])
    for name in arms:
        arm = ARMS[name]
        told = predict(facts, arm.cross, arm.encoder, arm.decoder, prompt=prompt, answer=max(ANSWERS))  # type: ignore[arg-type]
        point = {
            "arm": name,
            "prompt": prompt,
            "first_cpu_ms": first[name],
            "step_cpu_ms": step[name],
            "first_ratio": first[name] / first[TEACHER_FOLDER],
            "first_ratios": [a / b for a, b in zip(firsts[name], firsts[TEACHER_FOLDER], strict=True)],
            "predicted_first": told.first_token,
            "speed": _shares(step[TEACHER_FOLDER], step[name]),
            "predicted_speed": told.speed,
            "teacher_first_cpu_ms": first[TEACHER_FOLDER],
            "teacher_step_cpu_ms": step[TEACHER_FOLDER],
        }
        if other is not None:
            point["rival_first"] = first[name] / first[RIVAL]
            point["rival_speed"] = _shares(step[RIVAL], step[name])
        store.add({key: _rounded(value) for key, value in point.items()})
        print(store.points[-1], file=sys.stderr)


def _shares(of: Sequence[float], by: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(of, by, strict=True)]


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return round(value, 3) if isinstance(value, float) else value


def memory(work: Path, arm: str) -> dict[str, float]:
    """Bytes of files and of resident memory in the teacher's, and parameters."""
    found: dict[str, list[float]] = {"files": [], "resident": []}
    for name in (arm, TEACHER_FOLDER):
        graphs = {"decode_1.onnx", f"prefill_{RESIDENT}.onnx"} if name == TEACHER_FOLDER else None
        kept = [
            f
            for f in (work / name).iterdir()
            if ".onnx" in f.name and (f.suffix == ".data" or not graphs or f.name in graphs)
        ]
        found["files"].append(sum(file.stat().st_size for file in kept))
        command = [sys.executable, __file__, "--resident", str(work / name)]
        found["resident"].append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    parameters = json.loads((work / arm / "facts.json").read_text())["parameters"]
    sizes = {f"{key}_mb": round(own / 1e6, 1) for key, (own, _) in found.items()}
    shares = {key: round(own / theirs, 3) for key, (own, theirs) in found.items()}
    return {"parameters": round(parameters, 3), **sizes, **shares}


def resident(folder: Path) -> int:
    """Peak resident bytes of this process while it answers, above those before it opens a graph."""
    import onnxruntime  # noqa: F401

    import xarch.export.session  # noqa: F401

    before = peak()
    for _, _ in zip(range(8), answers(folder, RESIDENT)(), strict=False):
        pass
    return peak() - before


def peak() -> int:
    """Peak resident bytes. That of getrusage begins at what the process that started this one held."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    main()
