"""The blocks of a report; they are rendered to HTML and to Markdown."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

Tone = Literal["", "good", "bad", "warn", "quiet"]


@dataclass(frozen=True, slots=True)
class Cell:
    """The text of a table cell, with a tone."""

    text: str
    tone: Tone = ""


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph."""

    text: str
    tone: Tone = ""
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Table:
    """A table; ``align`` has one letter per column: l, or r for numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    align: str = ""
    caption: str = ""
    kind: ClassVar[str] = "table"

    def cells(self) -> list[list[Cell]]:
        """Return every cell as a :class:`Cell`."""
        return [[c if isinstance(c, Cell) else Cell(c) for c in row] for row in self.rows]

    def side(self, column: int) -> str:
        """Return "l" or "r" for a column."""
        return self.align[column] if column < len(self.align) else "l"


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure drawn by this package; ``text`` describes it, for Markdown and for screen readers."""

    svg: str
    text: str
    caption: str = ""
    wide: bool = False
    kind: ClassVar[str] = "figure"


@dataclass(frozen=True)
class Figures:
    """Figures, side by side if the page is wide enough."""

    figures: Sequence[Figure]
    kind: ClassVar[str] = "figures"


@dataclass(frozen=True, slots=True)
class Code:
    """A command or a file, shown verbatim."""

    text: str
    language: str = ""
    kind: ClassVar[str] = "code"


@dataclass(frozen=True, slots=True)
class Tile:
    """One headline figure."""

    label: str
    value: str
    note: str = ""
    tone: Tone = ""


@dataclass(frozen=True)
class Tiles:
    """A row of headline figures."""

    tiles: Sequence[Tile]
    kind: ClassVar[str] = "tiles"


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a run, from plan to bench."""

    label: str
    state: Literal["done", "undone", "failed", "open"]
    note: str = ""


@dataclass(frozen=True)
class Steps:
    """The steps of a run and how far it got."""

    steps: Sequence[Step]
    kind: ClassVar[str] = "steps"


@dataclass(frozen=True)
class Strip:
    """A row of small squares: (label, marked); ``words`` explain marked and unmarked."""

    cells: Sequence[tuple[str, bool]]
    words: tuple[str, str]
    label: str = "parts in order"
    kind: ClassVar[str] = "strip"


LEVELS = 9
"""Shades of a :class:`Shaded` text."""


@dataclass(frozen=True)
class Shaded:
    """Text whose parts are shaded by a number, from the least (light) to the largest (dark): (part, number)."""

    parts: Sequence[tuple[str, float]]
    caption: str = ""
    kind: ClassVar[str] = "shaded"

    def levels(self) -> list[tuple[str, int]]:
        """Return the shade of every part, 0 to :data:`LEVELS` - 1."""
        values = [value for _, value in self.parts]
        low, width = min(values, default=0.0), max(values, default=0.0) - min(values, default=0.0)
        return [(part, min(LEVELS - 1, int(LEVELS * (v - low) / width)) if width > 0 else 0) for part, v in self.parts]


@dataclass(frozen=True, slots=True)
class Image:
    """An image as the bytes of a PNG, JPEG or SVG file. It is embedded as an image, so scripts in it do not run.

    Raises:
        ValueError: the bytes are in none of these formats.
    """

    data: bytes
    caption: str = ""

    def __post_init__(self) -> None:
        self.media  # noqa: B018

    @property
    def media(self) -> str:
        """The media type."""
        for start, media in _MEDIA.items():
            if self.data.lstrip()[: len(start)] == start:
                return media
        raise ValueError("an image is the bytes of a PNG, JPEG or SVG file")

    @property
    def url(self) -> str:
        """The image as a data URL."""
        return f"data:{self.media};base64,{base64.b64encode(self.data).decode('ascii')}"


_MEDIA = {b"\x89PNG": "image/png", b"\xff\xd8": "image/jpeg", b"<svg": "image/svg+xml", b"<?xml": "image/svg+xml"}


@dataclass(frozen=True, slots=True)
class Sample:
    """One input and the output of each model: (model, text or picture)."""

    given: str | Image
    answers: tuple[tuple[str, str | Image], ...]


@dataclass(frozen=True)
class Samples:
    """Inputs with their outputs, side by side."""

    samples: Sequence[Sample]
    kind: ClassVar[str] = "samples"


@dataclass(frozen=True, slots=True)
class Markdown:
    """Formatted text of a plugin; HTML in it is escaped and images in it are not loaded."""

    text: str
    kind: ClassVar[str] = "markdown"


@dataclass(frozen=True)
class Picture:
    """Images, side by side if the page is wide enough; ``text`` describes them, for Markdown and screen readers."""

    images: Sequence[Image]
    text: str
    caption: str = ""
    kind: ClassVar[str] = "picture"


@dataclass(frozen=True)
class Details:
    """Collapsed blocks."""

    summary: str
    blocks: Sequence[Block]
    kind: ClassVar[str] = "details"


Block = Text | Table | Figure | Figures | Code | Tiles | Steps | Strip | Shaded | Samples | Markdown | Picture | Details


@dataclass(frozen=True)
class Section:
    """A section of the report with its heading."""

    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)

    @property
    def anchor(self) -> str:
        """The id of the section on the page."""
        return "".join(c if c.isalnum() else "-" for c in self.title.lower()).strip("-")
