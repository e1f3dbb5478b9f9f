"""Errors of plugin code leave as PluginError, so that a run always says whose fault it was."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator

from xarch.errors import PluginError, XarchError


@contextlib.contextmanager
def plugin_errors(who: str) -> Iterator[None]:
    """Turn what goes wrong inside into ``PluginError("WHO: TYPE: MESSAGE")``.

    Errors made for the user pass, and so does running out of memory, which the engine answers itself.
    """
    try:
        yield
    except (XarchError, MemoryError):
        raise
    except (Exception, SystemExit) as e:
        if type(e).__name__ == "OutOfMemoryError":
            raise
        raise PluginError(f"{who}: {last_line(e)}", "`-v` shows the plugin's traceback") from e


def last_line(error: BaseException) -> str:
    """The last line of the traceback: type and message."""
    lines = "".join(traceback.format_exception_only(type(error), error)).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
