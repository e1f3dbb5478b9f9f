"""Configuration of what follows training: evaluation, export, and the pages about the run."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from xarch.config.base import SAMPLES, SECONDS, STEPS, Model


class CurveConfig(Model):
    """Evaluates the metric on a few fixed samples during training; the time is not counted as training."""

    samples: int = Field(2, ge=1, le=SAMPLES, description="samples, the same at every point")
    every: int = Field(
        100, ge=1, le=STEPS, description="optimiser steps between points; every stage also ends with a point"
    )
    seconds: float | None = Field(
        None, gt=0, le=SECONDS, description="training seconds between points; instead of `every`"
    )


class Evaluate(Model):
    """Held-out evaluation."""

    metric: str | None = Field(
        None, description="registered metric; default: that of the target or the student's family"
    )
    metric_options: dict[str, Any] = Field(default_factory=dict)
    samples: int = Field(16, ge=1, le=SAMPLES, description="held-out samples")
    batch: int = Field(2, ge=1, le=SAMPLES)
    sample: dict[str, Any] = Field(default_factory=dict)
    baseline: bool = Field(True, description="also evaluate the student right after initialisation")
    controls: bool = Field(True, description="also evaluate the controls of the student's family")
    curve: CurveConfig | None = Field(
        None, description="quality curve over training time, e.g. {samples: 2, every: 100}"
    )
    exports: bool = Field(
        False, description="also evaluate the exported files; their figures and gates are exports.PROFILE.FIGURE"
    )


class Export(Model):
    """ONNX export."""

    profiles: list[str] = Field(default_factory=lambda: ["cpu"])
    options: dict[str, Any] = Field(default_factory=dict, description="options of the target's export, e.g. prefill")
    parity_samples: int = Field(8, ge=1, le=SAMPLES, description="held-out samples on which exports are compared")
    bench: bool = True


class Report(Model):
    """What the page and the model card say beside the figures."""

    title: str = Field("", description="default: the name of the run")
    base_model: str = Field("", description="the teacher on the Hugging Face hub, OWNER/NAME, if the run does not know")
    language: list[str] = Field(default_factory=list, description="languages of a text model, e.g. [en]")
    limits: str = Field("", description="what users of the student must know, for the model card")
