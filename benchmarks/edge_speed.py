"""Exported students against their teacher at its best: first token and decoding by context, and bytes.

    python benchmarks/edge_speed.py --memory RUN --hybrid RUN
    python benchmarks/edge_speed.py --memory RUN --precisions int4 --contexts 256 4096

RUN is a finished run of `smollm2-memory` and of `smollm2-hybrid`. The teacher is exported by xarch, and by the builder
of onnxruntime-genai where that is installed (`pip install onnxruntime-genai`). One thread; CPU and wall milliseconds
are the least of several calls; a fold of a memory counts with its part of each token. The first token after a long
prompt is a sum over calls of prefill graphs: those at the measured contexts, and between them on straight lines. The
rival's prompt is read as a whole.

With ``quality``, the files of the students decode real text of two domains, beside the students themselves. An
interrupted measurement resumes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

import xarch
from benchmarks import page
from benchmarks.sessions import Sessions
from benchmarks.store import SCRATCH, Store, add_options, header
from xarch import Batch, Teacher, graph_metadata, open_session
from xarch.export.bits import Choice, choose
from xarch.export.blocks import quantise_blocks
from xarch.export.in_place import in_place
from xarch.export.onnx_export import to_onnx
from xarch.export.packed import pack_products
from xarch.export.weights import WeightStore, externalise
from xarch.registry.loader import get_registry
from xarch.run.student_io import load_student
from xarch_decoder.bench import LanguageGraphs
from xarch_decoder.controls import bounded_teacher
from xarch_decoder.divergence import decoder_divergence
from xarch_decoder.export import DecoderExport, decoder_graphs
from xarch_decoder.exported import ExportedDecoder
from xarch_decoder.student import DecoderStudent

TEACHER = "zoo:smollm2-135m"
CONTEXTS = (256, 1024, 4096, 8000)
"""The teacher's positions end at 8192."""
PRECISIONS = {"fp32": "cpu", "int8": "cpu-int8", "int4": "cpu-int4"}
REPEATS = 10
RIVAL = "teacher, onnxruntime-genai"
QUALITY_TOKENS = 384


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", type=Path, help="run of smollm2-memory")
    parser.add_argument("--hybrid", type=Path, help="run of smollm2-hybrid")
    parser.add_argument("--precisions", nargs="+", default=["int4", "fp32", "int8"], choices=list(PRECISIONS))
    parser.add_argument("--contexts", type=int, nargs="+", default=list(CONTEXTS))
    parser.add_argument("--work", type=Path, default=SCRATCH / "edge_speed", help="folder for graphs")
    parser.add_argument("--quality", action="store_true", help="perplexity of the files, a minute or two each")
    add_options(parser, "edge_speed")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    store = Store(chosen.out, header("edge_speed", {"teacher": TEACHER}, threads=1), chosen.fresh)
    if "read_gb_a_second" not in store.facts:
        store.note(read_gb_a_second=round(reading(), 1))
    teacher = xarch.load_teacher(TEACHER)
    runs = {"memory, 30 of 30 layers": chosen.memory, "hybrid, 10 of 30 layers": chosen.hybrid}
    work = chosen.work / store.key
    made: dict[str, Callable[[], DecoderStudent]] = {
        name: lambda run=run: load_student(run, get_registry(), torch.device("cpu"))[0]  # type: ignore[misc]
        for name, run in runs.items()
        if run is not None
    }
    made["teacher, xarch"] = lambda: bounded_teacher(teacher, {})
    for precision in chosen.precisions:
        rival(store, work, precision, chosen.contexts)
        for arm, student in made.items():
            own(store, work, arm, student, precision, chosen.contexts)
    if chosen.quality and "int4" in chosen.precisions:
        quality_of_rival(store, work, teacher)
    for precision, (arm, student) in itertools.product(chosen.precisions, made.items()):
        if chosen.quality and precision != "fp32" and not arm.startswith("teacher"):
            quality(store, work, arm, student, precision)
    page.show(store.finish())


def busy() -> float:
    """Load of the machine a minute ago to now; above the number of cores, wall times are too long."""
    return round(os.getloadavg()[0], 1)


def reading() -> float:
    """Gigabytes that one thread reads from memory in a second, by the sum of an array far beyond its caches."""
    numbers = torch.ones(1 << 27)
    return numbers.nbytes / 1e6 / least(numbers.sum, 5).cpu


@dataclass(frozen=True)
class Spent:
    """Least CPU and wall milliseconds of a call."""

    cpu: float
    wall: float


def least(call: Callable[[], object], repeats: int = REPEATS) -> Spent:
    call()
    cpu = wall = float("inf")
    for _ in range(repeats):
        began, spent = time.perf_counter(), time.process_time()
        call()
        cpu, wall = min(cpu, time.process_time() - spent), min(wall, time.perf_counter() - began)
    return Spent(1e3 * cpu, 1e3 * wall)


def own(
    store: Store, work: Path, arm: str, student: Callable[[], DecoderStudent], precision: str, contexts: list[int]
) -> None:
    """Measure an arm of xarch's own graphs."""
    missing = [n for n in contexts if store.find(arm=arm, precision=precision, context=n) is None]
    if not missing:
        return
    folder = work / arm.split(",")[0] / precision
    if not (folder / "facts.json").is_file():
        write(folder, student(), precision)
    facts = json.loads((folder / "facts.json").read_text())
    driven = LanguageGraphs({name: graph_metadata(folder / f"{name}.onnx") for name in facts["graphs"]})
    call, piece = Sessions(folder), driven.sizes[0]
    reads = {}
    for past in (0, *sorted(contexts)):
        held = driven.initial(past, piece)
        reads[past] = least(lambda p=past, h=held: driven.step(call, np.zeros(piece, np.int64), p, h), 4)  # type: ignore[misc]
    for context in missing:
        held = driven.initial(context, 2)
        # one token on, where no fold is due; each token bears its part of one
        step = least(lambda c=context + 1, h=held: driven.step(call, np.zeros(1, np.int64), c, h))  # type: ignore[misc]
        fold = Spent(0.0, 0.0)
        if driven.fold:
            fold = least(lambda c=context, h=held: driven.folded(call, c, h))  # type: ignore[misc]
            every = driven.fold["every"]
            step = Spent(step.cpu + fold.cpu / every, step.wall + fold.wall / every)
        starts = range(0, context, piece)
        first = Spent(
            *(sum(np.interp(starts, list(reads), [getattr(s, k) for s in reads.values()])) for k in ("cpu", "wall"))
        )
        made = point(arm, precision, context, step, first, facts, driven.state_bytes(context))
        store.add(made | ({"fold_cpu_ms": round(fold.cpu, 2)} if driven.fold else {}))
        print(store.points[-1], file=sys.stderr)


def point(
    arm: str, precision: str, context: int, step: Spent, first: Spent, facts: Mapping[str, Any], state: int
) -> dict[str, Any]:
    return {
        "arm": arm,
        "precision": precision,
        "context": context,
        "decode_cpu_ms": round(step.cpu, 2),
        "decode_wall_ms": round(step.wall, 2),
        "first_cpu_ms": round(first.cpu, 1),
        "first_wall_ms": round(first.wall, 1),
        "bytes": facts["bytes"],
        "nodes": facts["nodes"],
        "state_bytes": state,
        "load": busy(),
        **({"bits": facts["bits"]} if "bits" in facts else {}),
    }


def write(folder: Path, student: DecoderStudent, precision: str) -> None:
    """Write the graphs of a student as its export does, without parity."""
    profile = get_registry().create("export", PRECISIONS[precision])
    graphs = decoder_graphs(student, profile, DecoderExport())
    models = {graph.name: to_onnx(graph, profile) for graph in graphs}
    bits = {"fp32": 32, "int8": 8, "int4": 4}[precision]
    choice = Choice()
    if bits == 4:
        choice = choose(models, graphs, decoder_divergence(student, calibration()))
    folder.mkdir(parents=True, exist_ok=True)
    nodes = {}
    if bits < 32:
        for model in models.values():
            quantise_blocks(model, bits, choice.wide)
        pack_products(list(models.values()))
    with WeightStore(folder / "student.onnx.data") as weights:
        for graph in graphs:
            model = models[graph.name]
            nodes[graph.name] = model.graph.num_nodes()
            externalise(model, weights)
            told = {**graph.metadata, "prepack": bits < 32 or graph.metadata.get("prepack", True)}
            told["in_place"] = in_place(model)
            model.metadata_props.update(
                {f"xarch.{k}": v if isinstance(v, str) else json.dumps(v) for k, v in told.items()}
            )
            ir.save(model, folder / f"{graph.name}.onnx")
    total = sum(file.stat().st_size for file in folder.iterdir())
    facts = {"graphs": [graph.name for graph in graphs], "bytes": total, "nodes": nodes["decode_1"]}
    facts |= {"bits": dict(choice.figures)} if choice.figures else {}
    (folder / "facts.json").write_text(json.dumps(facts))


def tokens(domain: str, count: int) -> list[int]:
    """Tokens of a module of the standard library, or of topics of pydoc."""
    from pydoc_data.topics import topics

    text = Path(argparse.__file__).read_text(encoding="utf-8") if domain == "code" else ""
    text = text or "\n\n".join(topics[name] for name in sorted(topics)[1::2])
    return list(xarch.load_teacher(TEACHER).processor()(text)["input_ids"][:count])


def calibration() -> list[Batch]:
    """Rows by which bits are chosen: beyond the tokens of ``quality``."""
    rows = [tokens(domain, 3 * QUALITY_TOKENS)[-256:] for domain in ("code", "prose")]
    return [Batch({"input_ids": torch.tensor(rows)}, 512)]


def quality(store: Store, work: Path, arm: str, student: Callable[[], DecoderStudent], precision: str) -> None:
    """Measure the files of an arm on text, beside the student that they come from."""
    folder = work / arm.split(",")[0] / precision
    for domain in ("code", "prose"):
        key = {"arm": arm, "precision": precision, "domain": domain}
        if store.find(**key) is not None:
            continue
        made = student()
        profile = folder / "profile.json"
        facts = json.loads((folder / "facts.json").read_text())
        profile.write_text(json.dumps({"graphs": facts["graphs"], "profile": {"provider": "CPUExecutionProvider"}}))
        batch = Batch({"input_ids": torch.tensor([tokens(domain, QUALITY_TOKENS)])}, QUALITY_TOKENS)
        with torch.no_grad():
            sides = [
                model.collect(batch, ["logits"])["logits"].full()[0].float().log_softmax(-1)
                for model in (made, ExportedDecoder(folder, made, threads=1))
            ]
        store.add({**key, **compared(sides[0], sides[1], batch["input_ids"][0])})
        print(store.points[-1], file=sys.stderr)


def compared(known_LV: Tensor, found_LV: Tensor, ids_L: Tensor) -> dict[str, Any]:
    """Figures of log probabilities beside the float model's."""
    losses = [-side[:-1].gather(-1, ids_L[1:, None]).mean() for side in (known_LV, found_LV)]
    return {
        "kl": float((known_LV.exp() * (known_LV - found_LV)).sum(-1).mean()),
        "ratio": float(torch.exp(losses[1] - losses[0])),
        "top1": float((known_LV.argmax(-1) == found_LV.argmax(-1)).float().mean()),
        "tokens": len(ids_L),
    }


def quality_of_rival(store: Store, work: Path, teacher: Teacher) -> None:
    """Measure the rival's 4-bit file on the same text, beside the teacher."""
    file = work / "genai" / "int4" / "model.onnx"
    if not file.is_file():
        return
    session = open_session(file, "CPUExecutionProvider", threads=1)
    for domain in ("code", "prose"):
        key = {"arm": RIVAL, "precision": "int4", "domain": domain}
        if store.find(**key) is not None:
            continue
        ids = np.array([tokens(domain, QUALITY_TOKENS)], np.int64)
        given: dict[str, np.ndarray] = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        for value in session.get_inputs():
            if value.name not in given:
                given[value.name] = np.zeros([1, teacher.facts.kv_heads, 0, teacher.facts.head_dim], np.float32)
        found_LV = torch.from_numpy(session.run(["logits"], given)[0])[0].float().log_softmax(-1)
        batch = Batch({"input_ids": torch.from_numpy(ids)}, QUALITY_TOKENS)
        with torch.no_grad():
            known_LV = teacher.collect(batch, ["logits"])["logits"].full()[0].float().log_softmax(-1)
        store.add({**key, **compared(known_LV, found_LV, batch["input_ids"][0])})
        print(store.points[-1], file=sys.stderr)


def rival(store: Store, work: Path, precision: str, contexts: list[int]) -> None:
    """Measure the teacher as the builder of onnxruntime-genai makes it."""
    missing = [n for n in contexts if store.find(arm=RIVAL, precision=precision, context=n) is None]
    if not missing or precision == "int8":
        return
    try:
        import onnxruntime_genai as genai
    except ImportError:
        print("onnxruntime-genai is not installed: the teacher is measured by xarch's exporter only", file=sys.stderr)
        return
    folder = work / "genai" / precision
    if not (folder / "genai_config.json").is_file():
        built(work / "checkpoint", folder, precision)
    settings = json.loads((folder / "genai_config.json").read_text())
    settings["model"]["decoder"].setdefault("session_options", {})["intra_op_num_threads"] = 1
    (folder / "genai_config.json").write_text(json.dumps(settings))
    files = [file for file in folder.iterdir() if file.name.startswith("model.onnx")]
    nodes = ir.load(folder / "model.onnx").graph.num_nodes()
    facts = {"bytes": sum(file.stat().st_size for file in files), "nodes": nodes}
    model = genai.Model(str(folder))
    for context in missing:
        options = genai.GeneratorParams(model)
        # one buffer of the length that is needed, shared by all calls
        options.set_search_options(max_length=context + REPEATS + 2, do_sample=False)
        generator = genai.Generator(model, options)
        ids = np.arange(5, 5 + context) % 40_000
        began, spent = time.perf_counter(), time.process_time()
        generator.append_tokens(ids.astype(np.int32))
        generator.generate_next_token()
        first = Spent(1e3 * (time.process_time() - spent), 1e3 * (time.perf_counter() - began))
        step = least(generator.generate_next_token, REPEATS - 1)
        state = 2 * 4 * context * 30 * 3 * 64
        store.add(point(RIVAL, precision, context, step, first, facts, state))
        print(store.points[-1], file=sys.stderr)


def built(checkpoint: Path, folder: Path, precision: str) -> None:
    """Run the builder on the teacher's checkpoint, with the architecture that a GGUF file does not name."""
    from xarch_hf.gguf_convert import cached_folder

    cached = cached_folder(Path(xarch.load_teacher(TEACHER).ref.partition(":")[2]))
    checkpoint.mkdir(parents=True, exist_ok=True)
    for file in cached.iterdir():
        if file.name != "config.json" and not (checkpoint / file.name).exists():
            (checkpoint / file.name).symlink_to(file)
    config = json.loads((cached / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForCausalLM"]}))
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(checkpoint), "-o", str(folder)]
    command += ["-p", precision, "-e", "cpu", "-c", str(folder.parent / "cache")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
