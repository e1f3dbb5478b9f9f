"""Text that a person sees as it is made: the same as decoding it at once, up to the end token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.plugins.decoder.decoder_models import make_student, tiny_facts
from xarch import UsageError
from xarch_decoder.family import TextGeneration
from xarch_decoder.generation import continue_greedily, text_pieces

END = 256


@pytest.fixture(scope="module")
def student() -> Any:
    torch.manual_seed(0)
    made = make_student(tiny_facts(vocab=257, eos=(END,)))
    with torch.no_grad():
        for parameter in made.module.parameters():
            parameter.normal_(0, 0.3)
    return made


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, so that most of what a random model says are parts of characters."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(letters)} | {"</s>": END}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")


def pieces(student: Any, tokenizer: Any, prompt: str = "a word", **options: Any) -> list[str]:
    return list(text_pieces(student, tokenizer, prompt, TextGeneration(**options)))


def test_pieces_join_to_the_text_decoded_at_once(student: Any, tokenizer: Any) -> None:
    known: list[int] = []

    class Notes:
        """The tokenizer, noting what it decodes."""

        eos_token_id = END
        encode = staticmethod(tokenizer.encode)

        @staticmethod
        def decode(ids: list[int]) -> str:
            known[:] = ids
            return str(tokenizer.decode(ids))

    found = pieces(student, Notes, tokens=40, temperature=1.5, seed=3)
    assert "" in found[1:], "no character came in parts, so this proves nothing"
    assert len(found) == 1 + len(known) > 20
    assert "".join(found) == "a word" + tokenizer.decode(known)


def test_without_a_temperature_it_is_the_likeliest(student: Any, tokenizer: Any) -> None:
    prompt = torch.tensor([tokenizer.encode("a word")])
    wanted = continue_greedily(student, prompt, 12)[0].tolist()
    assert END not in wanted
    assert "".join(pieces(student, tokenizer, tokens=12)) == "a word" + tokenizer.decode(wanted)


def test_draws_follow_the_seed_and_the_narrowest_choice_is_greedy(student: Any, tokenizer: Any) -> None:
    drawn = [pieces(student, tokenizer, tokens=20, temperature=1.0, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    narrow = pieces(student, tokenizer, tokens=20, temperature=1.0, top_p=1e-6, seed=5)
    assert narrow == pieces(student, tokenizer, tokens=20)


def test_the_end_token_ends_it(student: Any, tokenizer: Any) -> None:
    prompt = torch.tensor([tokenizer.encode("a word")])
    third = int(continue_greedily(student, prompt, 3)[0, 2])
    ended = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token=tokenizer.decode([third]))
    ended.eos_token_id = third
    assert len(pieces(student, ended, tokens=12)) <= 1 + 2


def test_what_cannot_be_asked_is_an_error(student: Any, tokenizer: Any) -> None:
    with pytest.raises(UsageError, match="no tokenizer"):
        pieces(student, None)
    with pytest.raises(UsageError, match="no tokens"):
        pieces(student, tokenizer, "")
    with pytest.raises(UsageError, match="no chat template"):
        pieces(student, tokenizer, chat=True)


def test_a_question_is_put_in_the_template(student: Any, tokenizer: Any) -> None:
    asked = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="</s>")
    asked.chat_template = "Q: {{ messages[0]['content'] }} A:"
    found = pieces(student, asked, "why", tokens=6, chat=True)
    assert found == ["", *pieces(student, tokenizer, "Q: why A:", tokens=6)[1:]]
