"""Tokenizers that belong to a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xarch import UsageError
from xarch_hf.quiet import quiet
from xarch_hf.wording import brief

FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "spiece.model")


def has_tokenizer(folder: Path) -> bool:
    """Return whether a folder contains a tokenizer."""
    return any((folder / name).is_file() for name in FILES)


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a folder, or return None if it has none.

    Raises:
        UsageError: its files are damaged, or it requires its own code.
    """
    if not has_tokenizer(folder):
        return None
    from transformers import AutoTokenizer

    try:
        with quiet():
            return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except Exception as e:
        # Several libraries with their own exception types parse tokenizer files; all mean the same here.
        raise UsageError(f"the tokenizer in {folder} cannot be read: {brief(e)}", "download it again") from e


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer's files, including ``tokenizer.json``, which the tokenizers package can read by itself.

    Raises:
        UsageError: it exists only as Python code, so a student could not be used without transformers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(str(folder))
    if not (folder / "tokenizer.json").is_file():
        raise UsageError(
            f"the tokenizer {type(tokenizer).__name__} has no tokenizer.json form, so a student cannot include it",
            "convert it to a fast tokenizer first",
        )
