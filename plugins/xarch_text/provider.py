"""Data provider ``text``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field

from xarch import (
    BatchStream,
    DataInfo,
    DataProvider,
    DataRequest,
    Options,
    TensorInfo,
    validated,
)
from xarch_text.corpus import Corpus, find_corpus
from xarch_text.encoding import Encoder
from xarch_text.fixed import FixedStream
from xarch_text.included import INCLUDED
from xarch_text.library import Library
from xarch_text.options import TextOptions
from xarch_text.request import check_context, check_split, described
from xarch_text.train import TrainStream

DEFAULT_LENGTH = 512

MAX_LENGTH = 1 << 24


class RowSample(Options):
    """Form of one row."""

    length: int = Field(DEFAULT_LENGTH, strict=True, ge=2, le=MAX_LENGTH, description="tokens of a row")


class TextData(DataProvider):
    """Text as rows of tokens.

    References: ``text:python-stdlib`` (sources and docstrings of the running Python), ``text:python-topics`` (its
    documentation), ``text:python-mixed`` (both), ``text:FILE``, ``text:FOLDER`` and ``'text:GLOB'``.
    Files: plain text, Markdown, source code, HTML (tags stripped), JSON lines and Parquet (one document per record);
    gzip files are decompressed.

    A sample is a row: ``{"length": 512}`` tokens. Batches hold ``input_ids`` and ``segment_ids``, int64 [samples,
    length]; ``segment_ids`` number the documents within a row from 0. Units are tokens.

    Documents are split into train, validation, calibration and held-out by their names, so the splits never overlap and
    are the same on every machine.
    """

    Options = TextOptions
    Sample = RowSample

    def describe(self, request: DataRequest) -> DataInfo:
        options: TextOptions = request.options
        length = _length(request.sample)
        _check_length(length, request.facts)
        corpus = find_corpus(request.ref, options.extensions, options.read_as)
        return described(
            corpus,
            options,
            included=request.ref in INCLUDED,
            reading=[options.field, options.separator, options.read_as],
            tensors={key: TensorInfo("BL", {"L": length}) for key in ("input_ids", "segment_ids")},
            facts={"length": length},
            warnings=list(_left_out(corpus, request.ref)),
        )

    def units_per_sample(self, sample: Mapping[str, Any]) -> int:
        return _length(sample)

    def sizes(self, sample: Mapping[str, Any]) -> Mapping[str, int]:
        return {"L": _length(sample)}

    def open(self, request: DataRequest) -> BatchStream:
        """See :meth:`xarch.DataProvider.open`.

        Raises:
            UsageError: the sample options are invalid, there is no tokenizer or no text, or rows exceed the teacher's
                maximum context.
        """
        options: TextOptions = request.options
        check_split(request, "text data has")
        length = _length(request.sample)
        facts = request.facts or getattr(request.teacher, "facts", None)
        _check_length(length, facts)
        library = Library(find_corpus(request.ref, options.extensions, options.read_as), options, request.split)
        encoder = Encoder(
            request.processors.get("teacher"), options.tokenizer, options.separator, getattr(facts, "vocab", None)
        )
        if request.split == "train":
            return TrainStream(library, encoder, samples=request.samples, length=length, seed=request.seed)
        return FixedStream(library, encoder, samples=request.samples, length=length)


def _left_out(corpus: Corpus, ref: str) -> Iterator[str]:
    if corpus.left_out:
        counted = ", ".join(f"{count} {suffix}" for suffix, count in sorted(corpus.left_out.items()))
        yield f"text:{ref} also holds files that are not read ({counted}); see data.options.extensions"


def _check_length(length: int, facts: Any) -> None:
    check_context(length, facts, "samples have", "`--set data.sample.length={most}`")


def _length(sample: Mapping[str, Any]) -> int:
    return validated(RowSample, sample, "sample").length
