"""The ``timm:`` source: image classifiers with weights from a file, or timm's own."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from pydantic import BaseModel, Field

from xarch import Options, SourceAdapter, SourceInfo, UsageError, file_digest, validated, weights_digest
from xarch_image import ImageFacts
from xarch_timm.build import classifier, create, describe
from xarch_timm.labels import class_names
from xarch_timm.model import TimmTeacher
from xarch_timm.reference import File, Reference, image_size, parse
from xarch_timm.weights import from_file, pretrained, shapes_of, sizes_in


class TimmSourceOptions(Options):
    """Options of ``timm:`` teachers; what the reference says comes first."""

    checkpoint: File | None = Field(None, description="file of weights, in timm's names")
    pretrained: bool = Field(False, description="timm's own pretrained weights, from its cache or the hub")
    size: int | tuple[int, int] | None = Field(None, description="image size in pixels; default: the model's own")
    channels: int | None = Field(None, ge=1, le=64, description="channels of its images; default: the checkpoint's")
    classes: int | None = Field(None, ge=1, description="number of classes; default: the checkpoint's")
    mean: list[float] | None = Field(None, description="normalisation: mean of each channel, of images in 0 to 1")
    std: list[float] | None = Field(None, description="normalisation: deviation of each channel")
    labels: str | None = Field(None, description="names of its classes, a subset of timm, e.g. imagenet-1k")
    allow_pickle: bool = Field(
        False, description="also read .pth files: tensors only, in a separate process, cached as safetensors"
    )


class TimmSource(SourceAdapter):
    """``timm:NAME?checkpoint=FILE&key=value``."""

    Options = TimmSourceOptions

    def tiny(self, options: BaseModel) -> BaseModel:
        """Return the options unchanged: architectures by name have no shorter form."""
        return options

    def describe(self, ref: str, options: BaseModel) -> SourceInfo:
        named, chosen = _merged(ref, options)
        facts, warnings = _facts(named, chosen)
        with torch.device("meta"):
            net = create(facts)
        head = classifier(net)
        constants = {}
        if head is not None and head.in_features == facts.pooled:
            constants = {"classifier.weight": (facts.classes, facts.pooled)}
        parameters = sum(p.numel() for p in net.parameters())
        stored = Path(chosen.checkpoint).stat().st_size if chosen.checkpoint else 4 * parameters
        config = net.pretrained_cfg
        return SourceInfo(
            family="image",
            facts=facts,
            parameters=parameters,
            weight_bytes=stored,
            title=f"{named.name}, {facts.classes} classes, {facts.height} x {facts.width} pixels, "
            f"{parameters / 1e6:.2f} M parameters",
            details={
                "checkpoint": chosen.checkpoint or config.get("hf_hub_id"),
                **({"licence": config["license"]} if config.get("license") and not chosen.checkpoint else {}),
            },
            warnings=warnings,
            constants=constants,
            weights=tuple(net.state_dict()),
            processor=False,
        )

    def load(self, ref: str, options: BaseModel, *, device: torch.device, dtype: torch.dtype) -> TimmTeacher:
        named, chosen = _merged(ref, options)
        facts, _ = _facts(named, chosen)
        if chosen.checkpoint:
            file = Path(chosen.checkpoint)
            resize = chosen.size is not None
            net = from_file(facts, file, allow_pickle=chosen.allow_pickle, resize=resize)
            identity = hashlib.sha256(f"{file_digest(file)} {_text(facts)}".encode()).hexdigest()
        else:
            net = pretrained(facts)
            identity = weights_digest(net.state_dict())
        return TimmTeacher(net.to(device, dtype), facts, ref=f"timm:{ref}", fingerprint=identity)

    def random(self, ref: str, options: BaseModel, *, device: torch.device, seed: int) -> TimmTeacher:
        facts, _ = _facts(*_merged(ref, options))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = create(facts).to(device)
        identity = hashlib.sha256(f"random {seed} {_text(facts)}".encode()).hexdigest()
        return TimmTeacher(net, facts, ref=f"random weights of timm:{ref}", fingerprint=identity)


def _merged(ref: str, options: BaseModel) -> tuple[Reference, TimmSourceOptions]:
    """Return the reference, and the options with what it says."""
    named = parse(ref)
    given = cast(TimmSourceOptions, options)
    chosen = validated(TimmSourceOptions, {**given.model_dump(), **named.own}, f"timm:{ref} ")
    if not chosen.checkpoint and not chosen.pretrained:
        raise UsageError(
            f"timm:{ref} names no weights",
            f"timm:{named.name}?checkpoint=FILE for a file, timm:{named.name}?pretrained=true for timm's own, or "
            "--teacher random",
        )
    return named, chosen


def _facts(named: Reference, chosen: TimmSourceOptions) -> tuple[ImageFacts, tuple[str, ...]]:
    """Return the facts of a teacher, and warnings about what its file does not say."""
    size, warnings = image_size(chosen.size), []
    known: dict[str, int] = {}
    if chosen.checkpoint:
        file = Path(chosen.checkpoint)
        known = sizes_in(named.name, shapes_of(file, allow_pickle=chosen.allow_pickle), str(file))
    facts = describe(
        named.name,
        classes=chosen.classes or known.get("classes") or 1000,
        channels=chosen.channels or known.get("channels"),
        size=size,
        arguments=named.arguments,
    )
    if chosen.checkpoint and size is None:
        warnings.append(
            f"timm:{named.name}: the file does not say for which image size it was trained; "
            f"{facts.height} x {facts.width} is assumed (&size=32 for another)"
        )
    names = class_names(chosen.labels, facts) if chosen.labels else ()
    return replace(facts, class_names=names).normalised_by(chosen.mean, chosen.std), tuple(warnings)


def _text(facts: ImageFacts) -> str:
    return json.dumps(facts.to_json(), sort_keys=True)
