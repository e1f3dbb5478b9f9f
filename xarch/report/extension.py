"""Sections that plugins add to a report."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from xarch.errors import XarchError
from xarch.report.blocks import Block, Markdown, Picture, Section, Text

HOOK = "xarch_report_sections"


def plugin_sections(run: Any) -> list[Section]:
    """What plugins return from ``xarch_report_sections``; a plugin that fails becomes a note instead."""
    from xarch.registry.loader import get_registry

    registry = get_registry()
    sections: list[Section] = []
    for plugin in registry.implementers(HOOK):
        try:
            results = registry.call(HOOK, only=plugin, run=run)
            sections += [_section(plugin, item) for result in results for item in result]
        except (XarchError, TypeError, ValueError, KeyError) as e:
            sections.append(Section(f"Plugin {plugin}", [Text(f"its sections could not be shown: {e}", "warn")]))
    return sections


def _section(plugin: str, item: Mapping[str, str]) -> Section:
    blocks: list[Block] = [Markdown(str(item["markdown"]))] if item.get("markdown") else []
    if item.get("svg"):
        data = base64.b64encode(str(item["svg"]).encode("utf-8")).decode("ascii")
        blocks.append(Picture(data, f"picture by plugin {plugin}"))
    return Section(str(item["title"]), blocks)
