"""The two conversions of the campaign: their inputs, phases, and what two equal runs have in common."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.faults.process import POLL, Command, import_like, start
from xarch.files.atomic import write_text

CONFIGS = {
    "decoder": """
recipe: mohawk
teacher: "hf:{work}/inputs/teacher"
student: {{target: dm2}}
data: {{ref: "text:{work}/inputs/corpus.txt", sample: {{length: 32}}, options: {{tokenizer: bytes}}}}
budget: 1000
stages:
  init: {{units: 512, batch: 4}}
  choose: {{options: {{tokens: 128}}}}
  matrix: {{skip: false, checkpoint_every: 3}}
  hidden: {{checkpoint_every: 11}}
  refit: {{batch: 4}}
  logits: {{sample: {{length: 32}}, checkpoint_every: 2, validation: {{samples: 4}}}}
evaluate: {{samples: 4, batch: 2, sample: {{length: 32}}}}
export: {{profiles: [cpu], options: {{prefill: []}}}}
runtime: {{threads: 1, tensorboard: false, device: cpu}}
""",
    "field": """
recipe: pvd
teacher: "field:{work}/inputs/teacher.npz"
teacher_options: {{samples: 32}}
student: {{target: cp, options: {{resolution: 16, density_rank: 4, colour_rank: 6}}}}
budget: 20000
evaluate: {{samples: 2}}
export: {{profiles: [cpu]}}
runtime: {{threads: 1, tensorboard: false, device: cpu}}
""",
}
SAME = ("student/*.safetensors", "student/config.json", "metrics.jsonl", "eval.json", "export/*/*.onnx*")
"""Files that are the same bit for bit in an undisturbed run and in one that was disturbed and resumed."""
LEFT = re.compile(r"\.tmp[A-Za-z0-9]{6}$|.*\.(tmp|old)-\w+$")
LONGEST = 900.0
"""Seconds after which a command counts as hanging."""


@dataclass
class Model:
    """One conversion, run undisturbed once.

    Attributes:
        work: folder of its inputs and runs.
        phases: (line of the log by which a phase is known, CPU seconds until the next) in order; planning is "".
    """

    name: str
    work: Path
    phases: list[tuple[str, float]] = field(default_factory=list)

    @property
    def config(self) -> Path:
        return self.work / "config.yaml"

    @property
    def whole(self) -> Path:
        """The undisturbed run."""
        return self.work / "whole"

    def make(self) -> None:
        """Write inputs and configuration, and run it undisturbed.

        Raises:
            SystemExit: that run failed.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        known, modules = self.work / "phases.json", self.work / "modules.txt"
        if not known.is_file():
            make_inputs(self.name, self.work / "inputs")
            self.config.write_text(CONFIGS[self.name].format(work=self.work.resolve()), encoding="utf-8")
            shutil.rmtree(self.whole, ignore_errors=True)
            write_text(known, json.dumps(self._timed(modules)))
        import_like(modules)
        self.phases = [(line, seconds) for line, seconds in json.loads(known.read_text(encoding="utf-8"))]

    def _timed(self, modules: Path) -> list[tuple[str, float]]:
        """Convert without faults; return the phases with their CPU seconds."""
        command = self.convert(self.whole, modules=modules)
        seen, spent = {"": 0.0}, 0.0
        while command.poll() is None:
            spent = max(spent, command.cpu_seconds())
            for line in logged(self.whole):
                seen.setdefault(line, spent)
            time.sleep(POLL)
        if command.code != 0:
            raise SystemExit(f"the undisturbed {self.name} run failed: {command.said()}")
        ends = [*list(seen.values())[1:], spent]
        return [(line, end - at) for (line, at), end in zip(seen.items(), ends, strict=True)]

    def convert(self, out: Path, **more: object) -> Command:
        """Start the conversion, or resume it by the command that a stopped run names."""
        begun = (out / "plan.json").is_file()
        arguments = ["convert", *([] if begun else [self.config]), "--resume", "--out", out]
        return start(arguments, self.work / f"{out.name}.txt", **more)  # type: ignore[arg-type]

    def differs(self, out: Path) -> list[str]:
        """Return the files of a run that differ from the undisturbed run's, and leftovers."""
        mine, whole = digests(out), digests(self.whole)
        left = [p.relative_to(out).as_posix() for p in out.rglob("*") if LEFT.match(p.name)]
        needed = [n for n in ("report.html", "report.md", "student/README.md") if not (out / n).is_file()]
        return sorted({n for n in mine.keys() | whole.keys() if mine.get(n) != whole.get(n)}) + left + needed


def make_inputs(name: str, folder: Path) -> None:
    """Write a teacher and data, in a fork: the process that forks commands computes nothing."""
    import os

    if folder.is_dir():
        return
    partial = folder.with_name("inputs.partial")
    partial.mkdir(exist_ok=True)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            if name == "decoder":
                from xarch_decoder.testing import tiny_llama, tiny_text

                tiny_llama(partial / "teacher", layers=2)
                tiny_text(partial / "corpus.txt")
            else:
                from xarch_field.testing import voxel_balls

                voxel_balls(partial / "teacher.npz")
            code = 0
        finally:
            os._exit(code)
    if os.waitpid(pid, 0)[1] != 0:
        raise SystemExit(f"the inputs of {name} could not be made")
    partial.rename(folder)


def logged(run: Path) -> list[str]:
    """The lines of a run's log by which phases are known, without figures and paths, which differ between runs."""
    try:
        lines = (run / "log.txt").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        text = line.partition(" ")[2].split(" (")[0]
        word = text.partition(" ")[0]
        if word in ("load", "save"):
            found.append(word)
        elif word in ("evaluate", "stage", "export", "bench", "report") and ":" not in text and "done" not in text:
            found.append(text)
    return found


def digests(run: Path) -> dict[str, str]:
    """sha256 of the files that must be the same."""
    files = sorted({p for pattern in SAME for p in run.glob(pattern)})
    return {p.relative_to(run).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
