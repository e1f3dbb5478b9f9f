"""Encoding of text as token ids, with the teacher's tokenizer or as bytes."""

from __future__ import annotations

from typing import Any

from xarch import UsageError
from xarch_text.library import Piece

NO_TOKENIZER = "put tokenizer.json beside its weights, or use `--set data.options.tokenizer=bytes` if it reads bytes"
"""What to do where a teacher has no tokenizer."""


class Encoder:
    """Encodes pieces as token ids; special tokens mark only document boundaries and are never parsed from the text.

    Args:
        tokenizer: a transformers tokenizer, or None with ``how`` "bytes".
        how: "teacher" or "bytes".
        separator: "eos", "bos" or "none".
        vocab: number of rows of the teacher's embedding, if known.

    Raises:
        UsageError: there is no tokenizer.
    """

    def __init__(self, tokenizer: Any, how: str, separator: str, vocab: int | None) -> None:
        if how == "teacher" and tokenizer is None:
            raise UsageError(
                "the teacher has no tokenizer, so text cannot be tokenized",
                NO_TOKENIZER,
            )
        self.tokenizer = tokenizer if how == "teacher" else None
        self.vocab = vocab
        self.before = self._opening()
        token = getattr(self.tokenizer, f"{separator}_token_id", None) if separator != "none" else None
        self.after = [int(token)] if token is not None else []

    def __call__(self, piece: Piece) -> list[int]:
        """Return the ids of a piece, with the special tokens before and after a document.

        Raises:
            UsageError: an id is outside the teacher's embedding.
        """
        ids = self._plain(piece.text)
        if self.vocab is not None and ids and max(ids) >= self.vocab:
            raise UsageError(
                f"the tokenizer returns token {max(ids)}, but the teacher's vocabulary ends at {self.vocab - 1}",
                "the tokenizer belongs to another model, or `data.options.tokenizer: bytes` needs 256 tokens",
            )
        return [*(self.before if piece.first else ()), *ids, *(self.after if piece.last else ())]

    def template(self, text: str) -> list[int]:
        """Return the ids of a text around others that the user wrote, e.g. a chat's: here special tokens are parsed."""
        return self._plain(text, special=True)

    def _plain(self, text: str, *, special: bool = False) -> list[int]:
        if self.tokenizer is None:
            return list(text.encode("utf-8"))
        try:
            encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=not special, verbose=False)
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as e:
            # A panic of the tokenizers library is no Exception; tokenizer.json decides whether there is one.
            raise UsageError(f"the tokenizer fails on a text: {type(e).__name__}: {str(e)[:200]}") from e
        return list(encoded["input_ids"])

    def _opening(self) -> list[int]:
        """Return the token that this tokenizer itself prepends to every text, if any."""
        start = getattr(self.tokenizer, "bos_token_id", None)
        if self.tokenizer is None or start is None:
            return []
        return [int(start)] if self.tokenizer("a")["input_ids"][:1] == [start] else []
