"""Checkpoints of a stage: safetensors and JSON, written atomically and verified before use."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from xarch.errors import UsageError
from xarch.failures import is_machine_failure
from xarch.files.atomic import new_folder, save_tensors, write_json
from xarch.files.digest import sha256

STEP = re.compile(r"step-(\d+)$")
KEEP = 2
FORMAT = 3
"""Format of the ``state.json`` of a stage in progress; final checkpoints are the same in every format."""


@dataclass
class Checkpoint:
    """A verified checkpoint.

    Attributes:
        step: optimiser steps completed.
        final: whether the stage is complete.
        model: tensors of the student that the stage changed.
        trainer: optimiser, objective and random-generator tensors (empty if final).
        state: JSON data (data position, counters, outcome).
    """

    step: int
    final: bool
    model: dict[str, Tensor]
    trainer: dict[str, Tensor]
    state: dict[str, Any]


class CheckpointFolder:
    """Checkpoint folder of one stage."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder = folder
        self.say = say

    def save(
        self,
        step: int,
        *,
        model: Mapping[str, Tensor],
        trainer: Mapping[str, Tensor],
        state: Mapping[str, Any],
        final: bool = False,
    ) -> None:
        """Write ``step-N`` and delete all but the newest few.

        Raises:
            OSError: it cannot be written; earlier checkpoints are intact.
        """
        with new_folder(self.folder / f"step-{step}") as folder:
            files = {}
            for name, tensors in (("model.safetensors", model), ("trainer.safetensors", trainer)):
                save_tensors({k: _storable(v) for k, v in tensors.items()}, folder / name)
            write_json(folder / "state.json", dict(state))
            for file in sorted(folder.iterdir()):
                files[file.name] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
            write_json(folder / "manifest.json", {"format": FORMAT, "step": step, "final": final, "files": files})
        self._prune(step, final)

    def _prune(self, newest: int, final: bool) -> None:
        import shutil

        others = sorted((s for s in self._steps() if s != newest), reverse=True)
        for step in others[0 if final else KEEP - 1 :]:
            shutil.rmtree(self.folder / f"step-{step}", ignore_errors=True)

    def _steps(self) -> list[int]:
        if not self.folder.is_dir():
            return []
        return [int(m[1]) for p in self.folder.iterdir() if (m := STEP.match(p.name)) and p.is_dir()]

    def latest(self, *, final_only: bool = False) -> Checkpoint | None:
        """Return the newest checkpoint whose files match its manifest; damaged ones are reported and skipped."""
        for step in sorted(self._steps(), reverse=True):
            folder = self.folder / f"step-{step}"
            try:
                manifest = json.loads((folder / "manifest.json").read_text())
                if final_only and not manifest["final"]:
                    continue
                if not manifest["final"] and manifest["format"] != FORMAT:
                    self.say(
                        f"checkpoint {folder} has format {manifest['format']}, this xarch resumes from {FORMAT}; "
                        "using an earlier one, or restarting the stage"
                    )
                    continue
                for name, facts in manifest["files"].items():
                    file = folder / name
                    if file.stat().st_size != facts["bytes"] or sha256(file) != facts["sha256"]:
                        raise ValueError(f"{name} does not match its manifest")
                return Checkpoint(
                    step=manifest["step"],
                    final=manifest["final"],
                    model=load_file(folder / "model.safetensors"),
                    trainer=load_file(folder / "trainer.safetensors"),
                    state=json.loads((folder / "state.json").read_text()),
                )
            except (OSError, ValueError, KeyError, TypeError) as e:
                if is_machine_failure(e):
                    raise
                self.say(f"checkpoint {folder} is damaged ({e}); using an earlier one")
        return None


def _storable(tensor: Tensor) -> Tensor:
    return (
        tensor.detach().to("cpu").contiguous().clone()
        if tensor.numel()
        else torch.empty(tensor.shape, dtype=tensor.dtype)
    )


def assert_handover(expected: str, found: str, stage: str) -> None:
    """Check that a stage starts from the student that the previous stage produced.

    Raises:
        UsageError: it is not.
    """
    if expected != found:
        raise UsageError(
            f"stage {stage} would not start from the student of the previous stage: "
            f"weights {found[:12]}, recorded {expected[:12]}",
            "the run folder, the teacher or a plugin has changed; start a new run",
        )
