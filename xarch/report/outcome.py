"""How a run ended: its gates, how far it came and what stopped it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from xarch.config.schema import Gate
from xarch.errors import UsageError
from xarch.report.blocks import Step, Tone
from xarch.report.files import RunFiles, dig, rows_of, table_of
from xarch.run.gates import GateResult, check

STOPPED_BY = {
    "quality": "the quality gate",
    "parity": "the parity gate",
    "plan": "a check of the plan",
    "plugin": "a plugin",
    "diverged": "numbers that are not finite",
    "usage": "a wrong setting",
    "out-of-memory": "memory",
}
"""First word of status.json's reason -> what stopped the run."""


@dataclass(frozen=True)
class Outcome:
    """The verdict.

    Attributes:
        state: of status.json.
        headline: one line for a person.
        reason: what stopped it, in full.
        resume: the command to go on, "" if the run is done.
        gates: quality gates against the evaluated figures.
        gate_problem: why gates could not be checked.
        steps: stations of the run.
    """

    state: str
    headline: str
    reason: str
    resume: str
    gates: tuple[GateResult, ...]
    gate_problem: str
    steps: tuple[Step, ...]

    @property
    def good(self) -> bool:
        """Whether the run is done and keeps every gate."""
        return self.state == "done" and all(g.passed for g in self.gates) and not self.gate_problem

    @property
    def tone(self) -> Tone:
        """Colour of the verdict."""
        return "good" if self.good else "bad" if self.state == "failed" else "warn"


def outcome_of(files: RunFiles) -> Outcome:
    """The verdict of a run folder, finished or not."""
    state = str(files.status.get("state", "planned" if files.plan else "empty"))
    reason, resume = str(files.status.get("reason", "")), str(files.status.get("resume", ""))
    gates, problem = _gates(files)
    steps = _steps(files, gates, state)
    return Outcome(state, _headline(files, state, reason, gates), reason, resume, gates, problem, steps)


def is_tiny(files: RunFiles) -> bool:
    """Whether it is a trial run on a cut model, whose figures say nothing about quality."""
    return bool(dig(files.plan, "config", "tiny", default=False))


def _gates(files: RunFiles) -> tuple[tuple[GateResult, ...], str]:
    limits, gated = table_of(files.plan, "gates"), dig(files.eval, "gated")
    if not limits or gated is None or is_tiny(files):
        return (), ""
    results, problems = [], []
    for name, limit in limits.items():
        try:
            results += check(gated, {name: Gate.model_validate(limit)})
        except (UsageError, ValidationError, TypeError, ValueError) as e:
            problems.append(f"gate {name}: {e}")
    return tuple(results), "; ".join(problems)


def _headline(files: RunFiles, state: str, reason: str, gates: tuple[GateResult, ...]) -> str:
    if state == "done":
        if is_tiny(files):
            return "Trial run done: the whole path works; its figures say nothing about quality"
        if gates:
            count = {1: "its quality gate", 2: "both quality gates"}.get(len(gates), f"all {len(gates)} quality gates")
            exported = "every export reproduces it" if rows_of(files.plan, "export") else "nothing was exported"
            return f"Done: the student keeps {count} and {exported}"
        return "Done; no quality gate was set"
    if state == "failed":
        return f"Stopped by {STOPPED_BY.get(reason.split(':')[0], 'an error')}"
    return {
        "interrupted": "Interrupted; it can be resumed",
        "running": "Not finished: this page shows what there was when it was made",
        "planned": "Planned, not started",
    }.get(state, "There is no plan in this folder")


def _steps(files: RunFiles, gates: tuple[GateResult, ...], state: str) -> tuple[Step, ...]:
    """Stations in order. The first one that is not done, in a failed run, is where it stopped."""
    reached: list[tuple[str, bool, str]] = [("plan", bool(files.plan), "")]
    for stage in rows_of(files.plan, "stages"):
        reached.append((str(stage.get("name", "?")), stage.get("folder") in files.stages, ""))
    reached.append(("student saved", bool(files.student), ""))
    reached.append(("evaluation", bool(files.eval), ""))
    if table_of(files.plan, "gates") and not is_tiny(files):
        kept = sum(g.passed for g in gates)
        done = bool(gates) and kept == len(dig(files.plan, "gates"))
        reached.append(("quality gates", done, f"{kept} of {len(gates)} kept" if gates else ""))
    benched = bool(dig(files.plan, "config", "export", "bench", default=False))
    for export in rows_of(files.plan, "export"):
        target = str(export.get("profile", "?"))
        reached.append((f"export {target}", _passed(files.parity.get(target)), ""))
        if benched:
            reached.append((f"bench {target}", bool(files.bench.get(target)), ""))
    steps, stopped = [], False
    for label, done, note in reached:
        here = not done and not stopped and state in ("failed", "interrupted")
        steps.append(Step(label, "done" if done else "failed" if here else "open", note))
        stopped = stopped or not done
    return tuple(steps)


def _passed(parity: dict[str, Any] | None) -> bool:
    return bool(parity) and bool(dig(parity, "passed", default=False))
