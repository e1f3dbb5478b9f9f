"""Encoder-decoders beside decoders of fewer layers, both distilled from SmolLM2-135M with the same tokens.

    python benchmarks/encdec_decoder.py
    python benchmarks/encdec_decoder.py --tasks keys --seeds 0

Task ``keys``: a long source and a short answer, 12 names with a number each, then one of the names, whose number is the
answer. Task ``docstrings``: functions of the standard library and their docstrings. Students begin with layers of the
teacher and see the same few pairs in the same order, with the teacher's predictions (0.9) and the answers (0.1), or
with the answers alone. Encoder-decoders have rivals of their own parameters: 20 + 30 layers, of which 20 are both, a
decoder of all 30, which begins as the teacher; 16 + 22, of which 16 are both, and 13 + 9 a decoder of 22, which has the
work of 20 + 30 for such a pair. Figures are of held-out answers, also before training, where a decoder of 22 is the
teacher without 8 layers; an answer is right if all of its tokens are. An interrupted measurement resumes.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.store import Store, add_options, header

SMOLLM2 = "zoo:smollm2-135m"
PROMPT = (
    "<|im_start|>user\nWrite a docstring of one sentence for this function:\n"
    "{source}<|im_end|>\n<|im_start|>assistant\n"
)
NAMES = "Anna Bob Carl Dora Emil Fred Gina Hugo Ivan Jane Karl Lena Mark Nina Olga Paul Rosa Sara Tom Vera Will".split()  # noqa: SIM905
ENTRIES = 12
"""Names of a source."""


@dataclass(frozen=True)
class Arm:
    """A student: layers of encoder and decoder, or of a decoder alone.

    Attributes:
        options: of the target ``encdec``; empty for a decoder.
        kept: the teacher's layers that the decoder has, where it is no encoder-decoder whose plan says so.
        gold: weight of the answers; what is left is that of the teacher's predictions.
        rate: peak learning rate; a student that begins far from its teacher bears more.
    """

    options: dict[str, Any] = field(default_factory=dict)
    kept: tuple[int, ...] = ()
    gold: float = 0.1
    rate: float = 1e-4


@dataclass(frozen=True)
class Task:
    """What students learn: updates, pairs of each, held-out pairs; and the arms that learn it."""

    steps: int
    rows: int
    heldout: int
    arms: tuple[str, ...]


def spread(first: int, last: int, count: int) -> tuple[int, ...]:
    """So many layers, evenly spaced, the first and the last included."""
    return tuple(first + round(k * (last - first) / (count - 1)) for k in range(count))


SHARED = {"encoder": 20, "decoder": 30, "share": True}
BOTH = {"plan": "drop", "encoder": 16, "decoder": 22, "share": True}
SIXTEEN = (*range(16), *spread(16, 29, 6))
FAR = 3e-4
SPLIT = {"encoder": 13, "decoder": 9}
ARMS = {
    "encoder-decoder 20+30, shared": Arm(SHARED),
    "decoder of 30": Arm(kept=spread(0, 29, 30)),
    "encoder-decoder 16+22, shared": Arm(BOTH, SIXTEEN, rate=FAR),
    "encoder-decoder 13+9": Arm(SPLIT, rate=FAR),
    "decoder of 22": Arm(kept=spread(0, 29, 22), rate=FAR),
    "encoder-decoder 20+30, shared, answers alone": Arm(SHARED, gold=1.0),
    "encoder-decoder 16+22, shared, answers alone": Arm(BOTH, SIXTEEN, gold=1.0, rate=FAR),
}
DISTILLED = tuple(name for name, arm in ARMS.items() if arm.gold < 1)
FEW = tuple(name for name in ARMS if name not in ("decoder of 30", "encoder-decoder 13+9"))
TASKS = {"keys": Task(12, 4, 32, DISTILLED), "docstrings": Task(16, 4, 32, FEW)}
SOURCE, TARGET = 80, 20
"""Most tokens of a docstring's pair."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), help="by default those of each task")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add_options(parser, "encdec_decoder")
    chosen = parser.parse_args()
    settings: dict[str, list[float]] = {name: [task.steps, task.rows, task.heldout] for name, task in TASKS.items()}
    settings["rates"] = [arm.rate for arm in ARMS.values()]
    store = Store(chosen.out, header("encdec_decoder", settings, threads=1), chosen.fresh)
    import torch

    torch.set_num_threads(1)
    for name in chosen.tasks:
        source = Source(name)
        if store.find(task=name, arm="teacher") is None:
            store.add({"task": name, "arm": "teacher", **source.figures(source.view)})
            print(store.points[-1], file=sys.stderr)
        for seed in chosen.seeds:
            for arm in chosen.arms or TASKS[name].arms:
                if store.find(task=name, arm=arm, seed=seed) is None:
                    store.add({"task": name, "arm": arm, "seed": seed, **source.student(arm, seed)})
                    print(store.points[-1], file=sys.stderr)
    store.finish()
    show(store.points)


def show(points: Sequence[dict[str, Any]]) -> None:
    """Print means over seeds and their range."""
    for task, arm in dict.fromkeys((p["task"], p["arm"]) for p in points):
        of = [p for p in points if (p["task"], p["arm"]) == (task, arm)]
        told = []
        for figure in ("nll_before", "nll", "kl_before", "kl", "right"):
            seen = [p[figure] for p in of if figure in p]
            told += [f"{figure} {statistics.mean(seen):.3f} [{min(seen):.3f}, {max(seen):.3f}]"] if seen else []
        print(f"{task}: {arm}, {len(of)} seeds, {of[0]['parameters']:.3f} parameters: " + ", ".join(told))


class Source:
    """A task: its teacher, and pairs."""

    def __init__(self, name: str) -> None:
        import torch

        import xarch
        from xarch_encdec.teacher import AnswerView

        self.name, self.task = name, TASKS[name]
        self.teacher = xarch.load_teacher(SMOLLM2)
        self.view = AnswerView(self.teacher)
        self.heldout = list(self.batches("heldout", 0, self.task.heldout // 8, 8))
        with torch.no_grad():
            self.known = [self._logits(self.view, batch) for batch in self.heldout]
        self._lessons: tuple[int, list[tuple[Any, Any]]] | None = None

    def batches(self, split: str, seed: int, count: int, rows: int) -> Iterator[Any]:
        """Yield so many batches of pairs."""
        from xarch_text.pair_encoding import Tokens, to_batch

        if self.name == "keys":
            draw = random.Random(f"{split} {seed}")
            encode = self.teacher.processor().encode
            for _ in range(count):
                found = []
                for _ in range(rows):
                    prompt, answer = (list(encode(text)) for text in entries(draw))
                    found.append(Tokens(prompt[:-1], [prompt[-1], *answer]))
                yield to_batch(found, rows, joined=True)
            return
        yield from islice(docstrings(self.teacher, split, seed, rows), count)

    def lessons(self, seed: int) -> list[tuple[Any, Any]]:
        """Batches to learn from and the teacher's logits, which all students of a seed share."""
        import torch

        if self._lessons is None or self._lessons[0] != seed:
            with torch.no_grad():
                batches = self.batches("train", seed + 1, self.task.steps, self.task.rows)
                self._lessons = seed, [(batch, self._logits(self.view, batch)) for batch in batches]
        return self._lessons[1]

    def student(self, name: str, seed: int) -> dict[str, float]:
        """Distil a student; return its figures before and after."""
        import torch

        lessons = self.lessons(seed)
        torch.manual_seed(seed)
        began = time.process_time()
        arm = ARMS[name]
        model, trained = self._built(arm)
        before = self.figures(model)
        for parameter in trained.parameters():
            parameter.requires_grad_(True)
        optimiser = torch.optim.AdamW(trained.parameters(), lr=arm.rate, betas=(0.9, 0.98), weight_decay=0.01)
        steps, warm = self.task.steps, max(2, self.task.steps // 20)
        for step, (batch, theirs) in enumerate(lessons):
            part = min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / steps))
            for group in optimiser.param_groups:
                group["lr"] = arm.rate * part
            kl, gold = distances(self._logits(model, batch), theirs, batch)
            optimiser.zero_grad(set_to_none=True)
            ((1 - arm.gold) * kl + arm.gold * gold).backward()
            torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
            optimiser.step()
        trained.eval()
        after = self.figures(model)
        told = {f"{key}_before": before[key] for key in ("nll", "kl", "right")}
        return {**told, **after, "cpu_s": round(time.process_time() - began, 1)}

    def _built(self, arm: Arm) -> tuple[Any, Any]:
        import torch

        from xarch_encdec.controls import CutTeacher
        from xarch_encdec.options import EncDecOptions
        from xarch_encdec.target import EncDecTarget

        if not arm.options:
            cut = CutTeacher(self.teacher, arm.kept)
            own = {name: tensor.detach().clone() for name, tensor in cut.module.state_dict().items()}
            cut.module.load_state_dict(own, assign=True)
            return cut, cut.module
        target = EncDecTarget()
        options = EncDecOptions(**arm.options, mask="causal", memory="layers")
        decided = {"decoder": arm.kept} if arm.kept else {}
        student = target.build(self.teacher.facts, options, decided, device=torch.device("cpu"))
        target.initialise(student, self.teacher)
        return student, student.module

    def _logits(self, model: Any, batch: Any) -> Any:
        seen = batch.seen_by("teacher" if model is self.view else "student")
        return model.collect(seen, ["logits"])["logits"].full()

    def figures(self, model: Any) -> dict[str, float]:
        """Loss of held-out answers, KL to the teacher, share of answers that are right, and parameters."""
        import torch

        nll = kl = right = tokens = rows = 0.0
        with torch.no_grad():
            for batch, theirs in zip(self.heldout, self.known, strict=True):
                ours = theirs if model is self.view else self._logits(model, batch)
                seen = batch.seen_by("student")
                counted = seen["answer_mask"] > 0
                apart, gold = distances(ours, theirs, batch)
                tokens += float(counted.sum())
                kl, nll = kl + float(apart * counted.sum()), nll + float(gold * counted.sum())
                hit = (ours[:, :-1].argmax(-1) == seen["decoder_input_ids"][:, 1:]) | (counted[:, :-1] == 0)
                right, rows = right + float(hit.all(1).sum()), rows + len(hit)
        count = sum(p.numel() for p in model.module.parameters()) / sum(
            t.numel() for t in self.teacher.weights().values()
        )
        own = {"kl": round(kl / tokens, 4)} if model is not self.view else {}
        return {"parameters": round(count, 3), "nll": round(nll / tokens, 4), **own, "right": round(right / rows, 4)}


def distances(ours: Any, theirs: Any, batch: Any) -> tuple[Any, Any]:
    """KL of teacher and student, and loss, both in nats a token of the answers."""
    seen = batch.seen_by("student")
    counted = (seen["answer_mask"] > 0)[:, :-1]
    p, q = theirs[:, :-1][counted].log_softmax(-1), ours[:, :-1][counted].log_softmax(-1)
    wanted = seen["decoder_input_ids"][:, 1:][counted]
    return (p.exp() * (p - q)).sum(-1).mean(), -q.gather(1, wanted[:, None]).mean()


def entries(draw: random.Random) -> tuple[str, str]:
    """A list of names and numbers with a question for one of them, and its number."""
    names = draw.sample(NAMES, ENTRIES)
    numbers = [draw.randint(10, 99) for _ in names]
    asked = draw.randrange(ENTRIES)
    known = "".join(f"{name}: {number}\n" for name, number in zip(names, numbers, strict=True))
    asked_for = f"<|im_start|>user\n{known}What number does {names[asked]} have?<|im_end|>\n<|im_start|>assistant\n"
    return f"{asked_for}{names[asked]}:", f" {numbers[asked]}\n"


def docstrings(teacher: Any, split: Any, seed: int, rows: int) -> Iterator[Any]:
    """Yield batches of functions and their docstrings, in an order of the seed."""
    from xarch.contracts.data import DataRequest
    from xarch.planning.resolve import resolve_data
    from xarch.registry.loader import get_registry

    data = resolve_data(get_registry(), "pairs:python-docstrings", {"prompt": PROMPT})
    processor = teacher.processor()
    request = DataRequest(
        ref=data.ref,
        options=data.options,
        split=split,
        samples=rows,
        seed=seed,
        sample={"source": SOURCE, "target": TARGET},
        processors={"teacher": processor, "student": processor},
        teacher=teacher,
        facts=teacher.facts,
    )
    return iter(data.adapter.open(request))


if __name__ == "__main__":
    main()
