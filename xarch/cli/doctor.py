"""``xarch doctor``: capabilities of this machine and this installation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xarch.cli.session import Session, define


@define("doctor")
def command(session: Session) -> None:
    """Show versions, devices, memory, kernels, runtimes, plugins and folders, with the reason for each failure."""
    from xarch.cli import machine
    from xarch.cli.document_view import show_document

    parts: dict[str, Callable[[], Any]] = {
        "versions": machine.versions,
        "devices": machine.devices,
        "memory": machine.memory,
        "folders": machine.folders,
        "kernels": machine.kernels,
        "compiler": machine.compiler,
        "onnxruntime": machine.onnx_providers,
        "plugins": machine.plugins,
        "installation": machine.installation,
    }
    document = {name: _safely(part) for name, part in parts.items()}
    session.emit(document, lambda console: show_document(document, console, everything=True))


def _safely(part: Callable[[], Any]) -> Any:
    """Return the facts of one part; a broken library must not hide the other parts."""
    try:
        return part()
    except Exception as e:
        return {"failed": f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"}
