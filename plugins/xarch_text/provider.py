"""Data provider ``text``."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from xarch import BatchStream, DataInfo, DataProvider, UsageError
from xarch_text.corpus import STDLIB, find_corpus
from xarch_text.encoding import Encoder
from xarch_text.fixed import FixedStream
from xarch_text.library import Library
from xarch_text.options import TextOptions
from xarch_text.split import SPLITS
from xarch_text.train import TrainStream

DEFAULT_LENGTH = 512


class TextData(DataProvider):
    """Running text as rows of tokens.

    References: ``text:python-stdlib`` (sources and docstrings of the running Python), ``text:FILE``, ``text:FOLDER``
    and ``'text:GLOB'``. Files: plain text, Markdown, source code, HTML (tags stripped), JSON lines and Parquet (one
    document per record); gzip is read through.

    A sample is a row: ``{"length": 512}`` tokens. Batches hold ``input_ids`` and ``segment_ids``, int64 [samples,
    length]; ``segment_ids`` number the documents within a row from 0. Units are tokens.

    Documents are split into train, validation and held-out by their names, so the three never overlap and are the same
    on every machine.
    """

    Options = TextOptions

    def describe(self, ref: str, options: BaseModel) -> DataInfo:
        assert isinstance(options, TextOptions)
        corpus = find_corpus(ref, options.extensions)
        lines = [f"{corpus.digest} {options.field} {options.separator}"]
        if ref != STDLIB:
            lines += [f"{f.name} {f.path.stat().st_mtime_ns}" for f in corpus.files]
        digest = hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
        return DataInfo(corpus.title, digest, "token", {"files": len(corpus.files), "bytes": corpus.bytes})

    def units_per_sample(self, sample: Mapping[str, Any]) -> int:
        return _length(sample)

    def open(
        self,
        ref: str,
        options: BaseModel,
        *,
        split: str,
        samples: int,
        sample: Mapping[str, Any],
        processors: Mapping[str, Any],
        seed: int,
        teacher: Any = None,
    ) -> BatchStream:
        """See :meth:`xarch.DataProvider.open`.

        Raises:
            UsageError: wrong sample, no tokenizer, nothing there, or rows longer than the teacher can read.
        """
        assert isinstance(options, TextOptions)
        if split not in SPLITS:
            raise UsageError(f"text data has no split {split!r}", f"splits: {', '.join(SPLITS)}")
        length = _length(sample)
        facts = getattr(teacher, "facts", None)
        longest = getattr(facts, "max_positions", None)
        if longest is not None and length > longest:
            raise UsageError(
                f"samples of {length} tokens, the teacher was made for at most {longest}",
                f"`--set data.sample.length={longest}`",
            )
        library = Library(find_corpus(ref, options.extensions), options, split)
        encoder = Encoder(
            processors.get("teacher"), options.tokenizer, options.separator, getattr(facts, "vocab", None)
        )
        if split == "train":
            return TrainStream(library, encoder, samples=samples, length=length, seed=seed)
        return FixedStream(library, encoder, samples=samples, length=length)


def _length(sample: Mapping[str, Any]) -> int:
    unknown = sorted(set(sample) - {"length"})
    length = sample.get("length", DEFAULT_LENGTH)
    if unknown:
        raise UsageError(f"a sample of text has no {unknown[0]!r}", "for example {length: 512}")
    if not isinstance(length, int) or isinstance(length, bool) or length < 2:
        raise UsageError(f"sample length is {length!r}, wanted a whole number of tokens from 2 on")
    return length
