"""The ``whisper:`` source: folders of transformers and of CTranslate2."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from xarch import Options, SourceAdapter, SourceInfo, UsageError, file_digest
from xarch_speech.checkpoint import stored_facts, tensors, weight_file
from xarch_speech.facts import STRIDE, SpeechFacts
from xarch_speech.model import SpeechModel
from xarch_speech.processor import SpeechProcessor
from xarch_speech.student import SpeechTeacher

TINY_LAYERS, TINY_SECONDS = 2, 4.0


class WhisperOptions(Options):
    """Options of ``whisper:`` teachers."""

    seconds: float | None = Field(
        None,
        gt=0,
        le=3600,
        description="hear recordings of at most so many seconds; default: of what it was trained on, to which others "
        "are padded",
    )
    layers: int | None = Field(None, ge=1, le=2048, description="keep only so many first layers of each side")


class WhisperSource(SourceAdapter):
    """``whisper:FOLDER``."""

    Options = WhisperOptions

    def tiny(self, options: BaseModel) -> BaseModel:
        """Return options for the first two layers of each side and short recordings."""
        wanted = cast(WhisperOptions, options)
        return wanted.model_copy(
            update={
                "layers": min(wanted.layers or TINY_LAYERS, TINY_LAYERS),
                "seconds": min(wanted.seconds or TINY_SECONDS, TINY_SECONDS),
            }
        )

    def describe(self, ref: str, options: BaseModel) -> SourceInfo:
        folder, facts = _facts(ref, options)
        with torch.device("meta"):
            module = SpeechModel(facts)
        parameters = sum(p.numel() for p in module.parameters())
        return SourceInfo(
            family="speech",
            facts=facts,
            parameters=parameters,
            weight_bytes=weight_file(folder, f"whisper:{ref}").stat().st_size,
            title=f"Whisper, {facts.encoder} encoder and {facts.decoder} decoder layers, width {facts.width}, hears "
            f"{facts.seconds:g} s, {parameters / 1e6:.1f} M parameters",
            details={"file": weight_file(folder, f"whisper:{ref}").name},
            constants={"head.weight": (facts.vocab, facts.width)},
            weights=tuple(module.state_dict()),
            processor=True,
        )

    def load(self, ref: str, options: BaseModel, *, device: torch.device, dtype: torch.dtype) -> SpeechTeacher:
        folder, facts = _facts(ref, options)
        with torch.device("meta"):
            module = SpeechModel(facts)
        stored = tensors(folder, f"whisper:{ref}")
        module.load_state_dict(_taken(stored, module, ref), assign=True)
        digest = file_digest(weight_file(folder, f"whisper:{ref}"))
        return SpeechTeacher(
            module.to(device, dtype),
            facts,
            ref=f"whisper:{ref}",
            fingerprint=hashlib.sha256(f"{digest} {_text(facts)}".encode()).hexdigest(),
            processor=SpeechProcessor(folder, facts.form),
        )

    def random(self, ref: str, options: BaseModel, *, device: torch.device, seed: int) -> SpeechTeacher:
        folder, facts = _facts(ref, options)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            module = SpeechModel(facts).to(device)
        return SpeechTeacher(
            module,
            facts,
            ref=f"random weights of whisper:{ref}",
            fingerprint=hashlib.sha256(f"random {seed} {_text(facts)}".encode()).hexdigest(),
            processor=SpeechProcessor(folder, facts.form),
        )


def _facts(ref: str, options: BaseModel) -> tuple[Path, SpeechFacts]:
    """Return the folder, and the facts of what the options leave of its model."""
    wanted, folder = cast(WhisperOptions, options), Path(ref).expanduser()
    if not folder.is_dir():
        raise UsageError(f"whisper:{ref}: no such folder", "expected whisper:FOLDER, or zoo:whisper-base")
    facts = stored_facts(folder, f"whisper:{ref}")
    if wanted.seconds is not None:
        frames = max(STRIDE, round(wanted.seconds * facts.rate / facts.hop / STRIDE) * STRIDE)
        facts = replace(facts, frames=min(frames, facts.frames))
    if wanted.layers is not None:
        facts = replace(facts, encoder=min(wanted.layers, facts.encoder), decoder=min(wanted.layers, facts.decoder))
    return folder, facts


def _taken(stored: dict[str, Tensor], module: SpeechModel, ref: str) -> dict[str, Tensor]:
    """Return what a model of fewer layers and positions takes.

    Raises:
        UsageError: a tensor is missing, or of another shape.
    """
    taken = {}
    for name, like in module.state_dict().items():
        value = stored.get(name)
        if value is not None and name == "encoder_places":
            value = value[: like.shape[0]].clone()
        if value is None or value.shape != like.shape:
            seen = "missing" if value is None else tuple(value.shape)
            raise UsageError(f"whisper:{ref}: {name} {tuple(like.shape)} is {seen}", "download the model again")
        taken[name] = value
    return taken


def _text(facts: SpeechFacts) -> str:
    return json.dumps(facts.to_json(), sort_keys=True)
