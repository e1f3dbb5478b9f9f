"""Attributes exceptions raised by plugin code to the plugin, never to xarch."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xarch.errors import PluginError, XarchError
from xarch.failures import is_machine_failure, is_overlong_name
from xarch.registry.discover import CORE

if TYPE_CHECKING:
    from xarch.registry.loader import PluginInfo

HINT = "`-v` shows the plugin's traceback"


def last_line(error: BaseException) -> str:
    """Return the last line of the traceback: type and message."""
    lines = "".join(traceback.format_exception_only(type(error), error)).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def passes(error: BaseException) -> bool:
    """Return whether an error passes unchanged: errors for the user, and failures of the machine and names that are too
    long for it, which are translated where the command ends."""
    return isinstance(error, XarchError) or is_machine_failure(error) or is_overlong_name(error)


@contextlib.contextmanager
def plugin_errors(who: str) -> Iterator[None]:
    """Convert exceptions to ``PluginError("WHO: TYPE: MESSAGE")``. Errors for the user pass, and so do failures of the
    machine.
    """
    try:
        yield
    except (Exception, SystemExit) as e:
        if passes(e):
            raise
        raise PluginError(f"{who}: {last_line(e)}", HINT) from e


class Owners:
    """Finds the plugin responsible for a traceback.

    Args:
        plugins: every plugin that was found.
    """

    def __init__(self, plugins: Iterable[PluginInfo]) -> None:
        self._files: dict[str, PluginInfo] = {}
        self._modules: dict[str, PluginInfo] = {}
        for info in plugins:
            if info.name == CORE:
                continue
            if info.origin.endswith(".py"):
                self._files[str(Path(info.origin))] = info
            else:
                module = info.origin.partition(":")[0]
                self._modules[module] = info
                # A plugin owns its whole package, except for modules of other plugins.
                self._modules.setdefault(module.partition(".")[0], info)

    def of(self, error: BaseException) -> PluginInfo | None:
        """Return the plugin whose code is innermost on the traceback; None if it has only xarch and library frames."""
        found = None
        step = error.__traceback__
        while step is not None:
            found = self._of_frame(step.tb_frame) or found
            step = step.tb_next
        return found

    def _of_frame(self, frame: Any) -> PluginInfo | None:
        by_file = self._files.get(frame.f_code.co_filename)
        name = str(frame.f_globals.get("__name__", ""))
        while by_file is None and name:
            if name in self._modules:
                return self._modules[name]
            name = name.rpartition(".")[0]
        return by_file
