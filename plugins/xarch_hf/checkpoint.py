"""Contents of a model folder: configuration and weight files, checked before anything is allocated."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xarch import UsageError, file_digest, load_weights, open_regular, read_json, weights_header

if TYPE_CHECKING:
    from torch import Tensor

SAFETENSORS = "model.safetensors"
PICKLE = "pytorch_model.bin"


@dataclass(frozen=True, slots=True)
class CheckpointFolder:
    """Weight files of a model folder; empty if only the description is available locally.

    Attributes:
        folder: the folder.
        files: weight files sorted by name.
        pickled: whether they are pickles.
    """

    folder: Path
    files: tuple[Path, ...]
    pickled: bool = False

    @property
    def bytes(self) -> int:
        """Return the size of the weights on disk."""
        return sum(f.stat().st_size for f in self.files)

    def elements(self) -> int | None:
        """Return the number of stored values, from the headers; None for pickles, which have no header."""
        if self.pickled:
            return None
        return sum(entry.elements for f in self.files for entry in weights_header(f).tensors.values())

    def load(self, allow_pickle: bool) -> dict[str, Tensor]:
        """Load all tensors under their original names.

        Raises:
            UsageError: a file is damaged or a pickle that is not allowed, or two files contain the same name.
        """
        tensors: dict[str, Tensor] = {}
        for file in self.files:
            for name, tensor in load_weights(file, allow_pickle=allow_pickle).items():
                if name in tensors:
                    raise UsageError(f"{self.folder}: tensor {name!r} is in two files, one of them {file.name}")
                tensors[name] = tensor
        return tensors

    def digests(self) -> Iterable[str]:
        """Yield the SHA-256 of every file, stored in the user's cache."""
        return [file_digest(f) for f in self.files]


def read_config(folder: Path, where: str) -> dict[str, Any]:
    """Read config.json as plain data.

    Raises:
        UsageError: the file is missing, not JSON, or not a transformers configuration.
    """
    path = folder / "config.json"
    if not path.is_file():
        gguf = sorted(p.name for p in folder.glob("*.gguf"))
        hint = (
            f"for a GGUF file use gguf:{folder / gguf[0]}" if gguf else "expected a folder written by save_pretrained"
        )
        raise UsageError(f"{where}: {folder} has no config.json", hint)
    config = read_json(path)
    if not isinstance(config, dict):
        raise UsageError(f"{path} is not a JSON object")
    return config


def generation_ends(folder: Path) -> tuple[int, ...]:
    """Return the end-of-text tokens in generation_config.json, often the only place where chat models list them.

    Raises:
        UsageError: the file is damaged, or the field contains no token ids.
    """
    path = folder / "generation_config.json"
    if not path.is_file():
        return ()
    said = read_json(path)
    ends = said.get("eos_token_id") if isinstance(said, dict) else None
    found = [] if ends is None else ends if isinstance(ends, list) else [ends]
    if not all(isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in found):
        raise UsageError(f"{path}: eos_token_id is {ends!r}, expected token ids")
    return tuple(found)


def find_checkpoint(folder: Path, where: str) -> CheckpointFolder:
    """Find the weights of a folder: safetensors (one file or an index) take precedence over pickles.

    Raises:
        UsageError: an index names files that are missing or outside the folder.
    """
    for single, pickled in ((SAFETENSORS, False), (PICKLE, True)):
        if (folder / single).is_file():
            return CheckpointFolder(folder, (folder / single,), pickled)
        index = folder / f"{single}.index.json"
        if index.is_file():
            names = _index_names(index)
            missing = sorted(n for n in names if not (folder / n).is_file())
            if len(missing) == len(names):
                continue
            if missing:
                raise UsageError(f"{where}: {folder} lacks {', '.join(missing[:5])}, named in {index.name}")
            return CheckpointFolder(folder, tuple(folder / n for n in sorted(names)), pickled)
    return CheckpointFolder(folder, ())


def licence(folder: Path) -> str | None:
    """Return the licence named in a model card's front matter."""
    try:
        with open_regular(folder / "README.md") as f:
            head = f.read(20_000).decode("utf-8", "replace").replace("\r\n", "\n")
    except (OSError, UsageError):
        return None
    front = re.match(r"---[ \t]*\n(.*?)\n---", head, re.S)
    found = re.search(r"^license:\s*['\"]?([\w.+-]+)", front.group(1), re.M) if front else None
    return found.group(1) if found else None


def _index_names(index: Path) -> set[str]:
    table = read_json(index)
    table = table.get("weight_map") if isinstance(table, dict) else None
    if not isinstance(table, Mapping) or not table or not all(isinstance(v, str) for v in table.values()):
        raise UsageError(f"{index} has no weight_map from names to files")
    names = set(table.values())
    outside = sorted(n[:200] for n in names if Path(n).name != n or n in ("", ".", "..") or len(n) > 200)
    if outside:
        raise UsageError(f"{index} names files outside its folder, or too long for a name: {', '.join(outside[:5])}")
    return names
