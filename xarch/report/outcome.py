"""How a run ended: its gates, its progress and the cause of a failure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from xarch.config.schema import Gate
from xarch.errors import UsageError
from xarch.report.blocks import Step, Tone
from xarch.report.files import RunInfo, dig, names_of, rows_of, table_of
from xarch.run.gates import GateResult, check, gateable

STOPPED = {
    "quality": "Quality gate missed",
    "parity": "Parity gate missed: an export does not reproduce the student",
    "plan": "Not feasible",
    "plugin": "A plugin failed",
    "diverged": "Training diverged (NaN or Inf)",
    "usage": "Invalid configuration",
    "out-of-memory": "Out of memory",
}
"""First word of the reason in status.json -> headline."""


@dataclass(frozen=True)
class Outcome:
    """The verdict.

    Attributes:
        state: the state in status.json.
        headline: one sentence for the reader.
        reason: why the run stopped, in full.
        resume: the command that resumes the run, "" if it is done.
        gates: quality gates checked against the evaluated figures.
        gate_problem: why the gates could not be checked.
        steps: the steps of the run, in order.
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
        """Whether the run is done and every gate passed."""
        return self.state == "done" and all(g.passed for g in self.gates) and not self.gate_problem

    @property
    def tone(self) -> Tone:
        """Tone of the verdict."""
        return "good" if self.good else "bad" if self.state == "failed" else "warn"


def outcome_of(files: RunInfo) -> Outcome:
    """Return the verdict on a run, finished or not."""
    state = str(files.status.get("state", "planned" if files.plan else "empty"))
    reason, resume = str(files.status.get("reason", "")), str(files.status.get("resume", ""))
    gates, problem = _gates(files)
    steps = _steps(files, gates, state)
    return Outcome(state, _headline(files, state, reason, gates), reason, resume, gates, problem, steps)


def is_tiny(files: RunInfo) -> bool:
    """Whether this is a trial run with a truncated model, whose figures do not measure quality."""
    return bool(dig(files.plan, "config", "tiny", default=False))


def exports_of(files: RunInfo) -> list[str]:
    """Names of the profiles the run exports to."""
    return names_of(files.plan, "config", "export", "profiles")


def undone_of(summary: dict[str, Any]) -> str:
    """Why a stage was rolled back, "" if its result was kept."""
    said = summary.get("undone")
    if isinstance(said, str) and said:
        return said
    lost = dig(summary, "metrics", "validation_kept_after") == 0
    return "validation got worse" if lost else ""


def _gates(files: RunInfo) -> tuple[tuple[GateResult, ...], str]:
    limits = table_of(files.plan, "config", "gates")
    if not limits or dig(files.eval, "gated") is None or is_tiny(files):
        return (), ""
    try:
        gated = gateable(files.eval)
    except (KeyError, TypeError, AttributeError) as e:
        return (), f"eval.json lacks the figures the gates need: {e}"
    results, problems = [], []
    for name, limit in limits.items():
        try:
            results += check(gated, {name: Gate.model_validate(limit)})
        except (UsageError, ValidationError, TypeError, ValueError) as e:
            problems.append(f"gate {name}: {e}")
    return tuple(results), "; ".join(problems)


def _headline(files: RunInfo, state: str, reason: str, gates: tuple[GateResult, ...]) -> str:
    if state == "done":
        if is_tiny(files):
            return "Trial run done: every step works. Its figures do not measure quality"
        exported = "every export matches it" if exports_of(files) else "nothing was exported"
        missed = [g.name for g in gates if not g.passed]
        if missed:
            return f"Done, but the student misses {len(missed)} of {len(gates)} quality gates: {', '.join(missed)}"
        if gates:
            count = {1: "its quality gate", 2: "both quality gates"}.get(len(gates), f"all {len(gates)} quality gates")
            return f"Done: the student passes {count} and {exported}"
        return f"Done: no quality gate is set, and {exported}"
    if state == "failed":
        return STOPPED.get(reason.split(":")[0], "Stopped by an error")
    return {
        "interrupted": "Interrupted; it can be resumed",
        "running": "Not finished: this report shows the state when it was built",
        "planned": "Planned, not started",
    }.get(state, "This folder contains no plan")


def _steps(files: RunInfo, gates: tuple[GateResult, ...], state: str) -> tuple[Step, ...]:
    """Return the steps in order. In a failed run the first step that is not done is where it stopped."""
    reached: list[tuple[str, bool, str]] = [("plan", bool(files.plan), "")]
    undone = set()
    for stage in rows_of(files.plan, "stages"):
        summary = files.stages.get(str(stage.get("folder")))
        label = str(stage.get("name", "?"))
        if summary is not None and undone_of(summary):
            undone.add(label)
        reached.append((label, summary is not None, "rolled back" if label in undone else ""))
    reached.append(("student saved", bool(files.student), ""))
    reached.append(("evaluation", bool(files.eval), ""))
    limits = table_of(files.plan, "config", "gates")
    if limits and not is_tiny(files):
        kept = sum(g.passed for g in gates)
        done = bool(gates) and kept == len(limits)
        reached.append(("quality gates", done, f"{kept} of {len(gates)} passed" if gates else ""))
    benched = bool(dig(files.plan, "config", "export", "bench", default=False))
    for profile in exports_of(files):
        reached.append((f"export {profile}", _passed(files.parity.get(profile)), ""))
        if benched:
            reached.append((f"bench {profile}", bool(files.bench.get(profile)), ""))
    steps: list[Step] = []
    stopped = False
    for label, done, note in reached:
        here = not done and not stopped and state in ("failed", "interrupted")
        done_as: Literal["done", "undone"] = "undone" if label in undone else "done"
        steps.append(Step(label, done_as if done else "failed" if here else "open", note))
        stopped = stopped or not done
    return tuple(steps)


def _passed(parity: dict[str, Any] | None) -> bool:
    return bool(parity) and bool(dig(parity, "passed", default=False))
