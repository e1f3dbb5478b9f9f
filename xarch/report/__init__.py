"""The one-page report of a run, built from the files of its run folder only; no model is loaded.

Plugins add sections: ``registry.report(NAME, load="package.module:function")`` registers a function that maps a
:class:`RunInfo` to sections. Families list theirs in ``Family.report_sections``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_PUBLIC = {
    "RunInfo": "xarch.report.files",
    "StageMetrics": "xarch.report.files",
    "Section": "xarch.report.blocks",
    "Text": "xarch.report.blocks",
    "Table": "xarch.report.blocks",
    "Cell": "xarch.report.blocks",
    "Code": "xarch.report.blocks",
    "Details": "xarch.report.blocks",
    "Figure": "xarch.report.blocks",
    "Figures": "xarch.report.blocks",
    "Image": "xarch.report.blocks",
    "Picture": "xarch.report.blocks",
    "Tile": "xarch.report.blocks",
    "Tiles": "xarch.report.blocks",
    "Sample": "xarch.report.blocks",
    "Samples": "xarch.report.blocks",
    "Shaded": "xarch.report.blocks",
    "Strip": "xarch.report.blocks",
    "Markdown": "xarch.report.blocks",
    "bars": "xarch.report.draw",
    "lines": "xarch.report.draw",
    "heat": "xarch.report.draw",
    "Block": "xarch.report.blocks",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'xarch.report' has no attribute {name!r}")


if TYPE_CHECKING:
    from xarch.report.blocks import (
        Block,
        Cell,
        Code,
        Details,
        Figure,
        Figures,
        Image,
        Markdown,
        Picture,
        Sample,
        Samples,
        Section,
        Shaded,
        Strip,
        Table,
        Text,
        Tile,
        Tiles,
    )
    from xarch.report.draw import bars, heat, lines
    from xarch.report.files import RunInfo, StageMetrics
