"""Sentences that every Python brings: those of plain words in the texts of its standard library."""

from __future__ import annotations

import hashlib
import platform
import re
import sysconfig
from pathlib import Path

from xarch import cache_dir, new_folder, regular_text

NAME = "python-sentences"

QUOTED = re.compile(r'"""(.*?)"""', re.DOTALL)

SENTENCE = re.compile(r"(?<!\S)([A-Z][a-z]*(?:,? (?:[a-z]+(?:'[a-z]{1,2})?|I)){4,13}\.)(?=\s|$)")
"""Five to fourteen words without names, numbers and code, which are not read as they are written."""

SINGLE = re.compile(r"\b[b-hj-z]\b")
"""A letter by itself is a variable."""

_NOT_STDLIB = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})


def python_sentences() -> list[str]:
    """Return the sentences in the order of their digests, so that neighbours are of different modules; found once for
    every version of Python."""
    folder = cache_dir() / "speech" / f"{NAME}-{platform.python_version()}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        found = sorted(_sentences(), key=lambda text: hashlib.sha256(text.encode()).digest())
        with new_folder(folder) as part:
            (part / "sentences.txt").write_text("\n".join(found) + "\n", encoding="utf-8")
    return regular_text(folder / "sentences.txt").splitlines()


def _sentences() -> set[str]:
    root, found = Path(sysconfig.get_path("stdlib")), set[str]()
    for file in root.rglob("*.py"):
        if _NOT_STDLIB & set(file.relative_to(root).parts):
            continue
        try:
            quoted = QUOTED.findall(regular_text(file))
        except UnicodeDecodeError:  # A module of an installation may be in another encoding.
            continue
        paragraphs = (" ".join(part.split()) for text in quoted for part in text.split("\n\n"))
        found |= {s for part in paragraphs for s in SENTENCE.findall(part) if not SINGLE.search(s)}
    return found
