"""Measurements in a file, written one by one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from xarch.bench.machine import machine


def opened(file: Path, empty: dict[str, Any]) -> dict[str, Any]:
    """What an interrupted run has stored, or ``empty``; with the machine of this one."""
    data: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else empty
    return {**data, "machine": {**machine(), "torch": torch.__version__, "threads": 1}}


def store(file: Path, data: dict[str, Any]) -> None:
    """Write what is measured so far."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


class Rows:
    """What is measured so far, in a file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.data = opened(file, {"rows": {}})

    def __contains__(self, name: str) -> bool:
        return name in self.data["rows"]

    def add(self, name: str, row: dict[str, Any]) -> None:
        """Write a row at once."""
        self.data["rows"][name] = row
        self.store()
        print(name, {k: v for k, v in row.items() if k not in ("curve", "parts")}, flush=True)

    def store(self) -> None:
        """Write everything."""
        store(self.file, self.data)
