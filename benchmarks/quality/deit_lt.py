"""What the published studies of DeiT-LT say: bars beside what was reached, each step's difference, and all arms.

python benchmarks/quality/deit_lt.py      # the tables of plugins/xarch_methods/deit_lt/README.md
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.store import RESULTS, read  # noqa: E402
from xarch.run.study.significance import paired  # noqa: E402

OURS, SAME_TEACHER, NO_TEACHER = "deit-lt", "deit", "two-token-drw"
FASHION, FASHION_50, DIGITS = "deit_lt_fashion", "deit_lt_fashion_50", "deit_lt_digits"
STUDIES = {
    FASHION: "Fashion-MNIST-LT, imbalance 100",
    FASHION_50: "Fashion-MNIST-LT, imbalance 50",
    DIGITS: "digits-LT, imbalance 20",
    "deit_lt_openclipart": "openclipart, 22 classes, its own tail",
    "deit_lt_cifar100": "CIFAR-100-LT, imbalance 100",
}
STEPS = {
    "a teacher that never saw a mixed picture": ("deit", "deit-same"),
    "no mixing in the last fifth": ("deit-unmixed", "deit"),
    "re-weighting there": ("deit-lt", "deit-unmixed"),
    "a flat teacher (SAM)": ("deit-lt-sam", "deit-lt"),
}
"""A step of the method -> the arms with and without it."""
SHOWN = ("top1", "recall.head", "recall.mid", "recall.tail", "ece", "ece.tail")
TOKENS = ("variants.cls.recall.tail", "variants.dist.recall.tail")
Runs = Mapping[str, Mapping[str, float]]
"""Figures by seed."""


class Study:
    """A published study.

    Attributes:
        arms: arm -> figures by seed, of the runs that are done.
    """

    def __init__(self, name: str) -> None:
        found = read(RESULTS / f"study_{name}.json").facts["figures"]
        self.arms: dict[str, Runs] = {}
        for arm, at in found.items():
            done = {seed: figures for seed, figures in at.items() if isinstance(figures, Mapping)}
            if done:
                self.arms[arm] = done

    def gains(self, arm: str, metric: str, rival: str, other: str = "") -> list[float]:
        """How many points an arm is above another one, of the seeds that both have.

        Args:
            other: the rival's figure, where it is another one.
        """
        here, there = self.arms.get(arm, {}), self.arms.get(rival, {})
        return [100 * (here[s][metric] - there[s][other or metric]) for s in here if s in there]


def told(gains: Sequence[float]) -> str:
    """Mean, least, p and number of seeds of paired differences."""
    if not gains:
        return "not run"
    test = paired(gains)
    p = f", p {test.p:.2g}" if test is not None and test.p is not None else ""
    least = f", least {min(gains):+.1f}" if len(gains) > 1 else ""
    return f"{statistics.fmean(gains):+.1f}{least}{p} ({len(gains)})"


def bars() -> Iterator[str]:
    """What the method must reach, and what it reached."""
    fashion = [Study(FASHION), Study(FASHION_50)]
    tail, head, dist, cls = "recall.tail", "recall.head", "variants.dist", "variants.cls"
    wanted = [
        ("tail, over `deit`", "+6, every seed above 0", (OURS, tail, SAME_TEACHER)),
        ("tail, over `two-token-drw`", "+5, every seed above 0", (OURS, tail, NO_TEACHER)),
        ("all, over `deit`", "0", (OURS, "top1", SAME_TEACHER)),
        ("all, over `two-token-drw`", "0", (OURS, "top1", NO_TEACHER)),
        ("all, over its class token alone", "0", (OURS, "top1", OURS, f"{cls}.top1")),
        ("all, over its distillation token alone", "0", (OURS, "top1", OURS, f"{dist}.top1")),
        ("head, over `deit`", "-8", (OURS, head, SAME_TEACHER)),
        ("tail, distillation token over class token", "+10", (OURS, f"{dist}.{tail}", OURS, f"{cls}.{tail}")),
        ("head, class token over distillation token", "+1", (OURS, f"{cls}.{head}", OURS, f"{dist}.{head}")),
    ]
    yield "| Fashion-MNIST-LT, points | at least | imbalance 100 | imbalance 50 |"
    yield "|---|---|---|---|"
    for what, bar, pair in wanted:
        yield f"| {what} | {bar} | {' | '.join(told(study.gains(*pair)) for study in fashion)} |"
    digits = Study(DIGITS)
    yield ""
    yield "| digits-LT, imbalance 20, points | at least | reached |"
    yield "|---|---|---|"
    for what, bar, pair in (
        ("tail, over `deit`", "+6, 4 of 5 seeds above 0", (OURS, tail, SAME_TEACHER)),
        ("tail, over two tokens without teacher and weights", "+5", (OURS, tail, "two-token")),
        ("all, over `deit`", "0", (OURS, "top1", SAME_TEACHER)),
        ("head, over `deit`", "-4", (OURS, head, SAME_TEACHER)),
        ("tail, over `two-token-drw`", "told only", (OURS, tail, NO_TEACHER)),
    ):
        yield f"| {what} | {bar} | {told(digits.gains(*pair))} |"


def steps() -> Iterator[str]:
    """What each step of the method adds."""
    study = Study(FASHION)
    yield "| step, Fashion-MNIST-LT, imbalance 100 | all | head | tail |"
    yield "|---|---|---|---|"
    for what, (arm, before) in STEPS.items():
        cells = (told(study.gains(arm, metric, before)) for metric in ("top1", "recall.head", "recall.tail"))
        yield f"| {what} (`{arm}` over `{before}`) | {' | '.join(cells)} |"


def mean(runs: Runs, metric: str) -> str:
    """Mean over the seeds in per cent, or a dash where a run has no such figure."""
    found = [run[metric] for run in runs.values() if metric in run]
    return f"{100 * statistics.fmean(found):.1f}" if found else "–"


def arms(name: str) -> Iterator[str]:
    """Means of every arm of a study, the tail also of its class and distillation token alone, in per cent, and what it
    is above the method on the same seeds, in points."""
    names = ["all", "head", "mid", "tail", "tail of its tokens", "ECE", "ECE tail", f"all over `{OURS}`"]
    yield f"| {STUDIES[name]} | {' | '.join(names)} | tail over `{OURS}` |"
    yield "|---" * (len(names) + 2) + "|"
    study = Study(name)
    for arm, at in study.arms.items():
        cells = [mean(at, metric) for metric in SHOWN]
        cells.insert(SHOWN.index("recall.tail") + 1, " / ".join(mean(at, metric) for metric in TOKENS))
        cells += (
            ["", ""] if arm == OURS else [told(study.gains(arm, metric, OURS)) for metric in ("top1", "recall.tail")]
        )
        yield f"| `{arm}` | {' | '.join(cells)} |"


def tables() -> str:
    """All tables as Markdown; studies that are not published are left out."""
    known = [name for name in STUDIES if (RESULTS / f"study_{name}.json").is_file()]
    parts = [list(bars()), list(steps()), *(list(arms(name)) for name in known)]
    return "\n\n".join("\n".join(part) for part in parts)


if __name__ == "__main__":
    print(tables())
