"""GGUF files: how text is split, scaled positions, tokens that end a text; what is not known is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFWriter

from tests.plugins.hf.hf_models import batch, random_model, relative
from tests.plugins.hf.test_hf_gguf import load, write_gguf
from xarch import UsageError
from xarch_hf.gguf_source import GGUFSource
from xarch_hf.gguf_tokenizer import SPLITTINGS
from xarch_hf.source import DecoderOptions

MERGES = ["1 2", "3 4", "12 34", "Ġ Ġ", "Ċ ĠĠ", "ĊĠĠ ĠĠ", "ĠĠ ĠĠ", "Ġ 1", "Ċ Ċ", "' S", "T '", "o n"]
BOS, EOS, EOT, EOM = 300, 301, 302, 303


def alphabet() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def write(path: Path, pre: str | None, **tokenizer: Any) -> Path:
    """A small Llama whose vocabulary holds every byte, the merges above and one word without a merge."""
    tokens = [*alphabet(), *(m.replace(" ", "") for m in MERGES), "Ġworld"]
    tokens += [f"[PAD{i}]" for i in range(len(tokens), BOS)] + ["<b>", "<e>", "<t>", "<m>"]
    types = [3 if i >= BOS else 5 if t.startswith("[PAD") else 1 for i, t in enumerate(tokens)]
    model: Any = random_model("llama", vocab_size=len(tokens))

    def vocabulary(writer: GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        if pre is not None:
            writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokens)
        writer.add_token_types(types)
        writer.add_token_merges(MERGES)
        writer.add_bos_token_id(BOS)
        writer.add_eos_token_id(EOS)
        for key, value in tokenizer.items():
            {bool: writer.add_bool, int: writer.add_uint32}[type(value)](f"tokenizer.ggml.{key}", value)

    return write_gguf(model, path, vocabulary=vocabulary)


def split(file: Path, text: str) -> list[str]:
    made = load(file).processor()
    return list(made.convert_ids_to_tokens(made(text, add_special_tokens=False)["input_ids"]))


INDENTED, NUMBER, BLANK_NUMBER, LINES, CAPITALS = "\n    1", "1234", " 1", "a\n\nb", "T'S"
EXPECTED = {
    # Pieces of an indented line, a number, a number behind a blank, an empty line, capitals. Blanks before a word:
    # GPT-2's pattern leaves the last one to the word, and takes it from a digit only where digits do not come first.
    "gpt-2": (["ĊĠĠ", "Ġ", "Ġ1"], ["1234"], ["Ġ1"], ["a", "Ċ", "Ċ", "b"], ["T", "'", "S"]),
    "smollm": (["ĊĠĠĠĠ", "1"], ["1", "2", "3", "4"], ["Ġ", "1"], ["a", "Ċ", "Ċ", "b"], ["T", "'", "S"]),
    # Line ends are pieces of their own with what stands before them, digits come by three or one, 's in any case.
    "llama-bpe": (["Ċ", "ĠĠ", "Ġ", "Ġ", "1"], ["12", "3", "4"], ["Ġ", "1"], ["a", "ĊĊ", "b"], ["T", "'S"]),
    "qwen2": (["Ċ", "ĠĠ", "Ġ", "Ġ", "1"], ["1", "2", "3", "4"], ["Ġ", "1"], ["a", "ĊĊ", "b"], ["T", "'S"]),
}


@pytest.mark.parametrize("pre", EXPECTED)
def test_text_is_split_as_the_file_says(tmp_path: Path, pre: str) -> None:
    """h04: by the rules that llama.cpp and the tokenizers of these families share."""
    file = write(tmp_path / "m.gguf", pre)
    seen = tuple(split(file, text) for text in (INDENTED, NUMBER, BLANK_NUMBER, LINES, CAPITALS))
    assert seen == EXPECTED[pre]


@pytest.mark.parametrize(("pre", "whole"), [("llama-bpe", True), ("tekken", True), ("smollm", False), ("gpt-2", False)])
def test_a_word_that_is_a_token_is_taken_whole_where_the_family_does(tmp_path: Path, pre: str, whole: bool) -> None:
    """h04: Llama 3 and Tekken look a piece up before they merge."""
    assert (split(write(tmp_path / "m.gguf", pre), " world") == ["Ġworld"]) == whole


def test_accents_are_composed_where_the_family_does(tmp_path: Path) -> None:
    qwen = write(tmp_path / "q.gguf", "qwen2")
    assert split(qwen, "e\u0301") == split(qwen, "\u00e9")
    other = write(tmp_path / "s.gguf", "smollm")
    assert split(other, "e\u0301") != split(other, "\u00e9")


@pytest.mark.parametrize(
    ("pre", "stated", "bos"),
    [
        ("llama-bpe", {}, True),
        ("llama-bpe", {"add_bos_token": False}, False),
        ("smollm", {}, False),
        ("smollm", {"add_bos_token": True}, True),
    ],
)
def test_texts_begin_as_the_file_says(tmp_path: Path, pre: str, stated: dict[str, Any], bos: bool) -> None:
    ids = load(write(tmp_path / "m.gguf", pre, **stated)).processor()("a")["input_ids"]
    assert (ids[0] == BOS) == bos


@pytest.mark.parametrize("pre", ["a-kind-of-2027", "default", "deepseek-coder"])
def test_other_splittings_are_refused_in_the_plan(tmp_path: Path, pre: str) -> None:
    """h04: an unknown name is no GPT-2."""
    file = write(tmp_path / "m.gguf", pre)
    with pytest.raises(UsageError, match=f"tokenizer.ggml.pre is '{pre}'; splittings known here are .*smollm"):
        GGUFSource().describe(str(file), DecoderOptions())
    with pytest.raises(UsageError, match="splittings known here"):
        load(file)


def test_a_file_that_says_nothing_is_read_as_gpt2_and_this_is_said(tmp_path: Path) -> None:
    """h04: a default only where the file says nothing, and not in silence."""
    file = write(tmp_path / "m.gguf", None)
    assert any("read as GPT-2 splits it" in w for w in GGUFSource().describe(str(file), DecoderOptions()).warnings)
    assert split(file, NUMBER) == ["1234"]


def test_keys_of_the_tokenizer_are_known_or_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"tokenizer\.ggml\.escape_whitespaces is not known"):
        GGUFSource().describe(str(write(tmp_path / "a.gguf", "smollm", escape_whitespaces=True)), DecoderOptions())
    known = GGUFSource().describe(str(write(tmp_path / "b.gguf", "smollm", fim_pre_token_id=5)), DecoderOptions())
    assert known.warnings == ()


def test_the_splitting_travels_with_the_student(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    load(write(tmp_path / "m.gguf", "smollm")).save_processor(str(tmp_path / "student"))
    alone = Tokenizer.from_file(str(tmp_path / "student" / "tokenizer.json"))
    assert alone.encode(INDENTED).tokens == EXPECTED["smollm"][0]


@pytest.mark.slow
def test_every_splitting_keeps_every_text(tmp_path: Path) -> None:
    text = "Tab\tand  blanks\r\n\r\n12345 x=½² naïve Ǆ don't WE'LL 日本語 🙂 //\n/*  \n"
    for pre in SPLITTINGS:
        made = load(write(tmp_path / f"{pre}.gguf", pre)).processor()
        assert made.decode(made(text, add_special_tokens=False)["input_ids"]) == text, pre


@torch.no_grad()
@pytest.mark.parametrize(
    ("stated", "wanted"),
    [
        ({}, {}),
        ({"attn_factor": 0.7 / (1 + 0.1 * math.log(4.0))}, {"attention_factor": 0.7}),
        ({"yarn_beta_fast": 16.0, "yarn_beta_slow": 2.0}, {"beta_fast": 16.0, "beta_slow": 2.0}),
        ({"yarn_ext_factor": 1.0}, {}),
    ],
)
def test_yarn_is_read_whole(tmp_path: Path, stated: dict[str, float], wanted: dict[str, float]) -> None:
    """h05: rope.scaling.attn_factor is a factor on transformers' default."""
    rope = {"rope_theta": 10000.0, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    model: Any = random_model("llama", rope_parameters={**rope, **wanted})
    meta: dict[str, Any] = {"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.original_context_length": 16}
    meta |= {f"scaling.{key}": value for key, value in stated.items()}
    file = write_gguf(model, tmp_path / "m.gguf", **{f"rope.{key}": value for key, value in meta.items()})
    data = batch()
    seen = load(file).collect(data, ["logits"])["logits"].full()
    assert relative(seen, model(data["input_ids"]).logits) < 1e-5


def test_values_for_each_layer_are_refused(tmp_path: Path) -> None:
    """h06: a list is not read as one number."""
    file = write_gguf(random_model("llama"), tmp_path / "m.gguf", **{"attention.head_count_kv": [2, 2, 1]})
    with pytest.raises(UsageError, match=r"llama\.attention\.head_count_kv has a value for each layer"):
        GGUFSource().describe(str(file), DecoderOptions())


def test_one_part_of_several_is_refused(tmp_path: Path) -> None:
    def parts(writer: GGUFWriter) -> None:
        writer.add_uint16("split.count", 3)

    file = write_gguf(random_model("llama"), tmp_path / "m-00001-of-00003.gguf", vocabulary=parts)
    with pytest.raises(UsageError, match="one of 3 parts"):
        GGUFSource().describe(str(file), DecoderOptions())


@pytest.mark.parametrize("stated", [{}, {"eot_token_id": EOT}, {"eot_token_id": EOT, "eom_token_id": EOM}])
def test_tokens_that_end_a_text_a_turn_or_a_message(tmp_path: Path, stated: dict[str, int]) -> None:
    """h06: a program stops at each of them."""
    file = write(tmp_path / "m.gguf", "smollm", **stated)
    facts = GGUFSource().describe(str(file), DecoderOptions()).facts
    assert facts.eos == (EOS, *stated.values())
    assert facts.bos == BOS
    assert load(file).facts == facts


def write_pieces(path: Path, **tokenizer: Any) -> Path:
    """A small Llama with a SentencePiece vocabulary, as Llama 2 and the first Mistral have."""
    words = ["▁", "▁a", "▁ab", *"abc", "ab"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *words]
    scores = [0.0] * 259 + [-float(i) for i in range(len(words))]
    types = [2, 3, 3, *[6] * 256, *[1] * len(words)]

    def vocabulary(writer: GGUFWriter) -> None:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(tokens)
        writer.add_token_scores(scores)
        writer.add_token_types(types)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        for key, value in tokenizer.items():
            writer.add_bool(f"tokenizer.ggml.{key}", value)

    return write_gguf(random_model("llama", vocab_size=len(tokens)), path, vocabulary=vocabulary)


@pytest.mark.slow
def test_pieces_begin_with_a_blank_unless_the_file_says_not(tmp_path: Path) -> None:
    """h04: tokenizer.ggml.add_space_prefix is applied."""
    assert split(write_pieces(tmp_path / "a.gguf"), "ab c") == ["▁ab", "▁", "c"]
    assert split(write_pieces(tmp_path / "b.gguf", add_space_prefix=False), "ab c") == ["ab", "▁", "c"]
    with pytest.raises(UsageError, match="remove_extra_whitespaces is set"):
        load(write_pieces(tmp_path / "c.gguf", remove_extra_whitespaces=True))
