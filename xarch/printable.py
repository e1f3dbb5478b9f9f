"""Text from files and other people made safe to show: terminals, standard error and log.txt obey control characters.

Names of files, strings of headers, messages of libraries and generated text pass through here on their way out, once,
at the outlet: the console, :func:`say`, log records, and log.txt.
"""

from __future__ import annotations

import re
import sys
from typing import Any

REPLACEMENT = "\ufffd"
_UNSAFE = re.compile(
    "[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f-\\x9f\\u2028\\u2029\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff]|\\r(?!\\n)"
)
"""Control characters (C0 but tab and line ends, DEL, C1), line separators and embeddings, overrides and isolates that
reorder text, and the halves of surrogate pairs that names of files may contain but no encoding can write."""


def clean(value: Any) -> Any:
    """Return text, or JSON data with texts, with every unsafe character replaced by U+FFFD; line ends and tabs stay."""
    if isinstance(value, str):
        return _UNSAFE.sub(REPLACEMENT, value)
    if isinstance(value, list):
        return [clean(v) for v in value]
    if isinstance(value, dict):
        return {clean(k): clean(v) for k, v in value.items()}
    return value


def escaped(json_text: str) -> str:
    """Return a JSON document with every unsafe character inside its strings written as ``\\uXXXX``: nothing is lost."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", json_text)


def log_line(text: str) -> str:
    """Return ``text`` as one entry of a log: cleaned, and indented after line ends, so that no text forges an entry."""
    return str(clean(text)).replace("\r\n", "\n").replace("\n", "\n    ")


def say(text: str, *, end: str = "\n") -> None:
    """Print a line for people to standard error; standard output is reserved for results."""
    print(clean(text), file=sys.stderr, end=end, flush=True)
