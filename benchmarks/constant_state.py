"""Decoders of constant state without training: quality by domain and context at equal state bytes.

    python benchmarks/constant_state.py --wikitext wikitext2/test.txt
    python benchmarks/constant_state.py --wikitext wikitext2/test.txt --bytes 84000 --contexts 2048

Every arm is the teacher with bounded memories in the same layers: windows in three precisions, eviction in two, H2O in
int8, and the target ``memory``: of the same size in every head, or divided among them by the stage ``allocate``.
Domains: WikiText-2 from a file, code (three modules of the standard library) and prose (topics of pydoc); the rows that
``allocate`` reads are of other modules and topics. Nothing is random. An interrupted measurement resumes.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

import xarch
from benchmarks import page
from benchmarks.store import Store, add_options, header
from xarch import Batch, Teacher
from xarch.kernels import MemoryLayout
from xarch_decoder.controls import (
    EVICTIONS,
    HEAVY_HITTERS,
    WINDOWS,
    bounded_teacher,
    eviction_layout,
    heavy_hitter_layout,
    window_layout,
)
from xarch_decoder.scores import Scores, add_batch
from xarch_decoder.student import DecoderStudent
from xarch_memory.allocate import ErrorProbe, allocated, measured_sizes
from xarch_memory.options import MemoryOptions
from xarch_memory.target import MemoryTarget

TEACHER = "zoo:smollm2-135m"
BYTES = 168_000
DOMAINS = ("wikitext", "code", "prose")
CODE = ("typing", "tarfile", "argparse")
LAYERS: dict[str, list[int] | None] = {"30 of 30": None, "10 of 30": [5, 7, 9, 12, 15, 21, 22, 25, 27, 29]}
ROWS = {512: 4, 2048: 4, 4096: 1, 8192: 1}
"""Context -> rows of each domain."""
FIT_TOKENS = 2048
"""Tokens of each of the two rows that ``allocate`` reads."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wikitext", type=Path, required=True, help="text of WikiText-2's test split")
    parser.add_argument("--contexts", type=int, nargs="+", default=sorted(ROWS))
    parser.add_argument("--layers", nargs="+", default=list(LAYERS), choices=list(LAYERS))
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="default: all")
    parser.add_argument("--domains", nargs="+", default=list(DOMAINS), choices=DOMAINS)
    parser.add_argument("--bytes", type=int, default=BYTES, help="state bytes a layer")
    add_options(parser, "constant_state")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    settings = {"teacher": TEACHER, "bytes": chosen.bytes, "rows": ROWS}
    store = Store(chosen.out, header("constant_state", settings, threads=1), chosen.fresh)
    teacher = xarch.load_teacher(TEACHER)
    domains = texts(teacher.processor(), chosen.wikitext)
    for layers in chosen.layers:
        arms = Arms(teacher, LAYERS[layers], chosen.bytes, domains)
        unknown = sorted(set(chosen.arms or ()) - set(arms.made))
        if unknown:
            parser.error(f"--arms: no {unknown[0]!r}; the arms are {', '.join(map(repr, arms.made))}")
        wanted = chosen.arms or list(arms.made)
        for context in chosen.contexts:
            for domain in chosen.domains:
                measure(store, teacher, arms, wanted, layers, context, domain, domains[domain])
    page.show(store.finish())


def texts(tokenizer: Any, wikitext: Path) -> dict[str, Tensor]:
    """Tokens of every domain, those of the fit under ``fit code`` and ``fit prose``."""
    from pydoc_data.topics import topics

    prose = [topics[name] for name in sorted(topics)]
    found = {
        "wikitext": wikitext.read_text(encoding="utf-8"),
        "code": "\n\n".join(_source(name) for name in CODE),
        "prose": "\n\n".join(prose[1::2]),
        "fit code": _source("ast"),
        "fit prose": "\n\n".join(prose[::2]),
    }
    return {name: torch.tensor(tokenizer(text)["input_ids"]) for name, text in found.items()}


def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).read_text(encoding="utf-8")


class Arms:
    """Models of every arm, and the CPU seconds that their fit took."""

    def __init__(self, teacher: Teacher, layers: list[int] | None, budget: int, domains: dict[str, Tensor]) -> None:
        self.teacher, self.budget, self.domains = teacher, budget, domains
        self.layers = list(range(teacher.facts.layers)) if layers is None else layers
        self.found: dict[str, tuple[DecoderStudent, float]] = {}
        self.made: dict[str, Callable[[], DecoderStudent]] = {
            **{f"window {p}": self._control(window_layout, p) for p in WINDOWS},
            **{name: self._control(eviction_layout, *precisions) for name, precisions in EVICTIONS.items()},
            HEAVY_HITTERS: self._control(heavy_hitter_layout),
            "memory int8, uniform": lambda: self._memory("int8", fit=False),
            "memory float32": lambda: self._memory("float32", fit=True),
            "memory int8": lambda: self._memory("int8", fit=True),
        }

    def model(self, arm: str) -> tuple[DecoderStudent, float]:
        """The model and the CPU seconds of its fit, made once."""
        if arm not in self.found:
            begin = time.process_time()
            self.found[arm] = (self.made[arm](), time.process_time() - begin)
        return self.found[arm]

    def _control(self, layout_of: Callable[..., MemoryLayout | None], *precisions: Any) -> Callable[[], DecoderStudent]:
        def made() -> DecoderStudent:
            layout = layout_of(self.teacher.facts, self.budget, *precisions)
            assert layout is not None
            return bounded_teacher(self.teacher, dict.fromkeys(self.layers, layout))

        return made

    def _memory(self, precision: Any, *, fit: bool) -> DecoderStudent:
        layers: Any = {"replace": self.layers}
        options = MemoryOptions(layers=layers, bytes_a_layer=self.budget, precision=precision)
        student = MemoryTarget().build(self.teacher.facts, options, {}, device=torch.device("cpu"))
        MemoryTarget().initialise(student, self.teacher)
        student.module.eval().requires_grad_(False)
        sizes = measured_sizes(student)
        probe = ErrorProbe(student, sizes if fit else [], self.teacher.run)
        for name in ("fit code", "fit prose"):
            ids_1L = self.domains[name][:FIT_TOKENS][None]
            probe.measure(Batch({"input_ids": ids_1L}, ids_1L.numel()))
        if fit:
            student.decide({"entries": allocated(probe.table(), sizes, student.sizes, student.budget)})
        return student


def measure(
    store: Store,
    teacher: Teacher,
    arms: Arms,
    wanted: Sequence[str],
    layers: str,
    context: int,
    domain: str,
    tokens: Tensor,
) -> None:
    """Add every missing one of the wanted arms at one context in one domain."""
    key = {"layers": layers, "context": context, "domain": domain}
    missing = [arm for arm in wanted if store.find(**key, arm=arm) is None]
    if not missing:
        return
    rows = list(batches(tokens, context))
    with torch.no_grad():
        known = [teacher.collect(row, ["logits"])["logits"] for row in rows]
        for arm in missing:
            model, fit = arms.model(arm)
            scores = {"teacher": Scores(), "student": Scores()}
            begin = time.process_time()
            for row, logits in zip(rows, known, strict=True):
                add_batch(row, logits, {"student": model.collect(row, ["logits"])["logits"]}, scores)
            student, given = scores["student"], scores["teacher"]
            # What a control holds for ease of computation, and need not, is not counted.
            held = model.state_bytes()
            used = sum(held.values()) / len(held)
            store.add(
                {
                    **key,
                    "arm": arm,
                    "kl": student.kl,
                    "kl_stderr": None if len(rows) < 2 else student.kl_stderr,
                    "ratio": float(torch.tensor(student.cross_entropy - given.cross_entropy).exp()),
                    "top1": student.agree / student.tokens,
                    "tokens": student.tokens,
                    "rows": len(rows),
                    "fit_cpu_seconds": round(fit, 1),
                    "cpu_seconds": round(time.process_time() - begin, 1),
                    "state_bytes_a_layer": round(min(used, arms.budget)),
                }
            )
            print(store.points[-1], file=sys.stderr)


def batches(tokens: Tensor, context: int) -> Iterator[Batch]:
    """Consecutive rows of a domain."""
    for i in range(ROWS.get(context, 1)):
        ids_1L = tokens[i * context : (i + 1) * context][None]
        yield Batch({"input_ids": ids_1L}, ids_1L.numel())


if __name__ == "__main__":
    main()
