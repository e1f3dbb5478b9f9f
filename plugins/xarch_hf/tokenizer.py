"""Tokenizers that belong to a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xarch import UsageError, read_json
from xarch_hf.quiet import quiet
from xarch_hf.wording import brief

FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "spiece.model")
ALL_FILES = (*FILES, "special_tokens_map.json", "added_tokens.json", "merges.txt", "chat_template.jinja")
MAX_BYTES = 128 << 20
"""Four times the largest tokenizer.json of a published model."""
MAX_SMALL_BYTES = 32 << 20
MAX_VALUES = 8_000_000


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

    check_files(folder)
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
            tokenizer("a")
            return tokenizer
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as e:
        # Several libraries with their own exception types parse tokenizer files, and a panic of the tokenizers library
        # is not even an Exception; all mean the same here.
        raise UsageError(f"the tokenizer in {folder} cannot be read: {brief(e)}", "download it again") from e


def check_files(folder: Path) -> None:
    """Check the sizes of a tokenizer's files, and the JSON among them, before a library holds them in memory.

    A chat template is only passed on with the tokenizer: it is never rendered.

    Raises:
        UsageError: a file is too large, or not JSON although it should be.
    """
    for file in sorted(folder.iterdir()):
        if file.name in ALL_FILES and file.is_file():
            limit = MAX_BYTES if file.name in FILES else MAX_SMALL_BYTES
            if file.stat().st_size > limit:
                raise UsageError(f"{file} has {file.stat().st_size} bytes, but the limit is {limit}")
            if file.suffix == ".json":
                read_json(file, max_bytes=limit, max_values=MAX_VALUES)


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
