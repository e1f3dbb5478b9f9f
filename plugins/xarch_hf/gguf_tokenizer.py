"""Tokenizer of a GGUF file: built by transformers, with pre-tokenization defined by this table.

``tokenizer.ggml.pre`` names the pre-tokenization of a byte-level vocabulary. For unknown names, transformers silently
splits like GPT-2, which yields different tokens, so every name must be in this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xarch import UsageError
from xarch_hf.gguf_header import GGUFHeader
from xarch_hf.gguf_keys import ADVICE
from xarch_hf.quiet import quiet
from xarch_hf.wording import brief

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LOWER, _UPPER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"


@dataclass(frozen=True, slots=True)
class Splitting:
    """Splitting of text before merges.

    Attributes:
        pattern: pattern of a piece; None means GPT-2's own.
        digits: whether every digit is split off first.
        whole_words: whether a piece that is itself a token is used without merging.
        composed: whether text is normalised to NFC first.
        bos: whether texts begin with the token for their beginning where the file does not say so.
    """

    pattern: str | None = None
    digits: bool = False
    whole_words: bool = False
    composed: bool = False
    bos: bool = False


_GPT2 = Splitting()
_DIGITS_FIRST = Splitting(digits=True)
_LLAMA3 = Splitting(rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}", whole_words=True, bos=True)
_QWEN2 = Splitting(rf"{_WORDS}|\p{{N}}|{_REST}", composed=True)
_TEKKEN = Splitting(
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    whole_words=True,
    bos=True,
)

SPLITTINGS: dict[str, Splitting] = {
    "gpt-2": _GPT2,
    "smollm": _DIGITS_FIRST,
    "starcoder": _DIGITS_FIRST,
    "refact": _DIGITS_FIRST,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "falcon3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "tekken": _TEKKEN,
}
"""``tokenizer.ggml.pre`` -> splitting, as llama.cpp defines these names."""

BYTE_LEVEL, SENTENCEPIECE = "gpt2", "llama"
"""``tokenizer.ggml.model``: the two kinds of tokenizers of the supported architectures."""

READ = frozenset(
    {"model", "pre", "tokens", "token_type", "scores", "merges", "add_space_prefix", "add_bos_token", "add_eos_token"}
    | {f"{name}_token_id" for name in ("bos", "eos", "eot", "eom", "unknown", "padding")}
)
HARMLESS = frozenset(
    {"token_type_count", "add_sep_token"}
    | {f"{name}_token_id" for name in ("seperator", "separator", "cls", "mask", "prefix", "suffix", "middle")}
    | {f"fim_{name}_token_id" for name in ("pre", "suf", "mid", "pad", "rep", "sep")}
)
"""Keys under ``tokenizer.ggml`` that do not affect tokenization: special tokens with other uses."""
END_TOKENS = ("eos", "eot", "eom")
"""Tokens that end a text, a turn or a message; generation stops at each of them."""


def check_tokenizer(header: GGUFHeader, where: str) -> tuple[str, ...]:
    """Check a tokenizer and return warnings.

    Raises:
        UsageError: its kind, its pre-tokenization or one of its keys is unknown.
    """
    stated = _stated(header)
    kind, pre = stated.get("model"), stated.get("pre")
    if kind is None:
        return ()
    if kind not in (BYTE_LEVEL, SENTENCEPIECE):
        raise UsageError(f"{where}: tokenizer.ggml.model is {kind!r}, expected {BYTE_LEVEL} or {SENTENCEPIECE}", ADVICE)
    unknown = sorted(set(stated) - READ - HARMLESS - {"remove_extra_whitespaces"})
    if unknown:
        raise UsageError(f"{where}: the key tokenizer.ggml.{unknown[0]} is not known here", ADVICE)
    if stated.get("remove_extra_whitespaces"):
        raise UsageError(f"{where}: tokenizer.ggml.remove_extra_whitespaces is set, which is not read", ADVICE)
    if kind == SENTENCEPIECE:
        if pre not in (None, "default"):
            raise UsageError(f"{where}: tokenizer.ggml.pre is {pre!r} in a SentencePiece vocabulary", ADVICE)
        return ()
    if pre is None:
        return (f"{where} does not say how its text is split (tokenizer.ggml.pre); read as GPT-2 splits it",)
    if pre not in SPLITTINGS:
        known = ", ".join(sorted(SPLITTINGS))
        raise UsageError(f"{where}: tokenizer.ggml.pre is {pre!r}; splittings known here are {known}", ADVICE)
    return ()


def end_tokens(header: GGUFHeader) -> list[int]:
    """Return every end-of-text token, that of whole texts first."""
    stated = _stated(header)
    ids = [stated.get(f"{name}_token_id") for name in END_TOKENS]
    return list(dict.fromkeys(int(i) for i in ids if i is not None))


def gguf_tokenizer(file: Path, header: GGUFHeader, where: str) -> Any:
    """Load the tokenizer of a file that is alone in its folder.

    Raises:
        UsageError: it cannot be read faithfully.
    """
    from transformers import AutoTokenizer

    check_tokenizer(header, where)
    stated = _stated(header)
    splitting = SPLITTINGS.get(stated.get("pre", "gpt-2"), _GPT2)
    byte_level = stated.get("model") == BYTE_LEVEL
    said = {}
    if byte_level and splitting.bos and "add_bos_token" not in stated:
        said["add_bos_token"] = True
    try:
        with quiet():
            made = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name, local_files_only=True, **said)
    except Exception as e:
        # On hostile or unusual files, the reader raises errors from several libraries.
        raise UsageError(f"{where}: transformers cannot read the tokenizer: {brief(e)}") from e
    if byte_level:
        _split(made.backend_tokenizer, splitting, prefix=bool(stated.get("add_space_prefix", False)))
    elif not stated.get("add_space_prefix", True):
        _without_prefix(made.backend_tokenizer, where)
    return made


def _split(backend: Any, splitting: Splitting, *, prefix: bool) -> None:
    from tokenizers import Regex
    from tokenizers.normalizers import NFC
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

    steps: list[Any] = [Digits(individual_digits=True)] if splitting.digits else []
    if splitting.pattern is not None:
        steps.append(Split(Regex(splitting.pattern), behavior="isolated"))
    steps.append(ByteLevel(add_prefix_space=prefix, use_regex=splitting.pattern is None))
    backend.pre_tokenizer = Sequence(steps)
    backend.model.ignore_merges = splitting.whole_words
    if splitting.composed:
        backend.normalizer = NFC()


def _without_prefix(backend: Any, where: str) -> None:
    """Remove SentencePiece's space prefix."""
    from tokenizers.pre_tokenizers import Metaspace

    if not isinstance(backend.pre_tokenizer, Metaspace):
        raise UsageError(f"{where}: tokenizer.ggml.add_space_prefix is false, which is not read", ADVICE)
    backend.pre_tokenizer.prepend_scheme = "never"


def _stated(header: GGUFHeader) -> Mapping[str, Any]:
    begin = "tokenizer.ggml."
    return {key.removeprefix(begin): value for key, value in header.metadata.items() if key.startswith(begin)}
