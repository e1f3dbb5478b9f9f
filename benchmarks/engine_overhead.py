"""CPU time of an optimiser step of the engine against a plain loop over the same modules, data and losses.

    python benchmarks/engine_overhead.py

The family is that of ``examples/plugin``: an MLP teaches a residual network on scikit-learn's digits, by the teacher's
distribution and the labels. Both ways take the same batches, read before any clock starts (drawing them would cost as
much as a small step and hide the engine), run the same teacher and student, compute the same losses and step the same
fused AdamW, in turn, ``--rounds`` times: loop, engine, loop. Width and batch set the cost of a step, from a millisecond
(the interpreter is most of it) to many; the bar is a ratio of 1.15.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples" / "plugin")]
os.environ["XARCH_PLUGIN_FILES"] = str(ROOT / "examples" / "plugin" / "xarch_rows" / "__init__.py")

from benchmarks import page  # noqa: E402
from benchmarks.store import Store, add_options, header  # noqa: E402

SIZES = ((32, 32), (128, 256), (512, 256))
"""(width of the student, rows of a batch)."""
STEPS = 300


class Replayed:
    """A stream of batches that were read before, from the first one at every opening."""

    watches_losses = False

    def __init__(self, batches: Sequence[Any]) -> None:
        self.batches, self.at = batches, 0

    def __iter__(self) -> Replayed:
        return self

    def __next__(self) -> Any:
        self.at += 1
        return self.batches[self.at - 1]

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.at = state["at"]

    def counters(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        """Hold nothing open."""


def read_once() -> None:
    """Let the family's training data be drawn once per batch size; later openings replay them."""
    from xarch_rows.data import TableData

    drawn: dict[int, list[Any]] = {}
    open_stream = TableData.open

    def replay(provider: Any, request: Any) -> Any:
        if request.split != "train":
            return open_stream(provider, request)
        if request.samples not in drawn:
            drawn[request.samples] = list(islice(open_stream(provider, request), STEPS))
        return Replayed(drawn[request.samples])

    TableData.open = replay


def through_engine(teacher: str, width: int, batch: int, folder: Path) -> float:
    """CPU milliseconds of a step in a stage, without start and end of the run."""
    import xarch

    stage = {
        "scope": "global",
        "units": STEPS * batch,
        "batch": batch,
        "matches": {
            "kd": {"student": "logits", "objective": "kl", "options": {"temperature": 2.0}},
            "labels": {"student": "logits", "teacher": "batch:labels", "objective": "cross-entropy"},
        },
        "trains": {"all": {}},
        "optimiser": {"lr": 1e-3, "clip": 1.0},
        "checkpoint_every": STEPS,
        "log_every": 10,
    }
    overrides: dict[str, Any] = {
        "teacher": teacher,
        "student.target": "rows-resnet",
        "student.options": {"width": width},
        "data.ref": "rows:digits",
        "stages": {"distil": stage},
        "evaluate.baseline": False,
        "export.profiles": [],
        "runtime.threads": 1,
        "runtime.device": "cpu",
        "runtime.tensorboard": False,
    }
    xarch.convert(overrides=overrides, out=folder)
    [summary] = folder.glob("stages/*/summary.json")
    return 1000 * float(json.loads(summary.read_text())["training"]["cpu_seconds"]) / STEPS


def through_loop(teacher: str, width: int, rows: int) -> float:
    """CPU milliseconds of a step of the loop that one would write."""
    import torch
    import torch.nn.functional as F
    from xarch_rows.data import TableData
    from xarch_rows.source import RowSource
    from xarch_rows.target import ResNetTarget

    from xarch import DataRequest

    path = teacher.partition(":")[2]
    taught = RowSource().load(path, None, device=torch.device("cpu"), dtype=torch.float32)
    target = ResNetTarget()
    torch.manual_seed(0)
    student = target.build(taught.facts, target.Options(width=width), {}, device=torch.device("cpu")).module.train()
    adam = torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    batches = TableData().open(DataRequest("digits", TableData.Options(), samples=rows))
    started = time.process_time()
    for batch in islice(batches, STEPS):
        with torch.no_grad():
            *_, last = taught.module.hidden(batch["rows"])
            target_BK = taught.module.head(last)
        logits_BK = student(batch["rows"])
        log_p, log_q = F.log_softmax(target_BK / 2, -1), F.log_softmax(logits_BK / 2, -1)
        loss = 4 * (log_p.exp() * (log_p - log_q)).sum(-1).mean() + F.cross_entropy(logits_BK, batch["labels"])
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        adam.step()
        loss.item()
    return 1000 * (time.process_time() - started) / STEPS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    add_options(parser, "engine_overhead")
    arguments = parser.parse_args()
    import torch
    from xarch_rows.source import train_teacher

    torch.set_num_threads(1)
    settings = {"steps": STEPS, "sizes": list(SIZES)}
    store = Store(arguments.out, header("engine_overhead", settings, threads=1), arguments.fresh)
    with tempfile.TemporaryDirectory() as folder:
        teacher = f"rows:{train_teacher('digits', str(Path(folder) / 'teacher.safetensors'))}"
        read_once()
        for width, batch in SIZES:
            for number in range(arguments.rounds):
                if store.find(width=width, batch=batch, round=number) is None:
                    before = through_loop(teacher, width, batch)
                    engine = through_engine(teacher, width, batch, Path(folder) / f"{width}-{batch}-{number}")
                    loop = (before + through_loop(teacher, width, batch)) / 2
                    point = {
                        "width": width,
                        "batch": batch,
                        "round": number,
                        "loop_ms": round(loop, 3),
                        "engine_ms": round(engine, 3),
                    }
                    print(store.add({**point, "ratio": round(engine / loop, 3)}), flush=True)
    page.show(store.finish())


if __name__ == "__main__":
    main()
