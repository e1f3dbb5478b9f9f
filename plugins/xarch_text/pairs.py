"""Data provider ``pairs``: a source and a target text each, for models that read one and write the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator

from xarch import (
    BatchStream,
    DataInfo,
    DataProvider,
    DataRequest,
    Options,
    TensorInfo,
    UsageError,
    validated,
)
from xarch_text.bridge import BridgedEncoder, bridge_tensors
from xarch_text.corpus import Corpus, find_corpus
from xarch_text.docstrings import INCLUDED_PAIRS
from xarch_text.encoding import Encoder
from xarch_text.options import ReadingOptions
from xarch_text.pair_encoding import PairEncoder, pair_sizes
from xarch_text.pair_library import PairLibrary
from xarch_text.pair_streams import FixedPairs, TrainPairs
from xarch_text.request import check_context, check_split, described

RECORDS = [".jsonl", ".ndjson", ".json", ".parquet"]

MOST = 1 << 20

BYTES = 256
"""Values of a byte; a teacher that reads bytes may have further tokens for beginnings and ends."""


class PairOptions(ReadingOptions):
    """Options of ``pairs:`` data."""

    extensions: list[str] = Field(
        default_factory=lambda: list(RECORDS), description="extensions of files to read from a folder, also with .gz"
    )
    read_as: Literal["records"] = Field("records", description="pairs are records of JSON or Parquet")
    source: str = Field("source", min_length=1, description="key of the source text (`a.b` for nested), or column")
    target: str = Field("target", min_length=1, description="key of the target text, or column")
    prompt: str = Field("{source}\n", description="what the model reads; {source} stands for the source")
    joined: bool | None = Field(
        None,
        description="also make rows of source and target, which a decoder reads as a teacher; default: unless the "
        "teacher has an encoder of its own",
    )

    bridge: str = Field(
        "",
        description="name of a further teacher with another tokenizer: rows for it, and where the two tokenizers meet",
    )

    @field_validator("prompt")
    @classmethod
    def _names_the_source(cls, prompt: str) -> str:
        if prompt.count("{source}") != 1:
            raise ValueError("should contain {source} once, e.g. '{source}\\n'")
        return prompt


class PairSample(Options):
    """Form of one pair."""

    source: int = Field(256, strict=True, ge=2, le=MOST, description="most tokens of a prompt; longer ones are cut")
    target: int = Field(64, strict=True, ge=1, le=MOST, description="most tokens of an answer; longer ones are cut")


class PairData(DataProvider):
    """Pairs of texts, from JSON lines, JSON arrays and Parquet.

    References: ``pairs:python-docstrings`` (the functions of the running Python's standard library and their
    docstrings), ``pairs:FILE``, ``pairs:FOLDER`` and ``'pairs:GLOB'``.

    A sample is ``{"source": 256, "target": 64}`` tokens at most. Batches are padded to their longest pair: S source
    tokens, T decoder tokens. ``input_ids``, ``attention_mask`` [B, S]; ``decoder_input_ids``, ``answer_mask`` [B, T];
    what a decoder reads as a teacher is in views [B, S + T]. Units are tokens, pads of the longest sample included.

    Pairs are split by file name and number, so the splits never overlap and are the same on every machine.
    """

    Options = PairOptions
    Sample = PairSample

    def describe(self, request: DataRequest) -> DataInfo:
        options: PairOptions = request.options
        sample = validated(PairSample, request.sample, "sample")
        _check_length(sample, request.facts)
        tensors = {
            "input_ids": TensorInfo("BS", dtype="int64"),
            "attention_mask": TensorInfo("BS", dtype="int64"),
            "decoder_input_ids": TensorInfo("BT"),
            "answer_mask": TensorInfo("BT", dtype="float32"),
        }
        if _joined(options, request.facts):
            tensors |= {key: TensorInfo("BL") for key in ("input_ids@teacher", "segment_ids@teacher")}
        if options.bridge:
            tensors |= bridge_tensors(options.bridge)
        return described(
            _corpus(request),
            options,
            included=request.ref in INCLUDED_PAIRS,
            reading=[options.source, options.target, options.prompt],
            tensors=tensors,
            facts={"length": sample.source + sample.target, "source": sample.source, "target": sample.target},
        )

    def units_per_sample(self, sample: Mapping[str, Any]) -> int:
        chosen = validated(PairSample, sample, "sample")
        return chosen.source + chosen.target

    def sizes(self, sample: Mapping[str, Any]) -> Mapping[str, int]:
        chosen = validated(PairSample, sample, "sample")
        return pair_sizes(chosen.source, chosen.target)

    def open(self, request: DataRequest) -> BatchStream:
        """See :meth:`xarch.DataProvider.open`.

        Raises:
            UsageError: the options are invalid, there is no tokenizer or no pair, or a pair exceeds the teacher's
                maximum context.
        """
        options: PairOptions = request.options
        check_split(request, "pairs have")
        sample = validated(PairSample, request.sample, "sample")
        facts = request.facts or getattr(request.teacher, "facts", None)
        _check_length(sample, facts)
        library = PairLibrary(_corpus(request), options, request.split, source=options.source, target=options.target)
        vocab = getattr(facts, "vocab", None)
        text = Encoder(request.processors.get("teacher"), options.tokenizer, "eos", vocab)
        ends = [token for token in getattr(facts, "eos", ()) if options.tokenizer == "bytes" and token >= BYTES]
        sizes = {"source": sample.source, "target": sample.target}
        own = PairEncoder(text, options.prompt, end=ends[0] if ends else None, **sizes)
        encoder = own if not options.bridge else _bridged(own, request, sizes, vocab)
        given = {"samples": request.samples, "units": sample.source + sample.target, "joined": _joined(options, facts)}
        if request.split == "train":
            return TrainPairs(library, encoder, seed=request.seed, **given)
        return FixedPairs(library, encoder, **given)


def _bridged(own: PairEncoder, request: DataRequest, sizes: Mapping[str, int], vocab: int | None) -> BridgedEncoder:
    name: str = request.options.bridge
    if request.processors.get(name) is None:
        raise UsageError(
            f"data.options.bridge: there is no teacher {name!r} with a tokenizer", f"--set teachers.{name}=hf:FOLDER"
        )
    other = Encoder(request.processors[name], "teacher", "eos", None)
    return BridgedEncoder(own, PairEncoder(other, request.options.prompt, end=None, **sizes), name, vocab)


def _corpus(request: DataRequest) -> Corpus:
    options: PairOptions = request.options
    return find_corpus(request.ref, options.extensions, options.read_as, INCLUDED_PAIRS)


def _joined(options: PairOptions, facts: Any) -> bool:
    return not hasattr(facts, "encoder") if options.joined is None else options.joined


def _check_length(sample: PairSample, facts: Any) -> None:
    remedy = "lower `data.sample.source` or `data.sample.target`"
    check_context(sample.source + sample.target, facts, "pairs have up to", remedy)
