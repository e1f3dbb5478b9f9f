"""CONFIG and its flags, shared by `xarch plan` and `xarch convert`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xarch.cli.completion import names
from xarch.cli.session import Session
from xarch.config.load import load_config
from xarch.errors import UsageError

if TYPE_CHECKING:
    from xarch.config.load import LoadedConfig
    from xarch.planning.plan import Plan


def configuration(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the CONFIG argument and the flags that can replace it."""
    for add in reversed(
        (
            click.argument("config", required=False, shell_complete=names("recipe", "method", files=True)),
            click.option(
                "--teacher",
                metavar="SOURCE:REF",
                shell_complete=names("source", suffix=":"),
                help="Teacher, e.g. zoo:NAME, hf:FOLDER, run:DIR, none.",
            ),
            click.option(
                "--to",
                "target",
                metavar="TARGET",
                shell_complete=names("target"),
                help="Student architecture; see `xarch list targets`.",
            ),
            click.option(
                "--data",
                metavar="PROVIDER:REF",
                shell_complete=names("data", suffix=":"),
                help="Training data, e.g. text:FOLDER.",
            ),
            click.option(
                "--method",
                metavar="NAME",
                shell_complete=names("method", "recipe"),
                help="Method or recipe; default: the target's own.",
            ),
            click.option("--tiny", is_flag=True, help="Run the whole conversion on a truncated model, in a minute."),
            click.option("--allow-pickle", is_flag=True, help="Also read pickled weights (tensors only)."),
        )
    ):
        function = add(function)
    return function


def make_plan(session: Session, config: str | None, flags: dict[str, Any]) -> Plan:
    """Return the plan for CONFIG; a plan in a ``.json`` file is used unchanged.

    Raises:
        UsageError, PlanError, PluginError: see ``xarch.api.plan``.
    """
    from xarch import api

    if config is None or not config.endswith(".json"):
        return api.plan(resolved(session, config, flags), command=session.command)
    if session.sets or session.seed is not None or session.device or any(flags.values()):
        raise UsageError(f"{config} is a plan and runs unchanged", "to change it, plan again from its configuration")
    return _plan_file(Path(config))


def resolved(session: Session, config: str | None, flags: dict[str, Any]) -> LoadedConfig:
    """Return the configuration given by the command line.

    Raises:
        UsageError: teacher or target is missing, or a key or value is invalid.
    """
    values = {
        "teacher": flags["teacher"],
        "student.target": flags["target"],
        "data.ref": flags["data"],
        "recipe": flags["method"],
        "tiny": flags["tiny"] or None,
        "teacher_options.allow_pickle": flags["allow_pickle"] or None,
    }
    found = load_config(config, sets=session.sets, overrides=session.overrides(**values))
    needed = {"--teacher SOURCE:REF": found.config.teacher, "--to TARGET": found.config.student.target}
    absent = [flag for flag, value in needed.items() if not value]
    if absent:
        raise UsageError(
            f"{config or 'the command'} does not specify what to convert: {' and '.join(absent)} missing",
            "pass CONFIG (a YAML file, or a name from `xarch list recipes` or `xarch list methods`), or these options",
        )
    return found


def _plan_file(path: Path) -> Plan:
    from xarch.config.validation import validated
    from xarch.files.bounded_json import read_json
    from xarch.planning.plan import Plan

    return validated(Plan, read_json(path), f"{path} is not a plan of this version: ", "plan again")
