"""The ``hf:`` source: transformers decoders from a folder or the hub."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from pydantic import BaseModel, Field

from xarch import Options, SourceAdapter, SourceInfo, UsageError
from xarch_decoder.weights import weight_shapes
from xarch_hf import hub
from xarch_hf.checkpoint import CheckpointFolder, find_checkpoint, licence
from xarch_hf.model import Described, describe_folder, load_module, random_module
from xarch_hf.teacher import HFTeacher
from xarch_hf.tokenizer import has_tokenizer

TINY_LAYERS = 2
PICKLE_HINT = (
    "use a checkpoint in safetensors, or add `--allow-pickle` (option allow_pickle) if you trust its author: pickles "
    "are then read with torch.load(weights_only=True) and cached as safetensors"
)


class DecoderOptions(Options):
    """Options of every decoder source."""

    layers: int | None = Field(None, ge=1, le=2048, description="keep only this many of the first layers")


class HFOptions(DecoderOptions):
    """Options of ``hf:`` teachers."""

    allow_pickle: bool = Field(
        False, description="also read pytorch_model.bin: tensors only, in a separate process, cached as safetensors"
    )


class DecoderSource(SourceAdapter):
    """Base of sources of decoders."""

    Options: ClassVar[type[BaseModel]] = DecoderOptions

    def tiny(self, options: BaseModel) -> BaseModel:
        """Return options for the first two layers of the same model, with its own weights."""
        kept = cast(DecoderOptions, options).layers or TINY_LAYERS
        return options.model_copy(update={"layers": min(kept, TINY_LAYERS)})


class HFSource(DecoderSource):
    """``hf:FOLDER``, ``hf:HUB-ID`` or ``hf:HUB-ID@REVISION``."""

    Options = HFOptions

    def describe(self, ref: str, options: BaseModel) -> SourceInfo:
        wanted = cast(HFOptions, options)
        folder, repository, revision = locate(ref, hub.DESCRIPTION)
        checkpoint = find_checkpoint(folder, f"hf:{ref}")
        stored, size, warnings = None, checkpoint.bytes, []
        if not checkpoint.files and repository is not None:
            size = hub.weight_bytes(repository, revision) or 0
            stored = hub.stored_shapes(repository, revision)
            if stored is None:
                warnings = [f"the weights of hf:{ref} are not available locally; they are checked when loaded"]
        elif checkpoint.pickled:
            warnings = [f"the weights of hf:{ref} are pickles; they are checked when loaded"]
        described = describe_folder(folder, f"hf:{ref}", wanted.layers, checkpoint, stored)
        details: dict[str, Any] = {"files": [f.name for f in checkpoint.files]}
        if repository is not None:
            details |= {"repository": repository, "revision": folder.name}
        if checkpoint.files:
            # Reading the headers detects incomplete files before a conversion is planned.
            details["stored_values"] = checkpoint.elements()
        if checkpoint.pickled and not wanted.allow_pickle:
            _refuse_pickle(f"hf:{ref}", checkpoint)
        info = source_info(described, folder, size, details, local=repository is None)
        return replace(info, warnings=(*info.warnings, *warnings))

    def load(self, ref: str, options: BaseModel, *, device: torch.device, dtype: torch.dtype) -> HFTeacher:
        wanted = cast(HFOptions, options)
        folder, repository, _ = locate(ref, hub.DESCRIPTION + hub.TOKENIZER + hub.SAFETENSORS)
        if repository is not None and not find_checkpoint(folder, f"hf:{ref}").files:
            if not wanted.allow_pickle:
                hint = (
                    f"if only the network is missing, run `hf download {repository}` where there is one; else "
                    f"{PICKLE_HINT}"
                )
                raise UsageError(f"hf:{ref} has no model*.safetensors in the cache, or none on the hub", hint)
            folder, _, _ = locate(ref, hub.DESCRIPTION + hub.TOKENIZER + hub.PICKLES)
        checkpoint = find_checkpoint(folder, f"hf:{ref}")
        if checkpoint.pickled and not wanted.allow_pickle:
            _refuse_pickle(f"hf:{ref}", checkpoint)
        described = describe_folder(folder, f"hf:{ref}", wanted.layers, checkpoint)
        return make_teacher(described, checkpoint, device=device, dtype=dtype, allow_pickle=wanted.allow_pickle)

    def random(self, ref: str, options: BaseModel, *, device: torch.device, seed: int) -> HFTeacher:
        folder, _, _ = locate(ref, hub.DESCRIPTION + hub.TOKENIZER)
        checkpoint = find_checkpoint(folder, f"hf:{ref}")
        described = describe_folder(folder, f"hf:{ref}", cast(HFOptions, options).layers, checkpoint)
        return random_teacher(described, folder, device=device, seed=seed)


def make_teacher(
    described: Described,
    checkpoint: CheckpointFolder,
    *,
    device: torch.device,
    dtype: torch.dtype,
    allow_pickle: bool = False,
) -> HFTeacher:
    """Load a described model; see :func:`xarch_hf.model.load_module` for exceptions."""
    module = load_module(described, checkpoint, dtype=dtype, device=device, allow_pickle=allow_pickle)
    return HFTeacher(
        module,
        described.architecture,
        described.facts,
        ref=described.where,
        fingerprint=described.fingerprint(checkpoint),
        folder=checkpoint.folder,
    )


def random_teacher(described: Described, folder: Path, *, device: torch.device, seed: int) -> HFTeacher:
    """Build a described model with random weights, and the tokenizer of its folder."""
    facts = json.dumps(described.facts.to_json(), sort_keys=True)
    return HFTeacher(
        random_module(described, device=device, seed=seed),
        described.architecture,
        described.facts,
        ref=f"random weights of {described.where}",
        fingerprint=hashlib.sha256(f"random {seed} {facts}".encode()).hexdigest(),
        folder=folder,
    )


def locate(ref: str, patterns: tuple[str, ...]) -> tuple[Path, str | None, str | None]:
    """Return (folder, hub id, revision) of a reference; the last two are None for a local folder.

    Raises:
        UsageError: it is neither a folder nor a valid hub id, or the hub does not provide it.
    """
    folder = Path(ref).expanduser()
    if folder.is_dir():
        return folder, None, None
    if folder.is_file():
        other = f"gguf:{ref}" if folder.suffix == ".gguf" else f"hf:{folder.parent}"
        raise UsageError(f"hf:{ref} is a file, expected a folder or a hub id", f"use {other}")
    repository, at, revision = ref.partition("@")
    if not hub.HUB_ID.match(repository) or (at and not revision):
        raise UsageError(f"hf:{ref}: no such folder", "expected hf:FOLDER, hf:HUB-ID or hf:HUB-ID@REVISION")
    return hub.snapshot(repository, revision or None, patterns), repository, revision or None


def source_info(
    described: Described, folder: Path, size: int, details: dict[str, Any], *, local: bool = True
) -> SourceInfo:
    """Return the information that the plan and ``inspect`` show about a decoder."""
    facts = described.facts
    warnings = []
    tokenizer = has_tokenizer(folder) if local else None
    if tokenizer is False:
        warnings.append(f"{folder} has no tokenizer: text cannot be read with this teacher")
    known = licence(folder)
    return SourceInfo(
        family="decoder",
        facts=facts,
        parameters=described.parameters,
        weight_bytes=size,
        title=f"{described.architecture.model_type} decoder, {facts.layers} layers, width {facts.width}, "
        f"{described.parameters / 1e6:.1f} M parameters",
        details={
            "model_type": described.architecture.model_type,
            **({"licence": known} if known else {}),
            **({"layers_kept": f"{facts.layers} of {described.stored_layers}"} if _is_cut(described) else {}),
            **details,
        },
        warnings=(*warnings, *described.notes),
        constants={"head.weight": (facts.vocab, facts.width)},
        weights=tuple(weight_shapes(facts)),
        processor=tokenizer,
    )


def _is_cut(described: Described) -> bool:
    return described.facts.layers != described.stored_layers


def _refuse_pickle(where: str, checkpoint: CheckpointFolder) -> None:
    raise UsageError(
        f"{where} has its weights only as pickles ({checkpoint.files[0].name}), and loading a pickle can execute code",
        PICKLE_HINT,
    )
