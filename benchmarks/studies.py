"""Studies of ``xarch study`` as published results: figures by arm and seed, and rows that compare them.

A published study can grow by runs of later code or of another machine, arm by arm or seed by seed, on one condition:
there are runs that both have, whose first figure differs no more than the published seeds of their arm do. Training is
chaotic, so another processor's rounding alone gives another student; both figures of such a run are told.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.store import ROOT, Result, digest_of_code

COMMIT_DIGITS = 12


def from_study(name: str, result: Result) -> Result:
    """A study as a benchmark's result: what it ran on and of which code, and its figures by arm. Its command names the
    study file of this repository; that of the study names the copy in its output folder.

    Raises:
        SystemExit: this repository has no such study file.
    """
    file = Path("benchmarks", "quality", f"{name.removeprefix('study_')}.yaml")
    if not (ROOT / file).is_file():
        raise SystemExit(f"{name} is measured by {file}, which does not exist")
    told, facts = result.header, result.facts
    runs = [value for key, value in facts.items() if key.startswith("run ")]
    shown = set(facts["metrics"])
    figures: dict[str, dict[str, Any]] = {}
    teachers: dict[str, dict[str, Any]] = {}
    for run in runs:
        kept = {k: v for k, v in run["figures"].items() if k in shown}
        figures.setdefault(run["arm"], {})[str(run["seed"])] = kept or run["state"]
        teacher = {k: v for k, v in run.get("teacher", {}).items() if k in shown}
        if teacher and run["arm"] == told["control"]:
            teachers.setdefault(run["arm"], {})[str(run["seed"])] = teacher
    commits = list(dict.fromkeys(run["commit"][:COMMIT_DIGITS] for run in runs if run.get("commit")))
    settings = {"seeds": told["seeds"], "control": told["control"], "runs": {r["arm"]: r["digest"] for r in runs}}
    here = machine.commit()
    head = {
        "benchmark": name,
        "command": f"xarch study {file} --out benchmarks/out/{file.stem}",
        **{key: told[key] for key in ("date", "finished")},
        "commit": ", ".join(commits) or here,
        "settings": settings,
        "digest": digest(settings),
        "code": digest_of_code() if commits in ([], [here]) else "of another commit than that of publishing",
        "machine": machine.machine("cpu", told["machine"]["threads"]),
        "versions": machine.versions(),
    }
    kept = {"metrics": facts["metrics"], "figures": figures}
    return Result(head, {**kept, **({"teachers": teachers} if teachers else {})}, result.points)


def digest(settings: Mapping[str, Any]) -> str:
    """What names settings in a header."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def added(before: Result, after: Result) -> Result:
    """A published study with the further runs of a later one.

    The header stays that of the first; what came later is told in ``header["later"]``: commit, date, processor, runs,
    and the first figure of runs that both measured, published and again. Those stay published as they were. A row whose
    runs are the same stays as it is; the others are computed from the figures of both.

    Raises:
        SystemExit: seeds or control differ, the study has axes, no run was measured by both, or the first figure of
            one of them differs more than the published seeds of its arm do.
    """
    if any("," in arm for arm in before.facts["figures"]):
        raise SystemExit("the arms of a study with axes are also pooled: publish the whole study without --add")
    for key in ("seeds", "control"):
        if before.header["settings"][key] != after.header["settings"][key]:
            raise SystemExit(f"the published study has other {key}: publish this one without --add")
    old, new = dict(_measured(before)), dict(_measured(after))
    again = [run for run in new if run in old]
    if not again:
        raise SystemExit("no published run was measured again, so nothing shows that both measure the same: run one")
    first = next(iter(before.facts["metrics"]))
    told_again = {}
    for arm, seed in again:
        published, value = old[arm, seed][first], new[arm, seed][first]
        seeds = [figures[first] for (other, _), figures in old.items() if other == arm]
        if abs(published - value) > max(seeds) - min(seeds):
            raise SystemExit(
                f"{arm} seed {seed} is another now: {first} {value:.4g}, published {published:.4g}, its arm "
                f"{min(seeds):.4g} to {max(seeds):.4g}"
            )
        told_again[f"{arm} {seed}"] = {"figure": first, "published": published, "again": value}
    further = [run for run in new if run not in old]
    if not further:
        raise SystemExit("the study has no run that is not published")
    figures = {arm: dict(at) for arm, at in before.facts["figures"].items()}
    for arm, seed in further:
        figures.setdefault(arm, {})[seed] = new[arm, seed]
    teachers = _merged(before.facts.get("teachers", {}), after.facts.get("teachers", {}))
    runs = before.header["settings"]["runs"] | {arm: after.header["settings"]["runs"][arm] for arm, _ in further}
    settings = before.header["settings"] | {"runs": runs}
    names = {f"{arm} {seed}" for arm, seed in further}
    told = {key: after.header[key] for key in ("commit", "date")}
    vectors = after.header["machine"].get("vector_isa", "")
    told |= {"machine": f"{after.header['machine']['cpu']}, {vectors}", "runs": sorted(names), "again": told_again}
    header = before.header | {
        "finished": all(isinstance(value, Mapping) for at in figures.values() for value in at.values()),
        "settings": settings,
        "digest": digest(settings),
        "later": [*before.header.get("later", []), told],
    }
    facts = {**before.facts, "figures": figures, **({"teachers": teachers} if teachers else {})}
    changed = {arm for arm, _ in further}
    changed = set(figures) if settings["control"] in changed else changed
    kept = {point["what"]: point for point in before.points if point["what"].split(": ")[0] not in changed}
    points = [kept.get(point["what"], point) for point in rows(header, facts)]
    return Result(header, facts, points)


def rows(header: Mapping[str, Any], facts: Mapping[str, Any]) -> list[dict[str, str]]:
    """The rows of a published study, computed from its figures as ``xarch study`` does. The teacher is told where it is
    known for every seed of an arm."""
    from xarch.config.study import StudyConfig
    from xarch.run.study.arms import StudyArm, StudyRun
    from xarch.run.study.results import Outcome, document

    control, figures, about = header["settings"]["control"], facts["figures"], facts["metrics"]
    arms = [StudyArm(arm, {}, "" if arm == control else control) for arm in figures]
    directions = {k: v["higher_is_better"] for k, v in about.items()}
    units = {k: v["unit"] for k, v in about.items()}
    runs, outcomes = [], {}
    for arm, at in figures.items():
        known = facts.get("teachers", {}).get(arm, {})
        complete = all(seed in known for seed, value in at.items() if isinstance(value, Mapping))
        for seed, value in at.items():
            run = StudyRun(arm, int(seed), Path(), Path(), "")
            done = Outcome("done", value, directions=directions, units=units) if isinstance(value, Mapping) else None
            if done is not None and complete:
                done = Outcome("done", value, directions=directions, units=units, teacher=known[seed])
            runs.append(run)
            outcomes[run.name] = done or Outcome(value)
    study = StudyConfig(
        arms={arm: {} for arm in figures}, control=control, seeds=header["settings"]["seeds"], metrics=list(about)
    )
    return document(study, "", arms, runs, outcomes, "", "").points


def _measured(result: Result) -> Iterator[tuple[tuple[str, str], Mapping[str, float]]]:
    """Figures by arm and seed of every run that is done."""
    for arm, at in result.facts["figures"].items():
        for seed, value in at.items():
            if isinstance(value, Mapping):
                yield (arm, seed), value


def _merged(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    return {arm: {**after.get(arm, {}), **before.get(arm, {})} for arm in {**before, **after}}
