"""With ``--json``, standard output carries one document; all other output is redirected to standard error."""

from __future__ import annotations

import json
import os
import sys
from typing import Any, TextIO

from xarch.printable import escaped

_document: TextIO | None = None


def claim() -> None:
    """Reserve standard output for the document, even from libraries that write to the file descriptor."""
    global _document
    if _document is None:
        sys.stdout.flush()
        _document = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)


def write_document(data: Any, stream: TextIO | None = None) -> None:
    """Write the JSON document to the reserved output, or to ``stream`` if none was reserved."""
    text = escaped(json.dumps(data, indent=1, ensure_ascii=False, default=str)) + "\n"
    out = _document or stream or sys.stdout
    out.write(text)
    out.flush()
