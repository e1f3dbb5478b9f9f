"""Head of a method file: describes the method for lists, plans, reports and model cards."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from xarch.config.validation import validated
from xarch.config.yaml_text import Document, parse_yaml
from xarch.contracts.options import Options
from xarch.errors import UsageError

HEAD = "method"
"""Top-level key of the head; the rest of the file is a recipe."""


class Method(Options):
    """A method: a named recipe with its paper, the families it supports and its control."""

    title: str = Field(description="display name, e.g. OFA-KD")
    summary: str = Field("", description="one-line description")
    paper: str = Field("", description='source, e.g. "arXiv:2310.19444"')
    families: list[str] = Field(default_factory=list, description="supported student families; none: any")
    control: str = Field("", description="method or recipe used as control")
    needs_teacher: bool = Field(True, description="false: it also trains a student without a teacher")
    figures: dict[str, Any] = Field(
        default_factory=dict, description="figures reported by the paper, and those to reach"
    )


def read_method(text: str, label: str) -> Method:
    """Return the head of a method file.

    Raises:
        UsageError: the file has no head, or one of its keys or values is invalid.
    """
    return head_of(parse_yaml(text, label), label)


def head_of(document: Document, label: str) -> Method:
    """Return the head of a parsed method file."""
    data = document.data
    head = data.get(HEAD) if isinstance(data, dict) else None
    if not isinstance(head, dict):
        raise UsageError(
            f"{label} has no `{HEAD}:` head", "begin it with `method: {title: …, paper: …, families: […]}`"
        )
    return validated(Method, head, f"{label}: {HEAD}")
