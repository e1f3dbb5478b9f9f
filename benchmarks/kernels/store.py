"""The result file: written after every point. An interrupted run with the same settings goes on in it, and so does one
whose code has changed for some operations only: their points are measured again, the others stay.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from benchmarks.kernels.case import Case


class Store:
    """A result file under way."""

    def __init__(self, path: Path, header: dict[str, Any], fresh: bool) -> None:
        self.path = path
        self.data: dict[str, Any] = header | {"finished": False, "points": []}
        self.continued = False
        if path.is_file() and not fresh:
            before = json.loads(path.read_text())
            same = all(before.get(k) == header[k] for k in ("settings", "machine", "versions"))
            known = before["code"] if isinstance(before.get("code"), dict) else {}
            current = {op for op, digest in header["code"].items() if known.get(op) == digest}
            if same and current and not (before["finished"] and current == set(header["code"])):
                points = [p for p in before["points"] if p["op"] in current]
                self.data = before | {"code": header["code"], "finished": False, "points": points}
                self.continued = True

    def find(self, case: Case, contender: str) -> dict[str, Any] | None:
        wanted = case.as_json() | {"contender": contender}
        for point in self.data["points"]:
            if all(point[k] == v for k, v in wanted.items()):
                return point
        return None

    def add(self, point: dict[str, Any]) -> None:
        self.data["points"].append(point)
        self.write()

    def finish(self, extra: dict[str, Any]) -> None:
        self.data |= extra | {"finished": True}
        self.write()

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_suffix(".partial")
        fresh.write_text(json.dumps(self.data, indent=1) + "\n")
        os.replace(fresh, self.path)
