"""The head of a method's file: what the method is, for lists, plans, reports and model cards."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from xarch.config.schema import Model
from xarch.config.validation import validated
from xarch.config.yaml_text import Document, parse_yaml
from xarch.errors import UsageError

HEAD = "method"
"""Top-level key of the head; the rest of the file is a recipe."""


class Method(Model):
    """A method: a recipe with a name of its own, its paper, the families it serves and its control."""

    title: str = Field(description="as people call it, e.g. OFA-KD")
    summary: str = Field("", description="one line: what it does")
    paper: str = Field("", description='where it comes from, e.g. "arXiv:2310.19444"')
    families: list[str] = Field(default_factory=list, description="families of students it serves; none: any")
    control: str = Field("", description="method or recipe that it is compared with")
    figures: dict[str, Any] = Field(
        default_factory=dict, description="what the paper reports, and what is to be reached"
    )


def read_method(text: str, label: str) -> Method:
    """The head of a method's file.

    Raises:
        UsageError: the file has no head, or a key or value of it is wrong.
    """
    return head_of(parse_yaml(text, label), label)


def head_of(document: Document, label: str) -> Method:
    """The same, of a file that was parsed."""
    data = document.data
    head = data.get(HEAD) if isinstance(data, dict) else None
    if not isinstance(head, dict):
        raise UsageError(
            f"{label} has no `{HEAD}:` head", "begin it with `method: {title: …, paper: …, families: […]}`"
        )
    return validated(Method, head, f"{label}: {HEAD}")
