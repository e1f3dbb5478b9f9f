"""``python -m xarch.bench.worker FILE PROVIDER THREADS``: measure one file and print the figures as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from xarch.bench.graph import measure_graph


def main(arguments: list[str]) -> None:
    """Measure the file and print the figures."""
    path, provider, threads = arguments
    figures = measure_graph(Path(path), provider, threads=int(threads))
    print(json.dumps({"graphs": {Path(path).stem: figures}}))


if __name__ == "__main__":
    main(sys.argv[1:])
