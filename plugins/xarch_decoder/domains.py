"""Domains of documents: figures on one hide losses on another.

Legend: B batch, L tokens.
"""

from __future__ import annotations

from pathlib import PurePosixPath

import torch
from torch import Tensor

from xarch import Batch

CODE = frozenset((
    ".c", ".cc", ".cpp", ".cs", ".css", ".go", ".h", ".hpp", ".hs", ".java", ".jl", ".js", ".kt", ".lua", ".php", ".pl",
    ".py", ".pyi", ".r", ".rb", ".rs", ".scala", ".sh", ".sql", ".swift", ".ts",
))  # fmt: skip
PROSE = frozenset((".htm", ".html", ".markdown", ".md", ".rst", ".tex", ".text", ".txt", ".xhtml"))


def domain_of(document: str) -> str:
    """Return "code", "prose" or "other" by the extension of a document's file, whose name may end in ``#NUMBER``."""
    suffix = PurePosixPath(document.rpartition("#")[0] or document).suffix.lower()
    return "code" if suffix in CODE else "prose" if suffix in PROSE else "other"


def domains_of(batch: Batch) -> tuple[list[str], Tensor]:
    """Return the domains of a batch in the order of their names, and the index of every token's [B, L].

    A row without the names of its documents, or with documents of several domains and no boundaries between them,
    counts as "other".
    """
    segments_BL = batch.get("segment_ids")
    named = batch.meta.get("documents", [])
    rows: list[list[str]] = []
    for i in range(len(batch)):
        own = [domain_of(name) for name in named[i]] if len(named) == len(batch) else []
        parts = 1 if segments_BL is None else int(segments_BL[i].max()) + 1
        rows.append(own if len(own) == parts else [own[0] if len(set(own)) == 1 else "other"] * parts)
    names = sorted({name for row in rows for name in row})
    place_BL = torch.zeros_like(batch["input_ids"])
    for i, row in enumerate(rows):
        places = torch.tensor([names.index(name) for name in row], device=place_BL.device)
        place_BL[i] = places[0] if segments_BL is None else places[segments_BL[i]]
    return names, place_BL
