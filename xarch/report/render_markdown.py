"""The report as Markdown: the same contents without pictures."""

from __future__ import annotations

import re
from collections.abc import Sequence

from xarch.report.blocks import (
    Block,
    Code,
    Details,
    Figure,
    Figures,
    Image,
    Markdown,
    Picture,
    Samples,
    Section,
    Shaded,
    Steps,
    Strip,
    Table,
    Text,
    Tiles,
)

_MARK = {"done": "✓", "undone": "↶", "failed": "✗", "open": "·"}
_SPECIAL = re.compile(r"([\\`*_\[\]<>|~$&#!])|(?<=\w)(:)(?=//)|(?<=www)(\.)|^([-+=])|(?<=^\d)([.)])")


def to_markdown(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """Return the whole document. Text from teachers and data is escaped, so it cannot add formatting or links."""
    lines = [f"# {escape(title)}", "", escape(subtitle), ""]
    for section in sections:
        lines += [f"## {escape(section.title)}", ""]
        for block in section.blocks:
            lines += [*_block(block), ""]
    return "\n".join(lines).rstrip() + "\n"


def escape(text: str) -> str:
    """Escape plain text to one line of Markdown."""
    return _SPECIAL.sub(lambda m: "\\" + m.group(), " ".join(text.split()))


def fenced(text: str, language: str = "") -> list[str]:
    """Return the text verbatim, in a fence longer than any fence inside it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}{language}", *text.rstrip("\n").split("\n"), fence]


def _block(block: Block) -> list[str]:
    if isinstance(block, Text):
        text = escape(block.text)
        return [f"**{text}**" if block.tone in ("good", "bad") and text else text]
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Figure):
        return [escape(block.text)]
    if isinstance(block, Figures):
        return [f"- {escape(f.text)}" for f in block.figures]
    if isinstance(block, Code):
        return fenced(block.text, block.language)
    if isinstance(block, Tiles):
        return [
            f"- {escape(t.label)}: **{escape(t.value)}**" + (f" ({escape(t.note)})" if t.note else "")
            for t in block.tiles
        ]
    if isinstance(block, Steps):
        return [
            " → ".join(
                f"{_MARK[s.state]} {escape(s.label)}" + (f" ({escape(s.note)})" if s.note else "") for s in block.steps
            )
        ]
    if isinstance(block, Strip):
        return _strip(block)
    if isinstance(block, Shaded):
        text = "".join(part for part, _ in block.parts)
        return [*fenced(text, "text"), "", f"{escape(block.caption)} (shades: see report.html)"]
    if isinstance(block, Samples):
        return _samples(block)
    if isinstance(block, Markdown):
        return block.text.split("\n")
    if isinstance(block, Picture):
        caption = f" {escape(block.caption)}" if block.caption else ""
        return [escape(f"({block.text}: see report.html)") + caption]
    assert isinstance(block, Details)
    return [f"{escape(block.summary)}:", "", *(line for b in block.blocks for line in [*_block(b), ""])][:-1]


def _table(table: Table) -> list[str]:
    def row(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    rule = ["---:" if table.side(i) == "r" else "---" for i in range(len(table.head))]
    rows = [row([escape(c.text) for c in cells]) for cells in table.cells()]
    caption = ["", escape(table.caption)] if table.caption else []
    return [row([escape(h) for h in table.head]), row(rule), *rows, *caption]


def _strip(strip: Strip) -> list[str]:
    squares = "".join("■" if on else "□" for _, on in strip.cells)
    return [f"`{squares}`", "", f"■ {escape(strip.words[0])}, □ {escape(strip.words[1])}"]


def _samples(block: Samples) -> list[str]:
    lines: list[str] = []
    for i, sample in enumerate(block.samples, start=1):
        lines += [f"Input {i}:", "", *_shown(sample.given), ""]
        for who, answer in sample.answers:
            lines += [f"{escape(who)}:", "", *_shown(answer), ""]
    return lines[:-1]


def _shown(value: str | Image) -> list[str]:
    if isinstance(value, Image):
        return [escape(f"({value.caption or 'picture'}: see report.html)")]
    return fenced(value, "text")
