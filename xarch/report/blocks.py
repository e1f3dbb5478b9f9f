"""What a report is made of; the page and its Markdown twin are two renderings of these."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

Tone = Literal["", "good", "bad", "warn", "quiet"]


@dataclass(frozen=True, slots=True)
class Cell:
    """Text of a table cell with a tone."""

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
    """A table; ``align`` has one letter a column: l or r (numbers)."""

    head: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    align: str = ""
    caption: str = ""
    kind: ClassVar[str] = "table"

    def cells(self) -> list[list[Cell]]:
        """Every cell as a :class:`Cell`."""
        return [[c if isinstance(c, Cell) else Cell(c) for c in row] for row in self.rows]

    def side(self, column: int) -> str:
        """ "l" or "r" for a column."""
        return self.align[column] if column < len(self.align) else "l"


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture made by this package. ``text`` says the same in words, for Markdown and for screen readers."""

    svg: str
    text: str
    caption: str = ""
    wide: bool = False
    kind: ClassVar[str] = "figure"


@dataclass(frozen=True)
class Figures:
    """Pictures side by side where there is room."""

    figures: Sequence[Figure]
    kind: ClassVar[str] = "figures"


@dataclass(frozen=True, slots=True)
class Code:
    """A command or a file, shown as it is."""

    text: str
    language: str = ""
    kind: ClassVar[str] = "code"


@dataclass(frozen=True, slots=True)
class Tile:
    """One headline number."""

    label: str
    value: str
    note: str = ""
    tone: Tone = ""


@dataclass(frozen=True)
class Tiles:
    """Headline numbers in a row."""

    tiles: Sequence[Tile]
    kind: ClassVar[str] = "tiles"


@dataclass(frozen=True, slots=True)
class Step:
    """One station on the way from plan to bench."""

    label: str
    state: Literal["done", "undone", "failed", "open"]
    note: str = ""


@dataclass(frozen=True)
class Steps:
    """The way of a run and how far it came."""

    steps: Sequence[Step]
    kind: ClassVar[str] = "steps"


@dataclass(frozen=True)
class Strip:
    """A row of small squares: (label, is it marked); ``words`` say what marked and not marked mean."""

    cells: Sequence[tuple[str, bool]]
    words: tuple[str, str]
    label: str = "parts in order"
    kind: ClassVar[str] = "strip"


@dataclass(frozen=True, slots=True)
class Image:
    """A picture as the bytes of a PNG, JPEG or SVG file; it is shown as an image, so nothing in it runs.

    Raises:
        ValueError: the bytes are none of these.
    """

    data: bytes
    caption: str = ""

    def __post_init__(self) -> None:
        self.media  # noqa: B018

    @property
    def media(self) -> str:
        """Its media type."""
        for start, media in _MEDIA.items():
            if self.data.lstrip()[: len(start)] == start:
                return media
        raise ValueError("an image is the bytes of a PNG, JPEG or SVG file")

    @property
    def url(self) -> str:
        """A data URL."""
        return f"data:{self.media};base64,{base64.b64encode(self.data).decode('ascii')}"


_MEDIA = {b"\x89PNG": "image/png", b"\xff\xd8": "image/jpeg", b"<svg": "image/svg+xml", b"<?xml": "image/svg+xml"}


@dataclass(frozen=True, slots=True)
class Sample:
    """One input and what the models made of it: (who, text or picture)."""

    given: str | Image
    answers: tuple[tuple[str, str | Image], ...]


@dataclass(frozen=True)
class Samples:
    """Inputs and outputs side by side."""

    samples: Sequence[Sample]
    kind: ClassVar[str] = "samples"


@dataclass(frozen=True, slots=True)
class Markdown:
    """Text of a plugin with its own formatting; HTML in it stays text and pictures in it are not fetched."""

    text: str
    kind: ClassVar[str] = "markdown"


@dataclass(frozen=True)
class Picture:
    """Images side by side where there is room; ``text`` says what they show, for Markdown and screen readers."""

    images: Sequence[Image]
    text: str
    caption: str = ""
    kind: ClassVar[str] = "picture"


@dataclass(frozen=True)
class Details:
    """Blocks that are folded away."""

    summary: str
    blocks: Sequence[Block]
    kind: ClassVar[str] = "details"


Block = Text | Table | Figure | Figures | Code | Tiles | Steps | Strip | Samples | Markdown | Picture | Details


@dataclass(frozen=True)
class Section:
    """A headed part of the report."""

    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)

    @property
    def anchor(self) -> str:
        """Its id on the page."""
        return "".join(c if c.isalnum() else "-" for c in self.title.lower()).strip("-")
