"""Publish benchmark results, and generate the page of the published ones.

    python -m benchmarks publish matrix_memory      # benchmarks/out/matrix_memory.json -> benchmarks/results
    python -m benchmarks results                    # benchmarks/results/*.json -> benchmarks/RESULTS.md
    python -m benchmarks show matrix_memory         # print a published result; nothing is measured

Studies of quality (``benchmarks/quality/*.yaml``, run by ``xarch study``) publish results the same way.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import page, store


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    publish = commands.add_parser("publish", help="make a measured result the published one")
    publish.add_argument("name", help="file name without .json")
    publish.add_argument("--from", dest="source", type=Path, help="measured result [default: benchmarks/out/NAME.json]")
    publish.add_argument("--partial", action="store_true", help="even if the measurement is unfinished")
    commands.add_parser("results", help="generate benchmarks/RESULTS.md")
    publish.add_argument("--add", action="store_true", help="keep the published runs of a study that this one lacks")
    show = commands.add_parser("show", help="print a published result")
    show.add_argument("name", help="file name without .json")
    said = parser.parse_args()
    if said.command == "show":
        page.show(store.read(store.RESULTS / f"{said.name}.json"))
        return
    if said.command == "publish":
        print(store.publish(said.name, said.source, partial=said.partial, add=said.add).relative_to(store.ROOT))
    page.generate()
    print(page.PAGE.relative_to(store.ROOT))


if __name__ == "__main__":
    main()
