"""What a plan says about re-weighted labels of a teacher: when a teacher is worth having for the rare classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from xarch import Check

NAME = "long tail"
OBJECTIVE, OPTION = "hard-label", "reweight"
MEASURED = (
    "+15.8 points of the tail at a share of 0.88 (deit_lt_fashion), +6.2, p .022, at 1.00 (deit_lt_digits); with "
    "teachers that find 10 and 2 per cent of the tail themselves +0.8 (deit_lt_cifar100) and +0.0 (deit_lt_openclipart)"
)
RIVAL = (
    "mdcs needs no teacher and found more of the tail and less of the head: +4.5, p .19, and -3.7, p .03, points of "
    "deit-lt's (deit_lt_fashion), +1.1 and -7.1 (deit_lt_cifar100)"
)
RULE = (
    "a teacher gains over re-weighting alone (two-token-drw) where it knows the rare classes (recall.tail in its "
    f"eval.json) and its classes of plain training pictures are not the labels: {MEASURED}. The share that is: "
    "monitor.label_agreement.{match} of metrics.jsonl once nothing is mixed; at 1 the weighted labels are the given "
    f"ones, so try two-token-drw first. Where the tail is what counts, try mdcs: {RIVAL}"
)


def checks(plan: Any) -> Iterator[Check]:
    """Yield what is to be said of every match that weights the teacher's classes, now or in a later phase."""
    counts = [int(n) for n in plan.data.get("facts", {}).get("class_counts") or ()]
    for stage in plan.stages:
        for name, match in stage.config.matches.items():
            later = (f"matches.{name}.options.{OPTION}" in phase.set for phase in stage.config.phases)
            if match.objective != OBJECTIVE or not (match.options.get(OPTION) or any(later)):
                continue
            if counts and min(counts) == max(counts):
                same = f"every class has {counts[0]} training pictures, so weights by class change nothing; deit does"
                yield Check(name=NAME, state="not checked", detail=f"{same} the same")
            else:
                yield Check(name=NAME, state="not checked", detail=RULE.format(match=name))
