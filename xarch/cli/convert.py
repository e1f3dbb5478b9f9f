"""``xarch convert``: from a configuration to a verified student."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xarch.cli.failure import error_document, show_error
from xarch.cli.resolve import configuration, make_plan
from xarch.cli.session import Session, define
from xarch.engine.events import Reporter
from xarch.errors import BusyError, UsageError, XarchError

if TYPE_CHECKING:
    from xarch.planning.plan import Plan

ASK_ABOVE_SECONDS = 900


@define("convert", uses=("set", "out", "device", "seed"))
@configuration
@click.option("--resume", is_flag=True, help="Resume the run in --out, or start it if there is none.")
@click.option(
    "--force", is_flag=True, help="With --resume: go on although kernels, versions or data differ; not bit for bit."
)
@click.option("-y", "--yes", is_flag=True, help="Start long runs without confirmation.")
def command(session: Session, config: str | None, resume: bool, force: bool, yes: bool, **flags: Any) -> None:
    """Convert a model according to CONFIG: a YAML file, the name of a recipe or method, or a plan.json.

    Without CONFIG, pass --teacher, --to and --data. The run folder (--out; by default a new one under runs/) contains
    the student, the exports and the report.
    """
    if session.out is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("several processes need a common run folder", "pass --out RUN")
    if resume:
        _resume(session, config, flags, force=force)
        return
    if force:
        raise UsageError("--force is for --resume only", "xarch convert --resume --force --out RUN")
    plan = make_plan(session, config, flags)
    _announce(session, plan, yes)
    _run(session, session.out, plan=plan)


def _resume(session: Session, config: str | None, flags: dict[str, Any], *, force: bool) -> None:
    """Resume the run in ``--out`` (or in the folder passed as CONFIG).

    If a configuration is passed as well, the run must have that configuration, so that a job restarted by a scheduler
    can always use the same command.
    """
    given = config is not None or bool(session.sets) or session.seed is not None or any(flags.values())
    if session.out is None and config is not None and Path(config).is_dir():
        session.out, given = Path(config), False
    if session.out is None:
        raise UsageError("--resume needs a run folder", "xarch convert --resume --out RUN")
    exists = (session.out / "plan.json").is_file()
    if not exists and not given:
        raise UsageError(f"{session.out} contains no run to resume", "pass CONFIG to start one, or another --out")
    plan = make_plan(session, config, flags) if given else None
    if exists and plan is not None:
        _same_configuration(plan, session.out)
    if exists:
        _run(session, session.out, resume=True, force=force)
    else:
        _run(session, session.out, plan=plan)


def _same_configuration(plan: Plan, out: Path) -> None:
    from xarch.config.provenance import deep_leaves, dotted
    from xarch.files.run_dir import RunDir
    from xarch.run.inspection import read_plan

    stored = {dotted(p): v for p, v in deep_leaves(read_plan(RunDir.open(out)).config.model_dump(mode="json"))}
    wanted = {dotted(p): v for p, v in deep_leaves(plan.config.model_dump(mode="json"))}
    changed = sorted(k for k in stored.keys() | wanted.keys() if stored.get(k) != wanted.get(k))
    if changed:
        first = changed[0]
        raise UsageError(
            f"{out} is a run with a different configuration: {first} is {stored.get(first)!r} in the run, "
            f"{wanted.get(first)!r} in the request ({len(changed)} values differ)",
            f"to resume it: xarch convert --resume --out {out}; or choose another --out",
        )


def _announce(session: Session, plan: Plan, yes: bool) -> None:
    """Show the plan; on a terminal, ask for confirmation before a long run."""
    from xarch.cli.plan_view import show_plan

    show_plan(plan, session.console, origins=session.verbose)
    interactive = session.console.is_terminal and sys.stdin.isatty() and not session.json
    if interactive and not yes and plan.estimates.seconds > ASK_ABOVE_SECONDS:
        click.confirm("Start?", default=True, abort=True, err=True)


def _run(
    session: Session, out: Path | None, *, plan: Plan | None = None, resume: bool = False, force: bool = False
) -> None:
    from xarch import api
    from xarch.cli.ui import watched
    from xarch.cli.verdict import run_document, show_verdict
    from xarch.engine.events import Reporters
    from xarch.files.run_dir import RunDir

    path = out or RunDir.new_path(plan.name if plan is not None else "run")
    begun = _Begun()
    try:
        with watched(session.reporter()) as reporter:
            api.convert(plan, out=path, resume=resume, force=force, reporter=Reporters(begun, reporter))
    except XarchError as e:
        if not begun or isinstance(e, BusyError):
            raise
        try:
            document = {**run_document(path), "error": error_document(e)}
        except Exception:
            # Whatever is wrong with the folder as well, the error of the run is the one to report.
            raise e from e.__cause__
        session.emit(document, lambda console: show_verdict(document, console))
        if not session.json:
            raise
        show_error(e, verbose=session.verbose)
        raise click.exceptions.Exit(e.exit_code) from e
    document = run_document(path)
    session.emit(document, lambda console: show_verdict(document, console))


class _Begun(Reporter):
    """True once this command owns the run folder, so that its files may be shown after a failure."""

    def __init__(self) -> None:
        self.seen = False

    def plan_ready(self, plan: Any) -> None:
        self.seen = True

    def __bool__(self) -> bool:
        return self.seen
