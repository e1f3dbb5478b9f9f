"""``xarch``: the table of commands and the handling of their errors."""

from __future__ import annotations

import difflib
import importlib
import itertools
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from xarch._version import __version__
from xarch.cli import failure, stdout
from xarch.engine.signals import StopRequest
from xarch.errors import UsageError
from xarch.failures import as_error

COMMANDS = {
    "list": "List pairs, targets, methods, recipes, objectives, profiles, plugins and more.",
    "inspect": "Show shapes, taps and options of a teacher, run, ONNX file or adapter.",
    "plan": "Show what a conversion will do, without loading weights.",
    "convert": "Convert a model and write a run folder.",
    "eval": "Re-evaluate the student of a run.",
    "generate": "Generate text or a picture with the student of a run.",
    "export": "Export the student of a run to ONNX and check parity.",
    "bench": "Measure the latency of a run's exports or of an ONNX file.",
    "push": "Upload a student, its model card and its exports to a model hub.",
    "study": "Run conversions for arms × seeds and compare them in one table.",
    "report": "Rebuild the report of a run.",
    "plugins": "List, check, disable and enable plugins.",
    "new": "Create a plugin or a run configuration from a template.",
    "doctor": "Show versions, devices, kernels, plugins and folders.",
    "completion": "Print the script that completes names in a shell.",
}
EPILOG = "Start with `xarch list recipes`, then `xarch plan RECIPE` and `xarch convert RECIPE --tiny`."


class Lazy(click.Group):
    """Imports a command's module on use; commands of a plugin are grouped under the plugin's name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS:
            module = importlib.import_module(f"xarch.cli.{cmd_name}")
            found: click.Command = module.command
            return found
        return _plugin_commands(cmd_name)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            guess = f"; did you mean {near[0]!r}?" if near else ""
            raise UsageError(f"unknown command {args[0]!r}{guess}", "xarch --help")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _plugin_commands(plugin: str) -> click.Group | None:
    from xarch.registry.loader import get_registry

    registry = get_registry()
    if plugin not in registry.implementers("xarch_commands"):
        return None
    group = click.Group(plugin, help=f"Commands of the plugin {plugin}.")
    registry.call("xarch_commands", only=plugin, group=group)
    return group


@click.group(
    cls=Lazy,
    epilog=EPILOG,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name="xarch")
@click.pass_context
def cli(context: click.Context) -> None:
    """Convert a trained model from one architecture into another and ship it as verified ONNX."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the ``xarch`` command."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if wants_json(given):
        stdout.claim()
    sys.exit(run(given))


def wants_json(arguments: Sequence[str]) -> bool:
    """Whether a command line requests a JSON document, even if it is otherwise invalid."""
    return "--json" in itertools.takewhile(lambda a: a != "--", arguments)


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code."""
    shown: dict[str, Any] = {
        "as_json": wants_json(arguments),
        "verbose": bool({"-v", "--verbose"} & set(itertools.takewhile(lambda a: a != "--", arguments))),
    }
    try:
        with StopRequest():
            code = cli.main(arguments, prog_name="xarch", standalone_mode=False, obj=shlex.join(["xarch", *arguments]))
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.ClickException as e:
        context = getattr(e, "ctx", None)
        hint = f"{context.command_path} --help" if context is not None else "xarch --help"
        return failure.end(UsageError(e.format_message(), hint), **shown)
    except (click.Abort, KeyboardInterrupt) as e:
        # click raises its own error from the exception of a signal.
        stopped = as_error(e.__cause__ or e, f"to start again: {shlex.join(['xarch', *arguments])}")
        if stopped is not None:
            return failure.end(stopped, **shown)
        click.echo("interrupted", err=True)
        return failure.INTERRUPTED
    except BrokenPipeError:
        _silence()
        return 0
    except (SystemExit, GeneratorExit):
        raise
    except BaseException as e:
        # Panics of Rust libraries are no Exception.
        error = as_error(e, f"repeat `{shlex.join(['xarch', *arguments])}`")
        try:
            sys.stdout.flush()
        except OSError:
            _silence()
        return failure.crash(e, **shown) if error is None else failure.end(error, **shown)


def _silence() -> None:
    """Drop what standard output still holds: its reader is gone or its disk is full, and Python would fail again during
    shutdown."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
