"""What every provider of text checks of a request, and how it names the content of its files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from xarch import DataInfo, DataRequest, TensorInfo, UsageError, sampled_digest
from xarch_text.corpus import Corpus
from xarch_text.encoding import NO_TOKENIZER
from xarch_text.options import ReadingOptions
from xarch_text.split import SPLITS


def described(
    corpus: Corpus,
    options: ReadingOptions,
    *,
    included: bool,
    reading: Sequence[str],
    tensors: dict[str, TensorInfo],
    facts: dict[str, Any],
    warnings: Sequence[str] = (),
) -> DataInfo:
    """Return what is known of data before a file is read.

    Args:
        included: whether the files come with Python, so that their names say what is in them.
        reading: options that decide what is read of the files.
    """
    lines = [" ".join([corpus.digest, *reading])]
    if not included:
        lines.append(sampled_digest((f.name, f.path) for f in corpus.files))
    return DataInfo(
        corpus.title,
        hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest(),
        "token",
        {"files": len(corpus.files), "bytes": corpus.bytes},
        tensors=tensors,
        facts=facts,
        processor_hint=NO_TOKENIZER if options.tokenizer == "teacher" else "",
        warnings=tuple(warnings),
    )


def check_split(request: DataRequest, what: str) -> None:
    """Check that a split exists.

    Raises:
        UsageError: it does not.
    """
    if request.split not in SPLITS:
        raise UsageError(f"{what} no split {request.split!r}", f"splits: {', '.join(SPLITS)}")


def check_context(tokens: int, facts: Any, what: str, remedy: str) -> None:
    """Check that samples fit the teacher's maximum context; the plan calls this too.

    Args:
        what: what has so many tokens, with its verb.
        remedy: in which ``{most}`` stands for the maximum.

    Raises:
        UsageError: they do not.
    """
    most = getattr(facts, "max_positions", None)
    if most is not None and tokens > most:
        message = f"{what} {tokens} tokens, but the teacher supports at most {most}"
        raise UsageError(message, remedy.format(most=most))
