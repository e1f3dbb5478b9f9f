"""``xarch inspect``: facts about one thing."""

from __future__ import annotations

from typing import Any

import click

from xarch.cli.session import Session, define


@define("inspect")
@click.argument("ref")
def command(session: Session, ref: str) -> None:
    """Show what REF is: a teacher (SOURCE:REF), a run or student folder, an .onnx file, or a name from `xarch list`."""
    from xarch import api
    from xarch.cli.document_view import show_document

    document = api.inspect(ref)

    def human(console: Any) -> None:
        if "plan" in document:
            _run(console, document)
        else:
            show_document(document, console, everything=session.verbose)

    session.emit(document, human)


def _run(console: Any, document: dict[str, Any]) -> None:
    from pathlib import Path

    from xarch.cli.plan_view import show_plan
    from xarch.cli.verdict import run_document, show_verdict
    from xarch.planning.plan import Plan

    console.print(f"{document['run']}: {document['state']}", markup=False)
    show_plan(Plan.model_validate(document["plan"]), console)
    show_verdict(run_document(Path(document["run"])), console)
