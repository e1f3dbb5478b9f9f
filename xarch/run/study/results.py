"""Results of a study: figures of every run, arms compared with their control, and study.json."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from xarch.config.study import StudyConfig
from xarch.errors import QualityError
from xarch.files.atomic import finite
from xarch.files.run_dir import RunDir
from xarch.numbers import known, number
from xarch.run.gates import gateable
from xarch.run.study.arms import StudyArm, StudyRun
from xarch.run.study.significance import deviation, paired


@dataclass(frozen=True)
class Outcome:
    """State and figures of a run.

    Attributes:
        state: "waiting", "interrupted", "failed" or "done". A run that only misses its quality gate counts as done,
            because a study needs its figures.
        figures: every figure of eval.json that may be gated, by name: the student's, those comparing it with its
            teacher, and those of its operating points and exports.
        headline, higher_is_better, unit: those of the run's metric.
        directions, units: those of further figures, by name.
        teacher: the teacher's figures.
        reason, exit_code: why it failed.
        gate: why it missed its quality gate, "" if it passed.
        seconds: wall-clock time over all attempts.
        commit: of the code that began the run, "" if unknown.
    """

    state: str
    figures: Mapping[str, float] = field(default_factory=dict)
    headline: str = ""
    higher_is_better: bool | None = None
    unit: str = ""
    directions: Mapping[str, bool] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    teacher: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    exit_code: int = 0
    gate: str = ""
    seconds: float | None = None
    commit: str = ""

    def chosen(self, metrics: Sequence[str]) -> dict[str, float]:
        """Return the figures with these names, or the headline."""
        names = list(metrics) or [self.headline]
        return {name: self.figures[name] for name in names if name in self.figures}


def read_outcome(folder: Path) -> Outcome:
    """Read the outcome of a run folder."""
    run = RunDir(folder)
    if not run.status.is_file():
        return Outcome("interrupted" if run.plan.is_file() else "waiting")
    status = run.read_status()
    state, reason = status["state"], str(status.get("reason", ""))
    missed = state == "failed" and reason.startswith(f"{QualityError.kind}:")
    if state == "done" or (missed and run.eval_json.is_file()):
        found = run.read_evaluation() if run.eval_json.is_file() else {}
        figures = gateable({"student": {}, "gated": {}, **found})
        directions = {found.get("metric", ""): found.get("higher_is_better"), **(found.get("directions") or {})}
        # Of a variant or an export, a figure is judged as the student's: variants.NAME.FIGURE.
        own = {name: directions[last] for name in figures for last in name.split(".", 2)[2:] if last in directions}
        return Outcome(
            "done",
            {k: float(v) for k, v in figures.items() if known(v)},
            str(found.get("metric", "")),
            found.get("higher_is_better"),
            str(found.get("unit", "")),
            {**own, **(found.get("directions") or {})},
            found.get("units") or {},
            {k: float(v) for k, v in (found.get("teacher") or {}).items() if known(v)},
            gate=reason if missed else "",
            commit=str(run.read_json(run.run_json).get("git") or "") if run.run_json.is_file() else "",
        )
    return Outcome("failed", reason=reason, exit_code=1) if state == "failed" else Outcome("interrupted")


@dataclass(frozen=True)
class StudyDocument:
    """The parts of study.json: a header, facts and table rows, in the format of ``benchmarks/results``."""

    header: dict[str, Any]
    facts: dict[str, Any]
    points: list[dict[str, str]]

    def data(self) -> dict[str, Any]:
        """Return the document as plain data."""
        return {"header": self.header, "facts": self.facts, "points": self.points}

    def text(self) -> str:
        """Return JSON with one entry per line, so that results can be compared with diff."""
        head, facts = (
            ",\n".join(f"{json.dumps(k)}: {_compact(v)}" for k, v in part.items()) for part in (self.header, self.facts)
        )
        points = ",\n".join(map(_compact, self.points))
        return f'{{"header": {{\n{head}\n}},\n"facts": {{\n{facts}\n}},\n"points": [\n{points}\n]}}\n'


def document(
    study: StudyConfig,
    name: str,
    arms: Sequence[StudyArm],
    runs: Sequence[StudyRun],
    outcomes: Mapping[str, Outcome],
    command: str,
    version: str,
) -> StudyDocument:
    """Return all results of a study, for tables, reports and scripts."""
    by_arm: dict[str, dict[Any, Outcome]]
    by_arm = {a.name: {r.seed: outcomes[r.name] for r in runs if r.arm == a.name} for a in arms}
    arms = [*arms, *_pooled(arms, by_arm)]
    done = [o for o in outcomes.values() if o.state == "done"]
    metrics = list(study.metrics) or sorted({o.headline for o in done if o.headline})
    summaries = [_summary(arm, metric, by_arm) for metric in metrics for arm in arms]
    figures = {m: _about(m, done) for m in metrics}
    header = {
        "benchmark": f"study_{name}",
        "command": command,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "finished": all(o.state == "done" for o in outcomes.values()),
        "versions": {"xarch": version},
        "machine": {"threads": study.threads},
        "seeds": study.seeds,
        "control": study.control,
        **({"against": study.against} if study.against else {}),
    }
    facts = {
        "metrics": figures,
        **{f"run {r.arm} {r.seed}": _of_run(r, outcomes[r.name]) for r in runs},
        **{f"arm {s['arm']} {s['metric']}": s for s in summaries},
    }
    points = [_row(s, figures[s["metric"]]) for s in summaries if s["n"]]
    return StudyDocument(finite(header), finite(facts), points)


def _pooled(arms: Sequence[StudyArm], by_arm: dict[str, dict[Any, Outcome]]) -> list[StudyArm]:
    """Return an arm "NAME, pooled" for each that has several points on the axes and a control at each, and add its
    outcomes, keyed by point and seed."""
    made = {}
    for arm in arms:
        siblings = [a for a in arms if a.base == arm.base]
        rivals = {a.name: a.base for a in arms}
        if arm.base and len(siblings) > 1 and arm.base not in made:
            compared = {rivals[a.control] for a in siblings if a.control}
            own = {f"{a.point} {seed}": o for a in siblings for seed, o in by_arm[a.name].items()}
            by_arm[f"{arm.base}, pooled"] = own
            control = f"{compared.pop()}, pooled" if len(compared) == 1 else ""
            made[arm.base] = StudyArm(f"{arm.base}, pooled", {}, "" if control == f"{arm.base}, pooled" else control)
    return [made[base] for base in made]


def _about(metric: str, done: Sequence[Outcome]) -> dict[str, Any]:
    directions = [o.higher_is_better if o.headline == metric else o.directions.get(metric) for o in done]
    units = [o.unit if o.headline == metric else o.units.get(metric, "") for o in done]
    teachers = {o.teacher[metric] for o in done if metric in o.teacher}
    return {
        "higher_is_better": next((d for d in directions if d is not None), None),
        "unit": next(filter(None, units), ""),
        # One line in the figure of all arms: only if all have the same teacher.
        "teacher": teachers.pop() if len(teachers) == 1 else None,
    }


def _of_run(run: StudyRun, outcome: Outcome) -> dict[str, Any]:
    kept = {"arm": run.arm, "seed": run.seed, "state": outcome.state, "digest": run.digest}
    kept |= {"figures": dict(outcome.figures), "seconds": outcome.seconds}
    more = {"reason": outcome.reason, "gate": outcome.gate, "teacher": dict(outcome.teacher), "commit": outcome.commit}
    return kept | {k: v for k, v in more.items() if v}


def _values(outcomes: Mapping[Any, Outcome], metric: str) -> dict[Any, float]:
    return {s: o.figures[metric] for s, o in outcomes.items() if o.state == "done" and metric in o.figures}


def _summary(arm: StudyArm, metric: str, by_arm: Mapping[str, Mapping[Any, Outcome]]) -> dict[str, Any]:
    own = _values(by_arm[arm.name], metric)
    teachers = [o.teacher[metric] for o in by_arm[arm.name].values() if metric in o.teacher]
    made: dict[str, Any] = {
        "arm": arm.name,
        "metric": metric,
        "n": len(own),
        "mean": statistics.fmean(own.values()) if own else None,
        "sd": deviation(list(own.values())),
        "values": {str(seed): value for seed, value in own.items()},
        "control": arm.control,
        "teacher": statistics.fmean(teachers) if teachers else None,
    }
    if arm.control:
        rival = _values(by_arm[arm.control], metric)
        test = paired([own[s] - rival[s] for s in own if s in rival])
        made["difference"] = None if test is None else asdict(test)
        made["control_mean"] = statistics.fmean(rival.values()) if rival else None
    return made


def _row(summary: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, str]:
    """Return a row of ``python -m benchmarks results``."""
    values, sd = list(summary["values"].values()), summary["sd"]
    spread = "–".join(dict.fromkeys(number(v) for v in (min(values), max(values))))
    unit = f" {about['unit']}" if about["unit"] else ""
    rival = ""
    if summary["control"] and summary.get("control_mean") is not None:
        rival = f"{summary['control']} {number(summary['control_mean'])}; difference {difference_text(summary)}"
    elif summary["teacher"] is not None:
        rival = f"teacher {number(summary['teacher'])}"
    return {
        "what": f"{summary['arm']}: {summary['metric']}",
        "figure": f"{number(summary['mean'])}{f' ± {number(sd)}' if sd is not None else ''}{unit}",
        "spread": spread,
        "seeds": str(summary["n"]),
        "rival": rival,
    }


def difference_text(summary: Mapping[str, Any]) -> str:
    """Return a difference as text: ``+0.012 [0.003, 0.021], p 0.02``."""
    test = summary.get("difference")
    if not test:
        return "–"
    mean = ("+" if test["mean"] > 0 else "") + number(test["mean"])
    if test["p"] is None:
        return mean
    return f"{mean} [{number(test['low'])}, {number(test['high'])}], p {test['p']:.2g}"


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
