"""A published study grows by runs of later code only where both measure the same, and compares them as a study does."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from benchmarks import page, store, studies
from benchmarks.store import Result

METRICS = {"top1": {"higher_is_better": True, "unit": "share", "teacher": None}}


def study(commit: str, runs: dict[str, dict[int, float | str]], teacher: dict[str, float] | None = None) -> Result:
    """What ``xarch study`` writes, of these figures or states by arm and seed."""
    header = {"date": "2026-01-01", "finished": False, "seeds": [0, 1], "control": "kd", "machine": {"threads": 1}}
    facts: dict[str, Any] = {"metrics": METRICS}
    for arm, at in runs.items():
        for seed, value in at.items():
            done = not isinstance(value, str)
            run = {"arm": arm, "seed": seed, "digest": f"{arm} of {commit}", "state": "done" if done else value}
            run |= {"figures": {"top1": value, "other": 1.0} if done else {}, "commit": commit}
            facts[f"run {arm} {seed}"] = run | ({"teacher": teacher} if teacher and done else {})
    made = studies.from_study("study_deit_lt_fashion", Result(header, facts))
    made.points = studies.rows(made.header, made.facts)
    return made


FIRST = {"kd": {0: 0.5, 1: 0.6}, "ours": {0: 0.7, 1: 0.9}, "rival": {0: "waiting", 1: "waiting"}}
LATER = {"kd": {0: 0.52, 1: "waiting"}, "ours": {0: "waiting", 1: "waiting"}, "rival": {0: 0.4, 1: 0.4}}


def test_a_published_study_takes_arms_of_later_code_and_says_so() -> None:
    before, after = study("a" * 40, FIRST, {"top1": 0.8}), study("b" * 40, LATER)
    made = studies.added(before, after)
    assert made.points[:2] == before.points
    rival = made.points[2]
    assert rival["what"] == "rival: top1"
    assert rival["rival"].startswith("kd 0.5500; difference -0.1500")
    assert made.header["commit"] == "a" * 12
    later = dict(made.header["later"][0])
    assert later.pop("machine").startswith(after.header["machine"]["cpu"])
    again = {"kd 0": {"figure": "top1", "published": 0.5, "again": 0.52}}
    assert later == {"commit": "b" * 12, "date": "2026-01-01", "runs": ["rival 0", "rival 1"], "again": again}
    assert made.facts["figures"]["kd"] == before.facts["figures"]["kd"]
    assert made.header["finished"]
    assert made.header["settings"]["runs"]["rival"] == f"rival of {'b' * 40}"
    assert made.header["digest"] == studies.digest(made.header["settings"])
    (_, told) = page.circumstances(made)
    assert "2026-01-01, commit bbbbbbbbbbbb: rival 0, rival 1; measured again there" in told
    assert "kd 0 top1 0.52 (0.5)." in told


def test_a_further_seed_of_the_control_changes_every_row() -> None:
    first = {"kd": {0: 0.5, 1: "waiting"}, "ours": {0: 0.7, 1: 0.9}}
    before = study("a" * 40, first, {"top1": 0.8})
    made = studies.added(before, study("b" * 40, {"kd": {0: 0.5, 1: 0.6}, "ours": {0: "waiting", 1: "waiting"}}))
    control, ours = made.points
    assert (control["figure"], control["rival"]) == ("0.5500 ± 0.07071 share", ""), "of seed 1 no teacher is known"
    assert "difference +0.2500" in ours["rival"]


@pytest.mark.parametrize(
    ("later", "why"),
    [
        (LATER | {"kd": {0: 0.61, 1: "waiting"}}, "kd seed 0 is another now: top1 0.61, published 0.5"),
        (LATER | {"kd": {0: "waiting", 1: "waiting"}}, "no published run was measured again"),
        (LATER | {"rival": {0: "waiting", 1: "waiting"}}, "no run that is not published"),
    ],
)
def test_what_does_not_measure_the_same_is_not_added(later: dict[str, Any], why: str) -> None:
    with pytest.raises(SystemExit, match=why):
        studies.added(study("a" * 40, FIRST), study("b" * 40, later))


def test_a_study_of_other_seeds_or_with_axes_is_not_added() -> None:
    before, after = study("a" * 40, FIRST), study("b" * 40, LATER)
    other = copy.deepcopy(after)
    other.header["settings"]["seeds"] = [0]
    with pytest.raises(SystemExit, match="other seeds"):
        studies.added(before, other)
    before.facts["figures"]["kd,25"] = {}
    with pytest.raises(SystemExit, match="axes"):
        studies.added(before, after)


def test_rows_of_published_figures_are_those_that_the_study_wrote() -> None:
    published = store.read(store.RESULTS / "study_deit_lt_digits.json")
    control = published.header["settings"]["control"]
    wrote = [point for point in published.points if not point["what"].startswith(f"{control}: ")]
    made = [point for point in studies.rows(published.header, published.facts) if point in wrote]
    assert made == wrote
