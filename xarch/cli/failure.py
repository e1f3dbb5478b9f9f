"""Failed commands: a message and a hint for people, a JSON document for programs, and an exit code."""

from __future__ import annotations

import contextlib
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import click

from xarch.cli import stdout
from xarch.errors import XarchError
from xarch.files.home import cache_dir
from xarch.printable import clean

INTERRUPTED = 130


def error_document(error: XarchError) -> dict[str, Any]:
    """``{"kind", "what", "hint", "exit_code"}``."""
    return {"kind": error.kind, "what": error.what, "hint": error.hint, "exit_code": error.exit_code}


def show_error(error: XarchError, *, verbose: bool) -> None:
    """Print kind, cause and hint to standard error; with ``verbose`` also the plugin's traceback."""
    cause = error.__cause__
    if verbose and cause is not None:
        lines = traceback.format_exception(type(cause), cause, cause.__traceback__)
        click.echo(clean("".join(lines)), err=True, nl=False)
    click.echo(f"{click.style('error', fg='red', bold=True)} ({error.kind}): {clean(error.what)}", err=True)
    if error.hint and not (verbose and error.hint.startswith("`-v`")):
        click.echo(f"{click.style('help', fg='cyan', bold=True)}: {clean(error.hint)}", err=True)


def end(error: XarchError, *, as_json: bool, verbose: bool) -> int:
    """Report the error in the requested format and return the exit code."""
    with contextlib.suppress(OSError):
        # The terminal's file may be on the full disk that the error is about.
        show_error(error, verbose=verbose)
        if as_json:
            stdout.write_document({"error": error_document(error)})
    return error.exit_code


def crash(error: BaseException, *, as_json: bool, verbose: bool) -> int:
    """Report an unexpected error: a short message, with the traceback in a file or, with ``verbose``, on the screen."""
    text = clean("".join(traceback.format_exception(type(error), error, error.__traceback__)))
    summary = traceback.format_exception_only(type(error), error)[-1].strip()
    hint = None
    if verbose:
        with contextlib.suppress(OSError):
            click.echo(text, err=True, nl=False)
    else:
        file = _save(text)
        hint = f"traceback in {file}" if file else "use `-v` to show the traceback"
    internal = XarchError(f"xarch failed unexpectedly: {summary}", hint)
    internal.kind = "internal"
    return end(internal, as_json=as_json, verbose=False)


def _save(text: str) -> Path | None:
    file = cache_dir() / "crashes" / f"{time.strftime('%Y%m%d-%H%M%S')}.txt"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"command: {sys.argv}\n\n{text}", encoding="utf-8")
    except OSError:
        return None
    return file
