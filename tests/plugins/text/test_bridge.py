"""Two tokenizers that cut a text differently meet at the characters where both end a token, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.plugins.text.two_tokenizers import byte_level, pieces
from xarch import DataRequest, UsageError
from xarch_text.bridge import MASK, OWN, THEIRS, WORDS, aligned, common_words, spelled
from xarch_text.pairs import PairData, PairOptions


@pytest.fixture(scope="module")
def both() -> tuple[Any, Any]:
    return byte_level(), pieces()


def test_they_meet_where_both_have_read_the_same_text(both: tuple[Any, Any]) -> None:
    own, theirs = both
    text = "the naïve apples"
    one, two = spelled(own, text), spelled(theirs, text)
    assert one.ids != two.ids
    pairs = aligned(one.ends, two.ends)
    assert pairs[0] == (0, 0)
    assert pairs[-1] == (len(one.ids), len(two.ids))
    for t, k in pairs:
        assert own.decode(one.ids[:t]) == theirs.decode(two.ids[:k]) or not t
    whole = {own.decode(one.ids[:t]) for t in range(len(one.ids) + 1)} & {
        theirs.decode(two.ids[:k]) for k in range(len(two.ids) + 1)
    }
    assert len(pairs) == len(whole), "a place where they meet is missing"


def test_parts_of_a_character_are_no_meeting_place() -> None:
    # "ï" is two tokens of bytes on one side and one on the other.
    assert aligned([1, 2, 3, 3, 4], [2, 3, 4]) == [(0, 0), (2, 1), (4, 2), (5, 3)]


def test_common_words_stand_for_the_same_text(both: tuple[Any, Any]) -> None:
    own, theirs = both
    words = common_words(own, theirs, len(own))
    found = [(own.decode([i]), theirs.convert_ids_to_tokens(int(j))) for i, j in enumerate(words) if j >= 0]
    plain = [(a, b.replace("▁", " ")) for a, b in found if b != "</s>"]
    assert len(plain) > 5
    assert all(a == b for a, b in plain)
    assert int(words[own.eos_token_id]) == theirs.eos_token_id


def opened(file: Path, processors: dict[str, Any], **options: Any) -> Any:
    lines = [json.dumps({"source": f"Count {i} foxes", "target": f"the naïve fox has {i} apples"}) for i in range(60)]
    file.write_text("\n".join(lines) + "\n")
    asked = DataRequest(
        str(file), PairOptions(**options), samples=5, sample={"source": 40, "target": 24}, processors=processors
    )
    return PairData(), asked


def test_batches_have_rows_and_places_of_the_other_teacher(both: tuple[Any, Any], tmp_path: Path) -> None:
    own, theirs = both
    provider, asked = opened(tmp_path / "p.jsonl", {"teacher": own, "student": own, "big": theirs}, bridge="big")
    declared, batch = provider.describe(asked).tensors, next(provider.open(asked))
    assert {f"input_ids@{side}" for side in ("teacher", "big")} <= declared.keys() <= batch.tensors.keys()
    rows, seen = batch["decoder_input_ids"], batch.seen_by("big", "teacher")
    assert batch[WORDS].shape == (5, len(own))
    for i in range(len(batch)):
        count = int(batch[MASK][i].sum())
        assert count > 3
        assert not batch[MASK][i, count:].any()
        first = int(batch[THEIRS][i, 0])
        for t, at in zip(batch[OWN][i, :count].tolist(), batch[THEIRS][i, :count].tolist(), strict=True):
            mine, other = rows[i, 1 : t + 1].tolist(), seen["input_ids"][i, first + 1 : at + 1].tolist()
            assert own.decode(mine) == theirs.decode(other)
            assert seen["segment_ids"][i, at] == 1
        last = int(batch[OWN][i, count - 1]), int(batch[THEIRS][i, count - 1])
        # Where both have read the whole answer, both predict its end.
        assert rows[i, last[0] + 1] == own.eos_token_id
        assert seen["input_ids"][i, last[1] + 1] == theirs.eos_token_id


def test_what_is_missing_is_named(both: tuple[Any, Any], tmp_path: Path) -> None:
    own, _ = both
    provider, asked = opened(tmp_path / "p.jsonl", {"teacher": own, "student": own}, bridge="big")
    with pytest.raises(UsageError, match="there is no teacher 'big' with a tokenizer"):
        provider.open(asked)
    with pytest.raises(UsageError, match="no token in common"):
        common_words(own, _Strange(), len(own))


class _Strange:
    """A tokenizer whose tokens nobody else has."""

    all_special_ids: tuple[int, ...] = ()
    eos_token_id = None

    def get_vocab(self) -> dict[str, int]:
        return {"▁qqqq": 0}


def test_nothing_is_drawn(both: tuple[Any, Any]) -> None:
    state = torch.get_rng_state()
    common_words(*both, len(both[0]))
    assert torch.equal(state, torch.get_rng_state())
