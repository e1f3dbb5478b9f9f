"""Streaming extraction of the visible text of a web page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser

from xarch_text.tally import Unreadable

_HIDDEN = frozenset({"script", "style", "template", "noscript", "head"})
_BLOCKS = frozenset(
    re.findall(
        r"\w+",
        "address article aside blockquote body br dd div dl dt footer form h1 h2 h3 h4 h5 h6 header hr li main nav ol "
        "p pre section table td th tr ul",
    )
)
# Tried only at the start of a run of spaces: from every space of a long run, the search would be quadratic.
_EMPTY_LINES = re.compile(r"(?<![ \t])[ \t]*+\n(?:[ \t]*+\n)+")
_LINE_END = re.compile(r"(?<![ \t])[ \t]++\n")
MAX_HELD = 1 << 20
"""Characters of an unfinished tag, or of trailing white space, that are held; each is looked at with every chunk."""


def without_tags(chunks: Iterator[str]) -> Iterator[str]:
    """Yield the text of a page given in chunks; block elements start a line, and blank lines are collapsed."""
    page = _Page()
    for chunk in chunks:
        page.feed(chunk)
        if len(page.rawdata) > MAX_HELD:
            raise Unreadable("corrupt", "a web page with a tag that does not end")
        yield page.take()
    page.close()
    yield page.take()


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._parts: list[str] = []
        self._hidden = 0
        self._verbatim = 0
        self._started = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        # A page may omit </head>; <body> ends it.
        self._hidden = 0 if tag == "body" else self._hidden + (tag in _HIDDEN)
        self._verbatim += tag == "pre"
        if tag in _BLOCKS:
            self._parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self._hidden = max(0, self._hidden - (tag in _HIDDEN))
        self._verbatim = max(0, self._verbatim - (tag == "pre"))
        if tag in _BLOCKS:
            self._parts.append("\n")

    def handle_data(self, data: str) -> None:
        if self._hidden:
            return
        if not self._verbatim:
            data = _one_line(data)
            if self._parts and self._parts[-1][-1:].isspace():
                data = data.lstrip(" ")
        if data:
            self._parts.append(data)

    def take(self) -> str:
        """Return the complete text so far; trailing white space is kept back, as it depends on what follows."""
        text = _LINE_END.sub("\n", _EMPTY_LINES.sub("\n\n", "".join(self._parts)))
        if not self._started:
            text = text.lstrip()
        ready = text.rstrip()
        self._started = self._started or bool(ready)
        self._parts = [text[len(ready) :][-MAX_HELD:]]
        return ready


def _one_line(data: str) -> str:
    """Collapse every run of white space to one space."""
    words = " ".join(data.split())
    lead = " " if data[:1].isspace() else ""
    return lead + words + (" " if words and data[-1:].isspace() else "")
