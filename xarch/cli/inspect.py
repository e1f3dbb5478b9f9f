"""``xarch inspect``: facts about one model, data set, run, file or adapter."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

import click

from xarch.cli.session import Session, define
from xarch.errors import UsageError
from xarch.registry.loader import get_registry


@define("inspect")
@click.argument("ref")
def command(session: Session, ref: str) -> None:
    """Describe REF: a teacher (SOURCE:REF), data (PROVIDER:REF), a run or student folder, an .onnx file, or a name from
    `xarch list`."""
    from xarch.cli.document_view import show_document
    from xarch.run.inspection import inspect

    _exists(ref)
    document = inspect(ref)

    def human(console: Any) -> None:
        if "plan" in document:
            _run(console, document)
        else:
            readable = (
                {**document, "names": [_readable(n) for n in document["names"]]} if "names" in document else document
            )
            show_document(readable, console, everything=session.verbose)

    session.emit(document, human)


def _exists(ref: str) -> None:
    """Raise an error for a string that is no path, name or reference; suggest the closest name."""
    known = [s.name for s in get_registry().specs()]
    if ":" in ref or ref in known or Path(ref).exists():
        return
    near = difflib.get_close_matches(ref, known, n=1)
    guess = f"; did you mean {near[0]!r}?" if near else ""
    raise UsageError(
        f"{ref!r} is neither a file, a folder nor a registered name{guess}",
        "a teacher is written SOURCE:REF, for example hf:FOLDER",
    )


def _readable(facts: dict[str, Any]) -> dict[str, Any]:
    """Convert the JSON schema of an adapter's options to one record per option."""
    schema = facts.get("options")
    if not isinstance(schema, dict):
        return facts
    required = schema.get("required", [])
    rows = [
        {
            "option": name,
            "type": _type(option),
            "default": _default(option, required=name in required),
            "meaning": option.get("description", ""),
        }
        for name, option in schema.get("properties", {}).items()
    ]
    return {**facts, "options": rows or "none"}


def _default(option: dict[str, Any], *, required: bool) -> str:
    """Format a default; those that are built, such as an empty list, have no text in the schema."""
    if required:
        return "required"
    return json.dumps(option["default"]) if "default" in option else "-"


def _type(option: dict[str, Any]) -> str:
    if "enum" in option:
        return " | ".join(map(str, option["enum"]))
    if "anyOf" in option:
        return " | ".join(_type(part) for part in option["anyOf"])
    if option.get("type") == "array":
        return f"list of {_type(option.get('items', {}))}"
    return str(option.get("type", "any"))


def _run(console: Any, document: dict[str, Any]) -> None:
    from xarch.cli.plan_view import show_plan
    from xarch.cli.verdict import run_document, show_verdict
    from xarch.planning.plan import Plan

    console.print(f"{document['run']}: {document['state']}", markup=False)
    show_plan(Plan.model_validate(document["plan"]), console)
    show_verdict(run_document(Path(document["run"])), console)
