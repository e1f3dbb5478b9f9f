"""``xarch plan``: show what a conversion will do, without loading weights."""

from __future__ import annotations

from typing import Any

from xarch.cli.resolve import configuration, make_plan
from xarch.cli.session import Session, define


@define("plan", uses=("set", "out", "device", "seed"))
@configuration
def command(session: Session, config: str | None, **flags: Any) -> None:
    """Resolve CONFIG (a YAML file or the name of a recipe or method), check all shapes, and show what will run.

    With --out, the plan is also written to DIR/plan.json; `xarch convert DIR/plan.json` runs it unchanged.
    With -v, the origin of every value is shown.
    """
    plan = make_plan(session, config, flags)
    document = plan.model_dump(mode="json")
    if session.out is not None:
        _write(session, document)

    def human(console: Any) -> None:
        from xarch.cli.plan_view import show_plan

        show_plan(plan, console, origins=session.verbose)

    session.emit(document, human)


def _write(session: Session, document: dict[str, Any]) -> None:
    from xarch.errors import UsageError
    from xarch.files.atomic import write_json

    assert session.out is not None
    file = session.out / "plan.json"
    try:
        session.out.mkdir(parents=True, exist_ok=True)
        write_json(file, document)
    except OSError as e:
        raise UsageError(f"cannot write {file}: {e.strerror}", "choose another --out") from e
    session.note(f"written to {file}")
