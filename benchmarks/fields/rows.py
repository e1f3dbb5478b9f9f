"""Measurements in a file, written one by one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from xarch.bench.machine import machine


class Rows:
    """What is measured so far, in a file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.data = json.loads(file.read_text()) if file.is_file() else {"rows": {}}
        self.data["machine"] = {**machine(), "torch": torch.__version__, "threads": 1}

    def __contains__(self, name: str) -> bool:
        return name in self.data["rows"]

    def add(self, name: str, row: dict[str, Any]) -> None:
        """Write a row at once."""
        self.data["rows"][name] = row
        self.store()
        print(name, {k: v for k, v in row.items() if k not in ("curve", "parts")}, flush=True)

    def store(self) -> None:
        """Write everything."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(json.dumps(self.data, indent=1) + "\n", encoding="utf-8")
