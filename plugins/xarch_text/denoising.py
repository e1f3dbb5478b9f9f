"""Data provider ``denoising``: running text as pairs, an encoder's part and what a decoder makes of it.

A row of text becomes a pair by a denoiser of UL2 (arXiv 2205.05131): it goes on after a prefix, or spans of it are
replaced by a marker and written after it, each behind a marker.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pydantic import Field, model_validator

from xarch import Batch, BatchStream, DataInfo, DataProvider, DataRequest, Options, TensorInfo, UsageError, validated
from xarch_text.options import TextOptions
from xarch_text.pair_encoding import Tokens, pair_sizes, to_batch
from xarch_text.provider import TextData
from xarch_text.request import check_context

MOST = 1 << 20


@dataclass(frozen=True)
class Denoiser:
    """A way of making a pair of a row.

    Attributes:
        share: of the tokens that are left out of the source.
        span: their mean number in one place; None: they are the row's end, which needs no marker.
    """

    share: float
    span: int | None = None


UL2 = (*(Denoiser(share, span) for span, share in ((3, 0.15), (12, 0.5), (32, 0.15), (32, 0.5))), Denoiser(0.75))
WEIGHTS = (1, 1, 1, 1, 4)
"""The mixture of T5Gemma 2 (arXiv 2512.14856)."""


class DenoisingOptions(TextOptions):
    """Options of ``denoising:`` data: those of ``text:``, and how a row becomes a pair."""

    mixture: Literal["prefix", "ul2"] = Field(
        "prefix", description="prefix: the row goes on after `source` tokens; ul2: five denoisers, spans among them"
    )
    marker: str | int | None = Field(
        None, description="token, by name or number, that stands for a span (ul2); one that the text does not use"
    )

    @model_validator(mode="after")
    def _spans_are_marked(self) -> DenoisingOptions:
        if self.mixture == "ul2" and self.marker is None:
            raise ValueError("ul2 needs `marker`, a token of the tokenizer that the text does not use")
        return self


class DenoisingSample(Options):
    """Form of one pair."""

    source: int = Field(
        256, strict=True, ge=2, le=MOST, description="tokens of the prefix, the decoder's first included"
    )
    target: int = Field(256, strict=True, ge=2, le=MOST, description="further tokens of the row")


class DenoisingData(DataProvider):
    """Rows of running text as pairs, for encoder-decoders: prefix-LM halves, or a mixture of denoisers.

    References, files and splits are those of ``text:``; a row is one text, whatever documents are in it. A sample is
    ``{"source": 256, "target": 256}``, a row of 512 tokens; batches are those of ``pairs:``, and ``prefix_mask`` [B, T]
    is ``answer_mask`` where the pair is a prefix and its end, which is what a decoder as the teacher can judge. Units
    are tokens of rows.
    """

    Options = DenoisingOptions
    Sample = DenoisingSample

    def describe(self, request: DataRequest) -> DataInfo:
        told = TextData().describe(_as_text(request))
        sample = validated(DenoisingSample, request.sample, "sample")
        options: DenoisingOptions = request.options
        longest = _longest(sample, options.mixture)
        remedy = "lower `data.sample.source` or `data.sample.target`"
        check_context(longest, request.facts, "pairs and their markers have up to", remedy)
        tensors = {key: TensorInfo("BS", dtype="int64") for key in ("input_ids", "attention_mask")}
        tensors["decoder_input_ids"] = TensorInfo("BT")
        tensors |= {key: TensorInfo("BT", dtype="float32") for key in ("answer_mask", "prefix_mask")}
        if _joined(request.facts):
            tensors |= {key: TensorInfo("BL") for key in ("input_ids@teacher", "segment_ids@teacher")}
        facts = {"length": longest, "source": sample.source, "target": sample.target}
        return replace(told, tensors=tensors, facts=facts)

    def units_per_sample(self, sample: Mapping[str, Any]) -> int:
        chosen = validated(DenoisingSample, sample, "sample")
        return chosen.source + chosen.target

    def sizes(self, sample: Mapping[str, Any]) -> Mapping[str, int]:
        chosen = validated(DenoisingSample, sample, "sample")
        return pair_sizes(chosen.source, chosen.target)

    def open(self, request: DataRequest) -> BatchStream:
        """See :meth:`xarch.DataProvider.open`.

        Raises:
            UsageError: as ``text:``, or the tokenizer does not have the marker.
        """
        options: DenoisingOptions = request.options
        sample = validated(DenoisingSample, request.sample, "sample")
        facts = request.facts or getattr(request.teacher, "facts", None)
        marker = _marker(options.marker, request.processors.get("teacher"), getattr(facts, "vocab", None))
        given = TextData().open(_as_text(request))
        return DenoisedStream(given, options.mixture, sample.source, marker, seed=request.seed, joined=_joined(facts))


class DenoisedStream(BatchStream):
    """Pairs of the rows of another stream; what is left out of a row depends on its number and the seed.

    Args:
        rows: of text.
        source: tokens of a prefix.
        marker: stands for a span; None if there are none.
        joined: whether batches also hold what a decoder reads.
    """

    def __init__(
        self, rows: BatchStream, mixture: str, source: int, marker: int | None, *, seed: int, joined: bool
    ) -> None:
        self.rows, self.mixture, self.source, self.marker = rows, mixture, source, marker
        self.seed, self.joined, self._given = seed, joined, 0

    def __next__(self) -> Batch:
        batch = next(self.rows)
        pairs, natural = [], []
        for ids in batch["input_ids"].tolist():
            draw = random.Random(f"{self.seed} {self._given}")
            denoiser = Denoiser(1 - self.source / len(ids))
            if self.mixture == "ul2":
                [denoiser] = draw.choices(UL2, WEIGHTS)
            pairs.append(denoised(ids, denoiser, self.marker, draw))
            natural.append(denoiser.span is None)
            self._given += 1
        made = to_batch(pairs, batch.units, joined=self.joined)
        return made.replace(prefix_mask=made["answer_mask"] * torch.tensor(natural)[:, None])

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows.state_dict(), "given": self._given}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rows.load_state_dict(state["rows"])
        self._given = state["given"]

    def counters(self) -> dict[str, int]:
        return self.rows.counters()


def denoised(ids: Sequence[int], denoiser: Denoiser, marker: int | None, draw: random.Random) -> Tokens:
    """Return a row as a pair; source and decoder tokens together are the row, or the row with markers for spans and
    then the spans, each behind a marker."""
    if denoiser.span is None or marker is None:
        cut = min(max(2, round(len(ids) * (1 - denoiser.share))), len(ids) - 1)
        return Tokens(list(ids[: cut - 1]), list(ids[cut - 1 :]))
    source, target, place = list[int](), list[int](), 0
    for start, stop in _spans(len(ids), denoiser, draw):
        source += [*ids[place:start], marker]
        target += [marker, *ids[start:stop]]
        place = stop
    source += ids[place:]
    return Tokens(source[:-1], [source[-1], *target])


def _spans(length: int, denoiser: Denoiser, draw: random.Random) -> Iterator[tuple[int, int]]:
    """Yield where spans begin and end, in order: as many tokens as the denoiser leaves out, apart from one another."""
    assert denoiser.span is not None
    noise = min(max(1, round(length * denoiser.share)), length - 2)
    count = min(max(1, round(noise / denoiser.span)), noise, length - noise)
    places = 0
    for kept, left_out in zip(_parts(length - noise, count, draw), _parts(noise, count, draw), strict=True):
        places += kept
        yield places, places + left_out
        places += left_out


def _parts(total: int, count: int, draw: random.Random) -> list[int]:
    """Return ``count`` whole numbers of at least 1 with the given sum, every division alike."""
    cuts = sorted(draw.sample(range(1, total), count - 1))
    return [b - a for a, b in zip([0, *cuts], [*cuts, total], strict=True)]


def _longest(sample: DenoisingSample, mixture: str) -> int:
    """Return the most tokens of source and target together: a marker in each for every span."""
    row = sample.source + sample.target
    if mixture == "prefix":
        return row
    return row + 2 * max(math.ceil(row * d.share / d.span) for d in UL2 if d.span is not None)


def _as_text(request: DataRequest) -> DataRequest:
    sample = validated(DenoisingSample, request.sample, "sample")
    return replace(request, sample={"length": sample.source + sample.target})


def _joined(facts: Any) -> bool:
    return not hasattr(facts, "encoder")


def _marker(marker: str | int | None, tokenizer: Any, vocab: int | None) -> int | None:
    if isinstance(marker, str):
        found = None if tokenizer is None else tokenizer.convert_tokens_to_ids(marker)
        if found is None or found == tokenizer.unk_token_id:
            raise UsageError(
                f"data.options.marker: the tokenizer has no token {marker!r}",
                "name one of its special tokens, or give its number",
            )
        marker = int(found)
    if marker is not None and vocab is not None and not 0 <= marker < vocab:
        raise UsageError(f"data.options.marker: token {marker} of a vocabulary of {vocab}")
    return marker
