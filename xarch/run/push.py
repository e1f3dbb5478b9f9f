"""Uploads a finished student to a model hub: weights and card at the top, exports below ``onnx/``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xarch.errors import UsageError
from xarch.files.folder_lock import LOCK
from xarch.files.manifest import MANIFEST, files_below
from xarch.files.run_dir import RunDir
from xarch.run.inspection import read_plan

EXPORTS = "onnx"


@dataclass(frozen=True)
class Upload:
    """What a push uploads.

    Attributes:
        repository: ``OWNER/NAME``.
        files: name in the repository -> file.
    """

    repository: str
    files: dict[str, Path]

    @property
    def size(self) -> int:
        """Return the bytes of all files."""
        return sum(file.stat().st_size for file in self.files.values())


def upload_of(path: Path | str, repository: str, profiles: Sequence[str] | None = None) -> Upload:
    """Return what a push of a run uploads, after checking every file against its digest; the card may have been edited.

    Args:
        repository: ``OWNER/NAME``, or ``NAME`` in the user's own namespace.
        profiles: exports to upload; all of them by default.

    Raises:
        UsageError: the run is not done or was a trial, a file is damaged, an export does not exist, or the name is
            invalid.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as e:
        raise UsageError(f"{repository!r} is no name of a repository: {e}", "OWNER/NAME") from e
    run = RunDir.open(path)
    if run.state() != "done":
        raise UsageError(f"{run.path} is {run.state()}, not done", f"xarch convert --resume --out {run.path}")
    run.refuse_damage(run.faults(checkpoints=False))
    if read_plan(run).config.tiny:
        raise UsageError(f"{run.path} is a trial with a truncated model", "convert without --tiny")
    exports = run.path / "export"
    found = sorted(folder.name for folder in exports.iterdir() if folder.is_dir()) if exports.is_dir() else []
    missing = sorted(set(profiles or ()) - set(found))
    if missing:
        raise UsageError(
            f"{run.path} has no export {missing[0]!r}; it has {', '.join(found) or 'none'}",
            f"xarch export {run.path} --profile {missing[0]}",
        )
    folders = {"": run.path / "student"}
    folders |= {f"{EXPORTS}/{name}/": exports / name for name in (found if profiles is None else sorted(profiles))}
    files: dict[str, Path] = {}
    for prefix, folder in folders.items():
        names = [*files_below(folder, (LOCK,)), MANIFEST]
        files |= {f"{prefix}{name}": folder / name for name in names}
    return Upload(repository, files)


def push(upload: Upload, *, private: bool = False) -> str:
    """Create the repository if there is none, and upload all files in one commit; return the address.

    Raises:
        UsageError: the hub cannot be reached, or refused.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    # What any request raises: the errors of the HTTP library, and OSError.
    unreachable = tuple(base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception))
    api = HfApi(library_name="xarch")
    operations: list[Any] = [CommitOperationAdd(name, str(file)) for name, file in upload.files.items()]
    try:
        made = api.create_repo(upload.repository, private=private, exist_ok=True)
        api.create_commit(made.repo_id, operations, commit_message="Upload of xarch")
    except HfHubHTTPError as e:
        raise UsageError(f"the hub refused {upload.repository}: {e}", "log in with `hf auth login`") from e
    except unreachable as e:
        raise UsageError(f"the hub {api.endpoint} cannot be reached: {e}", "check the network and HF_ENDPOINT") from e
    return str(made)
