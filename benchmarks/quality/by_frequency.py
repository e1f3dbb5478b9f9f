"""Recall by class frequency of a study's arms, mean over the seeds, with the teacher beside them.

    python benchmarks/quality/by_frequency.py benchmarks/out/deit_lt_fashion --arms deit-lt deit two-token-drw \
        --out benchmarks/out/deit_lt_fashion/frequency.svg
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from xarch.report import lines

TEACHER, VARIANT = "teacher", "variants."


def recalls(study: Path, arms: Sequence[str], variants: bool = False) -> dict[str, list[float]]:
    """Return the recall of every class, most frequent first, by arm: the mean over the seeds that all arms have done.

    Args:
        study: folder of the study.
        arms: in the order of the figure; none for all.
        variants: also of the operating points of the first arm.
    """
    found: dict[str, list[list[float]]] = defaultdict(list)
    arms = arms or sorted(path.name for path in (study / "runs").iterdir())
    files = {arm: {path.parent.name: path for path in (study / "runs" / arm).glob("seed-*/eval.json")} for arm in arms}
    for arm in arms:
        for seed in sorted(set.intersection(*map(set, files.values()))):
            file = files[arm][seed]
            samples = json.loads(file.read_text(encoding="utf-8"))["samples"]
            rows = next(entry["recall"] for entry in samples if "recall" in entry)
            rows = sorted(rows, key=lambda row: -row["images"])
            found[arm].append([row["student"] for row in rows])
            if arm == arms[0]:
                if rows[0].get("teacher") is not None:
                    found[TEACHER].append([row["teacher"] for row in rows])
                for name in rows[0].get("beside", {}) if variants else ():
                    if name.startswith(VARIANT):
                        found[f"{arm}, {name.removeprefix(VARIANT)}"].append([row["beside"][name] for row in rows])
    return {who: [sum(seeds) / len(seeds) for seeds in zip(*given, strict=True)] for who, given in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--arms", nargs="+", default=[])
    parser.add_argument("--variants", action="store_true", help="also the operating points of the first arm")
    parser.add_argument("--out", type=Path, help="SVG file")
    said = parser.parse_args()
    found = recalls(said.study, said.arms, said.variants)
    for who, values in found.items():
        print(f"{who:24s}", *(f"{100 * value:5.1f}" for value in values))
    if said.out is not None:
        series = {who: [(float(n), value) for n, value in enumerate(values, 1)] for who, values in found.items()}
        figure = lines(
            "frequency", series, "Recall by class, from the most to the least frequent", "rank of the class", (0.0, 1.0)
        )
        if figure is not None:
            said.out.write_text(figure.svg, encoding="utf-8")


if __name__ == "__main__":
    main()
