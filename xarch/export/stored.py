"""The JSON files of an exported folder, checked against its manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xarch.files.bounded_json import read_json
from xarch.files.manifest import MANIFEST, verify
from xarch.files.records import Parity, ProfileRecord, typed

PARITY = "parity.json"
PROFILE = "profile.json"


def read_parity(folder: Path) -> dict[str, Any]:
    """Return parity.json of an export.

    Raises:
        UsageError: it is missing or damaged.
    """
    _check(folder, PARITY)
    return typed(Parity, read_json(folder / PARITY), folder / PARITY)


def read_profile(folder: Path) -> dict[str, Any]:
    """Return profile.json of an export.

    Raises:
        UsageError: it is missing or damaged.
    """
    _check(folder, PROFILE)
    return typed(ProfileRecord, read_json(folder / PROFILE), folder / PROFILE)


def passed(folder: Path) -> bool:
    """Whether a folder holds an export that passed the parity gate.

    Raises:
        UsageError: its parity.json is damaged.
    """
    return (folder / PARITY).is_file() and bool(read_parity(folder)["passed"])


def _check(folder: Path, name: str) -> None:
    if (folder / MANIFEST).is_file():
        verify(folder, [name])
