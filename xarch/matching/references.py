"""References: how a match names what it reads, ``same | TAP | MODEL:TAP | *:TAP | batch:KEY``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from xarch.config.schema import MODELS
from xarch.contracts.data import TensorInfo
from xarch.contracts.tap import Tap
from xarch.errors import PlanError, UsageError

MAIN = ""
"""The main teacher."""
ALL = "*"
BATCH = "batch"
STUDENT = "student"
SAME = "same"
EMA = "ema"
COPIES = (EMA, "self")
"""Copies of the student: its EMA, and its state when the stage began. They have the student's taps."""
RANDOM = "random"
RESERVED = MODELS
PLACEHOLDERS = ("i", "j", "last")
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


class MissingTap(PlanError):
    """Raised when a side lacks a tap; an optional stage is then skipped."""


@dataclass(frozen=True)
class Reference:
    """A resolved value that a match reads besides the student's taps.

    Attributes:
        model: "" the main teacher, a teacher's name, "student", "ema", "self", "random", or "batch".
        name: full tap name, the site-local name of a student tap in a local stage, or the key in the batch as seen by
            the student.
        tap: its declaration.
    """

    model: str
    name: str
    tap: Tap

    def __str__(self) -> str:
        return f"{self.model}:{self.name}" if self.model else self.name


@dataclass(frozen=True)
class Address:
    """A reference as written: the model and the name in it, including placeholders."""

    model: str
    name: str

    @property
    def same(self) -> bool:
        """Whether it refers to the counterpart of the student's tap."""
        return self.name == SAME and self.model not in (BATCH, STUDENT, *COPIES)


def parse(text: str | None, where: str, teachers: Collection[str] = ()) -> Address | None:
    """Parse a reference of a match into an address.

    Args:
        text: as configured; None for nothing.
        where: key, for messages.
        teachers: names of the further teachers.

    Raises:
        UsageError: it is not a reference, or names a model that the run does not have.
    """
    if text is None:
        return None
    model, colon, name = text.partition(":")
    if not colon:
        model, name = MAIN, text
    check_placeholders(name, where)
    if not name or name != name.strip() or ":" in name or (colon and not model):
        raise UsageError(
            f"{where}: {text!r} is not a reference", "write same, TAP, TEACHER:TAP, *:TAP, student:TAP or batch:KEY"
        )
    if model in (MAIN, *RESERVED) or model in teachers:
        return Address(model, name)
    raise UsageError(
        f"{where}: {text!r} names the model {model!r}, which this run does not have",
        near(model, dict.fromkeys([*filter(None, teachers), *RESERVED]), "models")
        + "; define further teachers under `teachers:`",
    )


def check_placeholders(name: str, where: str) -> None:
    """Reject braces that are not a placeholder.

    Raises:
        UsageError: an unknown placeholder; lists those that exist.
    """
    wrong = [p for p in _PLACEHOLDER.findall(name) if p not in PLACEHOLDERS]
    if wrong or name.count("{") != name.count("}") or name.count("{") != len(_PLACEHOLDER.findall(name)):
        seen = f"{{{wrong[0]}}}" if wrong else name
        raise UsageError(
            f"{where}: {seen!r} is not a placeholder",
            "{j} is the student's layer, {i} the teacher's layer it stands for, {last} the deepest layer of its side",
        )


FEW = 8
"""So many names fit into a message."""


def near(name: str, names: Iterable[str], what: str) -> str:
    """Return ``taps near it: a, b``: all existing names if they are few, else close matches, else some of them."""
    known = sorted(names)
    close = difflib.get_close_matches(name, known, 3)
    shown = known if len(known) <= FEW else close or known[:FEW]
    return f"{what}: {', '.join(shown) or 'none'}" + (", ..." if len(known) > len(shown) else "")


def find_tap(taps: Mapping[str, Tap], name: str, whose: str, where: str) -> Tap:
    """Return the tap called ``name``.

    Raises:
        MissingTap: it does not exist; lists similar names.
    """
    if name not in taps:
        raise MissingTap(f"{where}: {whose} has no tap {name!r}", near(name, taps, "taps near it"))
    return taps[name]


def seen_tensors(tensors: Mapping[str, TensorInfo], side: str = STUDENT) -> dict[str, TensorInfo]:
    """Return the tensors of a batch as seen by one side: ``NAME@side`` replaces ``NAME``, views of the other side are
    removed."""
    plain = {key: info for key, info in tensors.items() if "@" not in key}
    return plain | {k.partition("@")[0]: info for k, info in tensors.items() if k.endswith(f"@{side}")}
