"""Resolves names in a configuration to adapters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from xarch.config.schema import RunConfig
from xarch.config.validation import validated
from xarch.contracts.adapters import SourceAdapter, TargetAdapter
from xarch.contracts.data import DataProvider, DataRequest, OpenedData
from xarch.contracts.metric import Metric
from xarch.errors import UsageError
from xarch.registry.registry import Registry

Say = Callable[[str], None]


@dataclass(frozen=True)
class Resolved:
    """An adapter with the rest of the reference and its validated options."""

    adapter: Any
    name: str
    plugin: str
    ref: str
    options: Any


def split_ref(ref: str, what: str, example: str) -> tuple[str, str]:
    """Return ("scheme", "rest") of ``scheme:rest``.

    Raises:
        UsageError: there is no scheme.
    """
    scheme, colon, rest = ref.partition(":")
    if not colon or not scheme or not rest:
        raise UsageError(f"{what} {ref!r} is not SCHEME:REF", f"for example {example}")
    return scheme, rest


def resolve_teacher(
    registry: Registry, ref: str, options: Mapping[str, Any], say: Say, *, tiny: bool = False
) -> Resolved:
    """Resolve a teacher reference to its source adapter; ``zoo:NAME`` is fetched once and replaced by a concrete
    reference."""
    scheme, rest = split_ref(ref, "teacher", "--teacher hf:HuggingFaceTB/SmolLM2-135M or zoo:smollm2-135m")
    if scheme == "zoo":
        from xarch.planning.zoo import fetch_teacher

        scheme, rest = split_ref(fetch_teacher(registry.get("teacher", rest), say), "teacher", "")
    spec = registry.get("source", scheme)
    adapter: SourceAdapter = registry.create("source", scheme)
    checked = validated(adapter.Options, options, "teacher_options")
    if tiny:
        with registry.guard(spec, "tiny"):
            checked = adapter.tiny(checked)
    return Resolved(adapter, scheme, spec.plugin, rest, checked)


def resolve_target(registry: Registry, name: str, options: Mapping[str, Any], *, tiny: bool = False) -> Resolved:
    """Resolve a target adapter with its options."""
    spec = registry.get("target", name)
    adapter: TargetAdapter = registry.create("target", name)
    checked = validated(adapter.Options, options, "student.options")
    if tiny:
        with registry.guard(spec, "tiny"):
            checked = adapter.tiny(checked)
    return Resolved(adapter, name, spec.plugin, name, checked)


def target_title(registry: Registry, name: str, options: Mapping[str, Any]) -> str:
    """Return a target's name as `--to` takes it: ``NAME:MODEL`` of one that stands for many models."""
    model = options.get(registry.get("target", name).data.get("reference", ""))
    return f"{name}:{model}" if model else name


def resolve_data(registry: Registry, ref: str, options: Mapping[str, Any]) -> Resolved:
    """Resolve a data provider with its options."""
    if not ref:
        raise UsageError("no data given", "use --data PROVIDER:REF or `data: {ref: …}`; `xarch list data` shows them")
    scheme, rest = split_ref(ref, "data", "--data text:FOLDER")
    spec = registry.get("data", scheme)
    adapter: DataProvider = registry.create("data", scheme)
    return Resolved(adapter, scheme, spec.plugin, rest, validated(adapter.Options, options, "data.options"))


def check_samples(registry: Registry, config: RunConfig) -> None:
    """Check every form of a sample that a configuration gives.

    Raises:
        UsageError: the data's samples have no such key, or it has an invalid value.
    """
    model = resolve_data(registry, config.data.ref, config.data.options).adapter.Sample
    validated(model, config.data.sample, "data.sample")
    validated(model, config.evaluate.sample, "evaluate.sample")
    for name, stage in config.stages.items():
        validated(model, stage.sample, f"stages.{name}.sample")


def providers(registry: Registry) -> Callable[[str, Mapping[str, Any]], OpenedData]:
    """Return the function passed as ``DataRequest.provider`` to providers that build on another one."""

    def provider(ref: str, options: Mapping[str, Any]) -> OpenedData:
        found = resolve_data(registry, ref, options)
        return OpenedData(found.adapter, DataRequest(found.ref, found.options, provider=provider))

    return provider


def resolve_metric(registry: Registry, name: str, options: Mapping[str, Any]) -> Resolved:
    """Resolve a metric with its options."""
    spec = registry.get("metric", name)
    adapter: Metric = registry.create("metric", name)
    return Resolved(adapter, name, spec.plugin, name, validated(adapter.Options, options, "evaluate.metric_options"))


def export_options(adapter: TargetAdapter, config: RunConfig) -> BaseModel:
    """Return the options of an export, validated by its target.

    Raises:
        UsageError: an option is unknown or has an invalid value.
    """
    return validated(adapter.ExportOptions, config.export.options, "export.options")
