"""Snapshots of models on the Hugging Face hub, in huggingface_hub's own cache. Respects HF_HUB_OFFLINE."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

from xarch import UsageError

HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?\Z")

DESCRIPTION = ("config.json", "generation_config.json", "*.index.json", "README.md")
TOKENIZER = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*")
SAFETENSORS = ("model*.safetensors",)
PICKLES = ("pytorch_model*.bin",)


def snapshot(repository: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    """Return a folder, named by its commit, with the matching files; downloads only files that are not cached.

    Raises:
        UsageError: the model or revision does not exist, access is denied, or the hub is unreachable and the cache is
            empty.
    """
    from huggingface_hub import errors, snapshot_download

    name = repository if revision is None else f"{repository}@{revision}"
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))
    except errors.GatedRepoError as e:
        raise UsageError(
            f"hf:{name} is gated", f"accept its terms on https://huggingface.co/{repository}, then `hf auth login`"
        ) from e
    except errors.RevisionNotFoundError as e:
        raise UsageError(f"hf:{repository} has no revision {revision!r}") from e
    except errors.RepositoryNotFoundError as e:
        raise UsageError(
            f"hf:{name} is neither a local folder nor a model on the hub", "private models need `hf auth login`"
        ) from e
    except (errors.HFValidationError, ValueError) as e:
        raise UsageError(f"hf:{name}: {e}") from e
    except Exception as e:
        # Refused, timed out, unresolved host, offline mode or partial snapshot: httpx, socket and hub errors alike.
        raise UsageError(
            f"hf:{name} is not in the local cache and the hub cannot be reached ({type(e).__name__})",
            f"on a machine with network access: `hf download {repository}"
            + (f" --revision {revision}" if revision else "")
            + " --local-dir FOLDER`, then use hf:FOLDER; `xarch list sources` shows other ways to name a teacher",
        ) from e


def stored_shapes(repository: str, revision: str | None) -> dict[str, tuple[int, ...]] | None:
    """Return names and shapes of a hub model's safetensors, from their headers; None if unavailable."""
    from huggingface_hub import HfApi

    try:
        files = HfApi().get_safetensors_metadata(repository, revision=revision).files_metadata.values()
        return {name: tuple(tensor.shape) for file in files for name, tensor in file.tensors.items()}
    except _unavailable():
        # Refused, offline, no safetensors or an invalid header: not fatal, as the snapshot has already been found.
        return None


def _unavailable() -> tuple[type[Exception], ...]:
    """Return what the hub's client raises where it is refused, offline or answered nonsense: its HTTP library's errors
    differ between versions, and are bases of its own."""
    from huggingface_hub import errors

    bases = (base for base in errors.HfHubHTTPError.__bases__ if issubclass(base, Exception))
    return (OSError, ValueError, errors.NotASafetensorsRepoError, errors.SafetensorsParsingError, *bases)


def weight_bytes(repository: str, revision: str | None) -> int | None:
    """Return the bytes of a hub model's weights, from its file list; None if unavailable."""
    from huggingface_hub import HfApi

    try:
        files = HfApi().model_info(repository, revision=revision, files_metadata=True).siblings or []
    except _unavailable():
        # The size only refines the plan; the snapshot itself has already been found.
        return None
    for patterns in (SAFETENSORS, PICKLES):
        sizes = [f.size for f in files if any(fnmatch.fnmatch(f.rfilename, p) for p in patterns)]
        if sizes and all(size is not None for size in sizes):
            return sum(size or 0 for size in sizes)
    return None
