"""Exported encoder-decoders against their teacher: first token and tokens a second by prompt length, bytes, memory.

    python benchmarks/encdec_speed.py
    python benchmarks/encdec_speed.py --arms 15+12 --prompts 512

Students are SmolLM2-135M's layers right after initialisation, which take as long as trained ones: so many layers of
encoder and decoder, with the teacher's number of parameters; cross-attention is random, for files would store copies
once. The teacher is exported by the same exporter, its prompt as one call whose logits are those of the last position,
its caches grow; and by the builder of onnxruntime-genai, with caches in place, where that is installed. One thread; CPU
milliseconds are medians of interleaved repeats. Resident memory is the peak of a process that answers a prompt of 512
tokens, above that of one that has loaded the runtime. An interrupted measurement resumes.
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
PROMPTS = (64, 256, 512, 1024)
DECODED = 32
REPEATS = 3
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
    "19+9": Arm(19, 9),
    "20+10 merged": Arm(20, 10, "merged"),
    "24+5": Arm(24, 5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--prompts", type=int, nargs="+", default=list(PROMPTS))
    parser.add_argument("--work", type=Path, default=SCRATCH / "encdec_speed", help="folder for graphs")
    parser.add_argument("--resident", type=Path, help=argparse.SUPPRESS)
    add_options(parser, "encdec_speed")
    chosen = parser.parse_args()
    if chosen.resident is not None:
        print(resident(chosen.resident))
        return
    settings = {"teacher": TEACHER, "decoded": DECODED, "repeats": REPEATS}
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
"""Reads a prompt and gives its first token, then :data:`DECODED` more, each before it yields."""


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
        for place in range(1 + DECODED):
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
        logits, held = driven.step(call, ids, 0, driven.initial(room=len(ids) + DECODED))
        for place in range(1 + DECODED):
            token = logits[0, -1:].argmax(-1)
            yield
            if place < DECODED:
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
        options.set_search_options(max_length=prompt + DECODED + 2, min_length=prompt + DECODED + 2, do_sample=False)
        generator = genai.Generator(model, options)
        generator.append_tokens(ids)
        for _ in range(1 + DECODED):
            generator.generate_next_token()
            yield

    return answer


def spent(answer: Answer) -> tuple[float, float]:
    """CPU milliseconds of a first token, and of each token after it."""
    steps = answer()
    began = time.process_time()
    next(steps)
    first = time.process_time()
    for _ in steps:
        pass
    return 1e3 * (first - began), 1e3 * (time.process_time() - first) / DECODED


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
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in made}
    for _ in range(REPEATS):
        for name, answer in made.items():
            times[name].append(spent(answer))
    medians = {
        name: [statistics.median(column) for column in zip(*found, strict=True)] for name, found in times.items()
    }
    described = json.loads((work / TEACHER_FOLDER / "facts.json").read_text())
    facts = DecoderFacts.from_json(described["facts"])
    for name in arms:
        arm, (first, step) = ARMS[name], medians[name]
        told = predict(facts, arm.cross, arm.encoder, arm.decoder, prompt=prompt, answer=DECODED)  # type: ignore[arg-type]
        point = {
            "arm": name,
            "prompt": prompt,
            "first_cpu_ms": first,
            "step_cpu_ms": step,
            "first_ratio": first / medians[TEACHER_FOLDER][0],
            "first_ratios": [a[0] / b[0] for a, b in zip(times[name], times[TEACHER_FOLDER], strict=True)],
            "predicted_first": told.first_token,
            "speed": medians[TEACHER_FOLDER][1] / step,
            "predicted_speed": told.speed,
            "teacher_first_cpu_ms": medians[TEACHER_FOLDER][0],
            "teacher_step_cpu_ms": medians[TEACHER_FOLDER][1],
        }
        if other is not None:
            point |= {"rival_first": first / medians[RIVAL][0], "rival_speed": medians[RIVAL][1] / step}
        store.add({key: _rounded(value) for key, value in point.items()})
        print(store.points[-1], file=sys.stderr)


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
