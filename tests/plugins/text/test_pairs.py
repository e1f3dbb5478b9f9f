"""Pairs: what both sides read is aligned, padding changes no token, and a resumed stream goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xarch import Batch, DataRequest, UsageError
from xarch_text.pair_encoding import Tokens, to_batch
from xarch_text.pairs import PairData


@pytest.fixture
def open_pairs(tmp_path: Path, tokenizer: Any) -> Callable[..., Any]:
    """Opens pairs written as records."""

    def make(records: list[Any], split: str = "train", samples: int = 2, **options: Any) -> Any:
        file = tmp_path / "pairs.jsonl"
        file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        sample = {"source": options.pop("longest", 64), "target": options.pop("answer", 16)}
        chosen = PairData.Options(**options)
        provider = PairData()
        request = DataRequest(
            str(file), chosen, split=split, samples=samples, sample=sample, processors={"teacher": tokenizer}
        )
        return provider.open(request)

    return make


RECORDS = [{"source": f"question {i} of many", "target": f"answer {i}"} for i in range(300)]


def rows(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """Source and decoder tokens of each pair without pads."""
    return [
        (
            batch["input_ids"][i][batch["attention_mask"][i] == 1].tolist(),
            batch["decoder_input_ids"][i][: int(batch["answer_mask"][i].sum()) + 1].tolist(),
        )
        for i in range(len(batch))
    ]


def test_the_decoder_continues_the_prompt_with_the_answer(open_pairs: Callable[..., Any], tokenizer: Any) -> None:
    for source, decoder in rows(next(open_pairs(RECORDS, prompt="Q: {source}\nA:"))):
        text = tokenizer.decode(source + decoder[:1])
        assert text.startswith("Q: question ")
        assert text.endswith(" of many\nA:")
        number = text.split()[2]
        assert tokenizer.decode(decoder[1:]) == f"answer {number}<|end|>"


def test_the_teacher_reads_source_and_decoder_tokens_as_one_row() -> None:
    made = to_batch([Tokens([5, 6, 7], [8, 9]), Tokens([1], [2, 3, 4])], 2, joined=True)
    assert made["input_ids@teacher"].tolist() == [[5, 6, 7, 8, 9, 0], [0, 0, 1, 2, 3, 4]]
    assert made["segment_ids@teacher"].tolist() == [[1, 1, 1, 1, 1, 2], [0, 0, 1, 1, 1, 1]]
    assert made["answer_mask"].tolist() == [[1, 0, 0], [1, 1, 0]]
    assert made["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_a_token_with_the_id_of_a_pad_counts() -> None:
    """E2: masks come from lengths; an unknown word in the answer may have the pad's id."""
    made = to_batch([Tokens([0, 0], [0, 0, 0]), Tokens([1], [2, 3])], 2, joined=False)
    assert made["answer_mask"].tolist() == [[1, 1, 0], [1, 0, 0]]
    assert made["attention_mask"].tolist() == [[1, 1], [1, 0]]


def test_a_long_source_keeps_what_follows_it_in_the_prompt(open_pairs: Callable[..., Any], tokenizer: Any) -> None:
    long = [{"source": "word " * 200, "target": "yes no " * 40}] * 60
    stream = open_pairs(long, prompt="{source} <end>", longest=24, answer=5)
    [(source, decoder), _] = rows(next(stream))
    assert len(source) + 1 == 24
    assert len(decoder) == 6
    assert tokenizer.decode(source + decoder[:1]).endswith("<end>")
    assert stream.counters()["cut_sources"] == 2


def test_special_tokens_are_parsed_in_the_prompt_and_never_in_the_texts(open_pairs: Callable[..., Any]) -> None:
    """``<|end|>`` is token 0 of this tokenizer."""
    marked = [{"source": "a <|end|> b", "target": "c <|end|> d"}] * 60
    [(source, decoder), _] = rows(next(open_pairs(marked, prompt="<|end|>{source}<|end|>")))
    assert (source[0], source.count(0)) == (0, 1)
    assert (decoder[0], decoder[-1], decoder.count(0)) == (0, 0, 2)


def test_a_prompt_without_room_for_a_source_is_refused(open_pairs: Callable[..., Any]) -> None:
    with pytest.raises(UsageError, match="without the source"):
        open_pairs(RECORDS, prompt="one two three four five six seven {source}", longest=6)


def test_a_damaged_record_is_counted_and_the_sides_stay_together(open_pairs: Callable[..., Any]) -> None:
    damaged = [*RECORDS, {"source": "no target"}, {"source": 7, "target": "no source"}]
    stream = open_pairs(damaged, split="heldout", heldout=0.9, validation=0.0, calibration=0.0)
    seen = [row for batch in stream for row in rows(batch)]
    assert stream.counters()["skipped_no_text"] == 2
    assert len(seen) == stream.counters()["read"] > 200


def test_a_prompt_without_the_source_is_refused() -> None:
    with pytest.raises(ValueError, match="should contain"):
        PairData.Options(prompt="no place")


def test_pairs_longer_than_the_teachers_context_are_refused(open_pairs: Callable[..., Any], tmp_path: Path) -> None:
    open_pairs(RECORDS)

    class Facts:
        max_positions = 60

    request = DataRequest(str(tmp_path / "pairs.jsonl"), PairData.Options(), sample={"source": 50}, facts=Facts())
    with pytest.raises(UsageError, match="at most 60"):
        PairData().describe(request)


def test_functions_and_docstrings_of_the_standard_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On one module: the whole library takes seconds."""
    from xarch_text import docstrings

    module = tmp_path / "one.py"
    module.write_text(
        'class A:\n    def f(self):\n        """Return the first\n        of them.\n\n        More."""\n'
        "        return 1\n"
    )
    monkeypatch.setattr(docstrings, "stdlib", lambda: iter([(module, "one.py")]))
    monkeypatch.setenv("XARCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    [(path, _)] = docstrings.docstrings()
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert found == [{"source": "def f(self):\n    return 1", "target": "Return the first of them."}]
