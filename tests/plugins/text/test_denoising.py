"""Running text as pairs: nothing of a row is lost or said twice, and spans are as many and as long as asked for."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from xarch import DataRequest, UsageError
from xarch_text.denoising import UL2, DenoisingData, denoised
from xarch_text.provider import TextData

MARKER = 999


@pytest.fixture
def request_for(tmp_path: Path) -> Any:
    text = " ".join(f"Sentence {i} says {i * 7919 % 10007}." for i in range(400))
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")

    def make(split: str = "train", sample: dict[str, int] | None = None, **options: Any) -> DataRequest:
        chosen = DenoisingData.Options(tokenizer="bytes", **options)
        given = {"source": 24, "target": 40} if sample is None else sample
        return DataRequest(str(tmp_path / "text.txt"), chosen, split=split, samples=3, sample=given, seed=5)

    return make


def test_a_prefix_and_its_end_are_a_row_of_the_text_and_what_the_teacher_reads(request_for: Any) -> None:
    request = request_for()
    batch = next(DenoisingData().open(request))
    text = next(TextData().open(DataRequest(request.ref, request.options, samples=3, sample={"length": 64}, seed=5)))
    assert batch["input_ids"].shape == (3, 23)
    assert batch["decoder_input_ids"].shape == (3, 41)
    assert batch["input_ids@teacher"].tolist() == text["input_ids"].tolist()
    assert batch["prefix_mask"].tolist() == batch["answer_mask"].tolist()
    assert batch["answer_mask"].sum(1).tolist() == [40.0] * 3
    assert batch.units == 3 * DenoisingData().units_per_sample(request.sample)


@pytest.mark.parametrize("denoiser", UL2, ids=str)
def test_a_row_is_restored_from_source_and_spans(denoiser: Any) -> None:
    ids, lost, spans = list(range(512)), 0, 0
    for seed in range(8):
        made = denoised(ids, denoiser, MARKER, random.Random(seed))
        read, target = [*made.source, made.decoder[0]], made.decoder[1:]
        if denoiser.span is None:
            assert [*read, *target] == ids
            lost += len(target)
            continue
        pieces, now = list[list[int]](), -1
        for token in target:
            if token == MARKER:
                pieces.append([])
                now += 1
            else:
                pieces[now].append(token)
        assert all(pieces), "a span of no tokens"
        assert read.count(MARKER) == len(pieces)
        filled = [t for token in read for t in (pieces.pop(0) if token == MARKER else [token])]
        assert filled == ids
        lost, spans = lost + len(target) - now - 1, spans + now + 1
    assert lost / (8 * 512) == pytest.approx(denoiser.share, abs=0.01)
    if denoiser.span is not None:
        assert lost / spans == pytest.approx(denoiser.span, rel=0.25)


def test_a_mixture_is_half_prefixes_and_goes_on_where_it_stopped(request_for: Any) -> None:
    request = request_for(mixture="ul2", marker=0)
    stream, natural, longest = DenoisingData().open(request), [], 0
    told = DenoisingData().describe(request).facts["length"]
    for _ in range(40):
        batch = next(stream)
        natural += [bool(row.any()) for row in batch["prefix_mask"]]
        longest = max(longest, int((batch["segment_ids@teacher"] == 1).sum(1).max()))
    assert 0.35 < sum(natural) / len(natural) < 0.65
    assert longest <= told
    again = DenoisingData().open(request)
    again.load_state_dict(stream.state_dict())
    for _ in range(3):
        one, two = next(stream), next(again)
        assert all(one[key].tolist() == two[key].tolist() for key in one.tensors)


def test_markers_and_lengths_that_do_not_fit_are_refused(request_for: Any) -> None:
    with pytest.raises(ValueError, match="ul2 needs `marker`"):
        DenoisingData.Options(mixture="ul2")
    with pytest.raises(UsageError, match="no token '<span>'"):
        DenoisingData().open(request_for(mixture="ul2", marker="<span>"))
