"""Checkpoints of a stage: safetensors and JSON, written atomically and verified before use."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from xarch.errors import UsageError
from xarch.failures import is_machine_failure
from xarch.files.atomic import new_folder, save_tensors, write_json
from xarch.files.bounded_json import read_json
from xarch.files.manifest import seal, verify

STEP = re.compile(r"step-(\d+)$")
KEEP = 2
FORMAT = 4
"""Format of ``state.json``."""


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
    """Checkpoint folder of one stage.

    Args:
        say: receives a line about each checkpoint that cannot be used.
        decided: returns facts that are kept with every checkpoint, see :func:`kept_facts`.
    """

    def __init__(self, folder: Path, say: Callable[[str], None], decided: Callable[[], dict[str, Any]] = dict) -> None:
        self.folder = folder
        self.say = say
        self.decided = decided

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
        with new_folder(self.folder / f"step-{step}", parents=False) as folder:
            for name, tensors in (("model.safetensors", model), ("trainer.safetensors", trainer)):
                save_tensors({k: _storable(v) for k, v in tensors.items()}, folder / name)
            write_json(folder / "state.json", dict(state))
            seal(folder, state=FORMAT, step=step, final=final, decided=self.decided())
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
                facts = verify(folder, ())
                if final_only and not facts["final"]:
                    continue
                if facts["state"] != FORMAT:
                    self.say(
                        f"checkpoint {folder} has format {facts['state']}, this xarch resumes from {FORMAT}; "
                        "using an earlier one, or restarting the stage"
                    )
                    continue
                verify(folder)
                return Checkpoint(
                    step=facts["step"],
                    final=facts["final"],
                    model=load_file(folder / "model.safetensors"),
                    trainer=load_file(folder / "trainer.safetensors"),
                    state=read_json(folder / "state.json"),
                )
            except (OSError, ValueError, KeyError, TypeError, SafetensorError, UsageError) as e:
                if is_machine_failure(e):
                    raise
                why = e.what if isinstance(e, UsageError) else e
                self.say(f"checkpoint {folder} is damaged ({why}); using an earlier one")
        return None


def kept_facts(stages: Path) -> dict[str, Any] | None:
    """Return the ``decided`` facts of the newest sound checkpoint of a run, None without one.

    Args:
        stages: the run's folder of stages.
    """
    for folder in sorted(stages.glob("*/checkpoints"), reverse=True):
        for step in sorted((p for p in folder.glob("step-*") if STEP.match(p.name)), key=_number, reverse=True):
            with contextlib.suppress(UsageError, KeyError):
                return dict(verify(step, ())["decided"])
    return None


def _number(folder: Path) -> int:
    return int(folder.name.partition("-")[2])


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
